//! Panics of a device's libraries, told as its failure: what they cannot do, the CPU can.
//!
//! candle and the crates below it give up with a panic here and there (a library that lacks a symbol, a lock that
//! another panic left). Code that is called in the midst of a device's work and is none of it has panics of its
//! own, which go through as they are.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::{Fault, Result, Stage};

/// A panic that is none of the device's.
struct Foreign(Box<dyn Any + Send>);

/// Runs work of a device.
///
/// # Errors
/// Those of the work; a panic as a failure of the device.
pub(super) fn on_device<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the work leaves half done is of no more use after any failure of its device.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(panic) => match panic.downcast::<Foreign>() {
            Ok(foreign) => resume_unwind(foreign.0),
            Err(panic) => {
                let cause = format!("its library gave up: {}", message(panic.as_ref()));
                Err(Fault::new(Stage::Device, cause).fix("take --device cpu").into())
            }
        },
    }
}

/// Runs, in the midst of a device's work, what is none of it.
pub(super) fn of_caller<T>(work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| resume_unwind(Box::new(Foreign(panic))))
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_device_is_its_failure_and_one_of_the_caller_goes_through() {
        let failed = on_device::<()>(|| panic!("no symbol {}", 7)).expect_err("it panics");
        assert!(failed.is_of_device() && failed.to_string().contains("no symbol 7"), "{failed}");
        assert_eq!(on_device(|| Ok(of_caller(|| 3))).expect("runs"), 3);
        let through = catch_unwind(|| on_device::<()>(|| of_caller(|| panic!("a mistake of ours"))));
        let panic = through.expect_err("it goes through");
        assert_eq!(message(panic.as_ref()), "a mistake of ours");
    }
}
