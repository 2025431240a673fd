//! What comes up for each product, made before it is asked for.
//!
//! Things are asked for in one order, over and over: the matrices of a decoder that do not fit its device.
//! A thread of its own makes those that come next, at most so many bytes ahead and at least one, while the
//! present one is multiplied. Where somebody leaves the order (a run that begins at a later layer), what
//! was made is dropped and the thread goes on behind what was asked for.
//!
//! What overlaps with products is decoding, staging and, where a device copies beside its work, the copy. On CUDA
//! candle has one stream, in which copies and products take turns.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Fault, Result, Stage};

/// A thread that makes things in their order.
#[derive(Debug)]
pub(super) struct Ahead<T> {
    shared: Arc<Shared<T>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    /// Bytes of each thing.
    sizes: Vec<u64>,
    most_bytes: u64,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// What the thread makes next; none before anything was asked for.
    next: Option<usize>,
    /// What it is making, and in which turn.
    making: Option<(usize, u64)>,
    /// What was made and not asked for yet, in order.
    made: VecDeque<(usize, Result<T>)>,
    /// Bytes of all that is made or being made.
    held: u64,
    /// How often the order was left: what was being made then is dropped.
    turn: u64,
    is_over: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State<T>>) -> MutexGuard<'s, State<T>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn after(&self, index: usize) -> usize {
        (index + 1) % self.sizes.len()
    }

    /// What the thread does until it is told to stop.
    fn work(&self, make: impl Fn(usize) -> Result<T>) {
        let mut state = self.lock();
        while !state.is_over {
            let has_room = |&index: &usize| state.held == 0 || state.held + self.sizes[index] <= self.most_bytes;
            let Some(index) = state.next.filter(has_room) else {
                state = self.wait(state);
                continue;
            };
            let turn = state.turn;
            state.making = Some((index, turn));
            state.next = Some(self.after(index));
            state.held += self.sizes[index];
            drop(state);
            // Whoever asks for it waits for an answer, whatever a driver does.
            let made = catch_unwind(AssertUnwindSafe(|| make(index))).unwrap_or_else(|_| {
                let cause = "the driver gave up while weights were brought up";
                Err(Fault::new(Stage::Device, cause).fix("take --device cpu").into())
            });
            state = self.lock();
            state.making = None;
            if state.turn == turn {
                state.made.push_back((index, made));
            } else {
                state.held -= self.sizes[index];
                drop(made);
            }
            self.changed.notify_all();
        }
    }
}

impl<T: Send + 'static> Ahead<T> {
    /// Starts the thread; `sizes` has the bytes of each thing, `make` makes one. None if the system has no
    /// thread to give, or there is nothing to be ahead of.
    pub(super) fn new(
        sizes: Vec<u64>,
        most_bytes: u64,
        make: impl Fn(usize) -> Result<T> + Send + 'static,
    ) -> Option<Self> {
        if sizes.len() < 2 {
            return None;
        }
        let state = State { next: None, making: None, made: VecDeque::new(), held: 0, turn: 0, is_over: false };
        let shared = Arc::new(Shared { sizes, most_bytes, state: Mutex::new(state), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("weights ahead".to_owned()).spawn(move || own.work(make));
        Some(Self { shared, thread: Some(thread.ok()?) })
    }
}

impl<T> Ahead<T> {
    /// The thing with this index, if it was made or is being made; else the caller has to make it, and the
    /// thread goes on with the one after.
    pub(super) fn take(&self, index: usize) -> Option<Result<T>> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        loop {
            let turn = state.turn;
            match state.made.front() {
                Some((first, _)) if *first == index => {
                    let made = state.made.pop_front();
                    state.held -= shared.sizes[index];
                    shared.changed.notify_all();
                    return made.map(|(_, made)| made);
                }
                None if state.making == Some((index, turn)) => state = shared.wait(state),
                _ => {
                    let dropped = std::mem::take(&mut state.made);
                    state.held = state.making.map_or(0, |(making, _)| shared.sizes[making]);
                    state.turn += 1;
                    state.next = Some(shared.after(index));
                    shared.changed.notify_all();
                    drop(state);
                    drop(dropped);
                    return None;
                }
            }
        }
    }

    /// Waits until the thread has nothing to do, and answers what it has made.
    #[cfg(test)]
    fn settled(&self) -> Vec<usize> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        loop {
            let is_full =
                state.next.is_none_or(|next| state.held > 0 && state.held + shared.sizes[next] > shared.most_bytes);
            if is_full && state.making.is_none() {
                return state.made.iter().map(|(index, _)| *index).collect();
            }
            state = shared.wait(state);
        }
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What it was making is dropped with it; its panics were answered.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(sizes: &[u64], most_bytes: u64) -> Ahead<usize> {
        Ahead::new(sizes.to_vec(), most_bytes, Ok).expect("a thread")
    }

    #[test]
    fn what_comes_next_is_made_before_it_is_asked_for_and_no_more_bytes_than_allowed() {
        let ahead = numbers(&[10; 4], 20);
        assert_eq!(ahead.settled(), [0; 0], "nothing before the first is asked for");
        assert!(ahead.take(0).is_none(), "the caller makes the first");
        assert_eq!(ahead.settled(), [1, 2]);
        assert_eq!(ahead.take(1).and_then(Result::ok), Some(1));
        assert_eq!(ahead.settled(), [2, 3]);
        // After the last comes the first.
        assert_eq!(ahead.take(2).and_then(Result::ok), Some(2));
        assert_eq!(ahead.settled(), [3, 0]);
    }

    #[test]
    fn whoever_leaves_the_order_is_followed() {
        let ahead = numbers(&[10; 6], 20);
        assert!(ahead.take(0).is_none());
        assert_eq!(ahead.settled(), [1, 2]);
        assert!(ahead.take(3).is_none(), "1 and 2 are dropped");
        assert_eq!(ahead.settled(), [4, 5]);
        assert!(ahead.take(4).is_some() && ahead.take(5).is_some());
    }

    #[test]
    fn what_is_larger_than_all_that_may_be_held_is_made_alone() {
        let ahead = numbers(&[100; 3], 20);
        assert!(ahead.take(0).is_none());
        assert_eq!(ahead.settled(), [1]);
        assert_eq!(ahead.take(1).and_then(Result::ok), Some(1));
        assert_eq!(ahead.settled(), [2]);
    }

    #[test]
    fn what_cannot_be_made_is_answered_to_whoever_asks_for_it() {
        let make = |index: usize| match index {
            1 => Err(Fault::new(Stage::Device, "full").into()),
            2 => panic!("a driver that gives up"),
            other => Ok(other),
        };
        let ahead = Ahead::new(vec![1; 4], 4, make).expect("a thread");
        assert!(ahead.take(0).is_none());
        assert_eq!(ahead.settled(), [1, 2, 3, 0]);
        assert!(ahead.take(1).is_some_and(|made| made.is_err_and(|err| err.is_of_device())));
        assert!(ahead.take(2).is_some_and(|made| made.is_err_and(|err| err.is_of_device())));
        assert_eq!(ahead.take(3).and_then(Result::ok), Some(3));
    }

    #[test]
    fn one_thing_alone_is_always_there_already() {
        assert!(Ahead::new(vec![1], 4, Ok::<usize, crate::error::Error>).is_none());
    }
}
