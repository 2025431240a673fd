//! Lists that are written and read one by one, so that a long one is never held.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeSeq as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;

/// Writes `count` values, each as it comes.
pub(crate) fn serialize<S: Serializer, T: Serialize>(
    count: usize,
    values: impl Iterator<Item = Result<T>>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(count))?;
    for value in values {
        list.serialize_element(&value.map_err(S::Error::custom)?)?;
    }
    list.end()
}

/// Reads a list of `what` and gives each value to `push` as it comes.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    what: &str,
    deserializer: D,
    push: impl FnMut(T) -> Result<()>,
) -> std::result::Result<(), D::Error> {
    deserializer.deserialize_seq(OneByOne { what, push, kind: PhantomData })
}

struct OneByOne<'a, T, P> {
    what: &'a str,
    push: P,
    kind: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, P: FnMut(T) -> Result<()>> Visitor<'de> for OneByOne<'_, T, P> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.what)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(value) = list.next_element::<T>()? {
            (self.push)(value).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault, Stage};

    fn read(json: &str, most: usize) -> std::result::Result<Vec<u32>, serde_json::Error> {
        let mut found = Vec::new();
        deserialize("numbers", &mut serde_json::Deserializer::from_str(json), |number: u32| {
            found.push(number);
            if found.len() <= most { Ok(()) } else { Err(Fault::new(Stage::Tasks, "the disk is full").into()) }
        })?;
        Ok(found)
    }

    #[test]
    fn values_are_read_and_written_one_by_one_and_errors_end_it() {
        assert_eq!(read("[1, 2, 3]", 3).expect("numbers"), [1, 2, 3]);
        assert_eq!(read("[]", 0).expect("none"), Vec::<u32>::new());
        assert!(read("[1, 2, 3]", 2).expect_err("full").to_string().contains("the disk is full"));
        assert!(read("{}", 2).expect_err("no list").to_string().contains("a list of numbers"));
        assert!(read("[1, true]", 2).is_err());
        let mut out = serde_json::Serializer::new(Vec::new());
        serialize(2, [Ok(4), Ok(5)].into_iter(), &mut out).expect("written");
        assert_eq!(out.into_inner(), b"[4,5]");
        let broken = [Ok(4), Err(Fault::new(Stage::Tasks, "unreadable").into())];
        let mut out = serde_json::Serializer::new(Vec::new());
        assert!(serialize(2, broken.into_iter(), &mut out).expect_err("broken").to_string().contains("unreadable"));
    }
}
