//! Undo and redo as a list of states with names.

/// A value with its past and its undone future.
#[derive(Clone, Debug)]
pub struct History<T> {
    past: Vec<(String, T)>,
    present: T,
    future: Vec<(String, T)>,
}

/// Steps that are kept.
const MOST_STEPS: usize = 500;

impl<T: Clone + PartialEq> History<T> {
    /// A history that starts here.
    pub fn new(present: T) -> Self {
        Self { past: Vec::new(), present, future: Vec::new() }
    }

    /// A history that goes on after steps that were kept, oldest first: each the name of a step and the value before it.
    pub fn with_past(past: Vec<(String, T)>, present: T) -> Self {
        Self { past, present, future: Vec::new() }
    }

    /// The last `most` steps, oldest first: names, and the values before them.
    pub fn past(&self, most: usize) -> &[(String, T)] {
        &self.past[self.past.len().saturating_sub(most)..]
    }

    /// Goes back to the value before the step with this index, as many undos as that takes.
    pub fn undo_to(&mut self, step: usize) -> bool {
        let mut has_moved = false;
        while self.past.len() > step && self.undo() {
            has_moved = true;
        }
        has_moved
    }

    /// The value now.
    pub fn present(&self) -> &T {
        &self.present
    }

    /// Makes `next` the value, as a step called `name`; a step that changes nothing is none.
    pub fn push(&mut self, name: impl Into<String>, next: T) -> bool {
        if next == self.present {
            return false;
        }
        self.past.push((name.into(), std::mem::replace(&mut self.present, next)));
        if self.past.len() > MOST_STEPS {
            self.past.remove(0);
        }
        self.future.clear();
        true
    }

    /// Makes `next` the value within the last step if that is called `name`; else as a step of its own.
    /// For what is dragged: all of it is one step.
    pub fn amend(&mut self, name: &str, next: T) -> bool {
        if self.undo_name() != Some(name) {
            return self.push(name, next);
        }
        if next == self.present {
            return false;
        }
        self.present = next;
        self.future.clear();
        true
    }

    /// What undo would take back.
    pub fn undo_name(&self) -> Option<&str> {
        self.past.last().map(|(name, _)| name.as_str())
    }

    /// What redo would do again.
    pub fn redo_name(&self) -> Option<&str> {
        self.future.last().map(|(name, _)| name.as_str())
    }

    /// Names of all steps that led here, oldest first.
    pub fn steps(&self) -> impl Iterator<Item = &str> {
        self.past.iter().map(|(name, _)| name.as_str())
    }

    /// Goes one step back.
    pub fn undo(&mut self) -> bool {
        let Some((name, before)) = self.past.pop() else { return false };
        self.future.push((name, std::mem::replace(&mut self.present, before)));
        true
    }

    /// Goes one step forward again.
    pub fn redo(&mut self) -> bool {
        let Some((name, after)) = self.future.pop() else { return false };
        self.past.push((name, std::mem::replace(&mut self.present, after)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dragged_is_one_step() {
        let mut history = History::new(1);
        assert!(history.push("drag", 2));
        assert!(history.amend("drag", 3) && history.amend("drag", 4) && !history.amend("drag", 4));
        assert!(history.undo() && *history.present() == 1 && !history.undo());
        assert!(history.amend("drag", 5) && history.undo() && *history.present() == 1);
    }

    #[test]
    fn a_jump_back_is_as_many_undos_and_steps_can_be_kept() {
        let mut history = History::new(1);
        for (name, value) in [("two", 2), ("three", 3), ("four", 4)] {
            assert!(history.push(name, value));
        }
        assert_eq!(history.past(2), [("three".to_owned(), 2), ("four".to_owned(), 3)]);
        let kept = History::with_past(history.past(9).to_vec(), *history.present());
        assert_eq!(kept.steps().collect::<Vec<_>>(), ["two", "three", "four"]);
        assert!(history.undo_to(1) && *history.present() == 2 && !history.undo_to(1));
        assert!(history.redo() && history.redo() && *history.present() == 4);
    }

    #[test]
    fn undo_and_redo_walk_the_same_steps() {
        let mut history = History::new(1);
        assert!(history.push("two", 2));
        assert!(history.push("three", 3));
        assert!(!history.push("nothing", 3));
        assert_eq!(history.undo_name(), Some("three"));
        assert!(history.undo() && *history.present() == 2);
        assert_eq!(history.redo_name(), Some("three"));
        assert!(history.redo() && *history.present() == 3);
        assert!(history.undo() && history.undo() && !history.undo());
        assert_eq!(*history.present(), 1);
        assert!(history.push("other", 7));
        assert!(!history.redo(), "a new step forgets what was undone");
    }
}
