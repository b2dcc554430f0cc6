//! Waiting for answers: who reads for all, and who is woken by whom.
//!
//! What is read is the matter of `read.rs`.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{Link, SLICE, lock};
use crate::calls::{CallKey, Calls, Outcome};
use crate::error::Error;
use crate::reader;

impl Link {
    /// Waits for a call's outcome, at most that long; none where it took longer or a signal came.
    pub(crate) fn wait(self: &Arc<Self>, key: CallKey, patience: Option<Duration>) -> Option<Outcome> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut was_interrupted = false;
        let mut has_read = false;
        let mut calls = lock(&self.calls);
        loop {
            let outcome = calls.take(key);
            let left = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(Instant::now()));
            let is_over = patience.is_some() && (was_interrupted || (has_read && left.is_zero()));
            if outcome.is_some() || is_over {
                if !calls.is_led {
                    self.call_successor(&calls);
                }
                return outcome;
            }
            has_read = true;
            if calls.is_led {
                let Some(arrival) = calls.follow(key) else { continue };
                let (guard, _) =
                    arrival.wait_timeout(calls, left.min(SLICE)).unwrap_or_else(PoisonError::into_inner);
                calls = guard;
                calls.unfollow(key);
            } else {
                drop(calls);
                was_interrupted = self.take_turn(left.min(SLICE)) == Turn::Interrupted;
                calls = lock(&self.calls);
            }
        }
    }

    /// True if a call's outcome is there, after a look at what has come.
    pub(crate) fn is_done(self: &Arc<Self>, key: CallKey) -> bool {
        if lock(&self.calls).is_done(key) {
            return true;
        }
        self.help(Duration::ZERO);
        lock(&self.calls).is_done(key)
    }

    /// True if a call's outcome is there already.
    pub(crate) fn has_ended(&self, key: CallKey) -> bool {
        lock(&self.calls).is_done(key)
    }

    /// Why a call ended without an answer, if it did.
    pub(crate) fn loss(&self, key: CallKey) -> Option<String> {
        lock(&self.calls).loss(key)
    }

    /// Has a future woken at the end of its call, by a thread that reads while futures wait.
    pub(crate) fn poll(self: &Arc<Self>, key: CallKey, context: &Context<'_>) -> Poll<Outcome> {
        let mut calls = lock(&self.calls);
        if let Some(outcome) = calls.take(key) {
            return Poll::Ready(outcome);
        }
        calls.set_waker(key, context.waker());
        if !calls.has_reader {
            calls.has_reader = true;
            drop(calls);
            if let Err(error) = reader::start(Arc::clone(self)) {
                lock(&self.calls).has_reader = false;
                let message = format!("no thread could be started to wait for futures: {error}");
                return Poll::Ready(Err(Error::LimitReached(message)));
            }
        } else if !calls.is_led {
            self.reader_turn.notify_one();
        }
        Poll::Pending
    }

    /// For the reader thread: waits until a future waits and nobody reads. False once the link is closed.
    pub(crate) fn await_reader_turn(&self) -> bool {
        let mut calls = lock(&self.calls);
        while calls.closed().is_none() && (calls.is_led || !calls.has_futures()) {
            if !calls.is_led {
                self.call_successor(&calls);
            }
            calls = self.reader_turn.wait(calls).unwrap_or_else(PoisonError::into_inner);
        }
        calls.closed().is_none()
    }

    /// A turn of a thread that waits for nothing itself.
    pub(super) fn help(self: &Arc<Self>, patience: Duration) -> Turn {
        let turn = self.take_turn(patience);
        let calls = lock(&self.calls);
        if !calls.is_led {
            self.call_successor(&calls);
        }
        turn
    }

    /// Nobody leads any more: wakes one thread that may.
    fn call_successor(&self, calls: &Calls) {
        if !calls.wake_successor() && calls.has_futures() {
            self.reader_turn.notify_one();
        }
    }
}

/// What came of one turn at the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Something was read, or the time is over.
    Done,
    /// Another thread leads, or the connection is over.
    NotOurs,
    /// A signal came.
    Interrupted,
}

/// Clears the mark of leadership even if a waker panics.
struct Leadership<'a>(&'a Link);

impl Drop for Leadership<'_> {
    fn drop(&mut self) {
        let mut calls = lock(&self.0.calls);
        calls.is_led = false;
        if std::thread::panicking() {
            self.0.call_successor(&calls);
        }
    }
}

impl Link {
    /// Leads once, unless another thread does: waits for bytes, at most that long, and hands out what they
    /// say.
    pub(crate) fn take_turn(self: &Arc<Self>, patience: Duration) -> Turn {
        {
            let mut calls = lock(&self.calls);
            if calls.is_led || calls.closed().is_some() {
                return Turn::NotOurs;
            }
            calls.is_led = true;
        }
        let leadership = Leadership(self);
        let result = self.read(&mut lock(&self.inbound), patience);
        drop(leadership);
        match result {
            Ok(turn) => turn,
            Err(closed) => {
                self.close(&closed);
                Turn::NotOurs
            }
        }
    }
}
