//! What became of a device in some work: the words that results carry.

use std::fmt::Display;

/// A device in some work: named by the first thing it did, and left at its first failure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    name: Option<String>,
    failure: Option<String>,
}

impl Used {
    /// Notes that the device of this name made a part of the result.
    pub(crate) fn worked(&mut self, name: &str) {
        if self.name.is_none() {
            self.name = Some(name.to_owned());
        }
    }

    /// Notes why the device was left; the first reason stays.
    pub(crate) fn failed(&mut self, failure: impl Display) {
        self.failure.get_or_insert_with(|| failure.to_string());
    }

    /// Why the device was left, if it was.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What made the result: none where the CPU did all of it, whatever was tried before.
    pub(crate) fn in_words(&self) -> Option<String> {
        let name = self.name.as_deref()?;
        Some(match &self.failure {
            None => name.to_owned(),
            Some(failure) => format!("{name}, then cpu ({failure})"),
        })
    }

    /// [`Used::in_words`] without the reason.
    pub(crate) fn in_brief(&self) -> Option<String> {
        let name = self.name.as_deref()?;
        Some(if self.failure.is_none() { name.to_owned() } else { format!("{name}{THEN_CPU}") })
    }
}

/// What [`Used::in_brief`] adds to the name of a device that was left.
pub(crate) const THEN_CPU: &str = ", then cpu";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_only_for_what_it_made() {
        let mut used = Used::default();
        assert_eq!((used.in_words(), used.failure()), (None, None));
        used.failed("no memory");
        assert_eq!((used.in_words(), used.in_brief()), (None, None), "it made nothing");
        used.worked("Card");
        used.failed("later");
        assert_eq!(used.in_words().as_deref(), Some("Card, then cpu (no memory)"));
        assert_eq!(used.in_brief().as_deref(), Some("Card, then cpu"));
        let mut fine = Used::default();
        fine.worked("Card");
        fine.worked("Other");
        assert_eq!(fine.in_words().as_deref(), Some("Card"));
    }
}
