//! [`Alarm`]: wakes the future of a request when its deadline has passed, whatever the daemon does.
//!
//! One thread of this process, started by the first future that has a deadline. Blocking callers look at the
//! clock themselves.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use crate::errand::Errand;
use crate::fork::PerProcess;
use crate::threads;

/// An alarm that is set, until it is dropped.
#[derive(Debug)]
pub(crate) struct Alarm {
    time: Instant,
    number: u64,
}

#[derive(Default)]
struct Clock {
    alarms: Mutex<Alarms>,
    /// The earliest alarm may be another one.
    change: Condvar,
}

#[derive(Default)]
struct Alarms {
    /// By time, and by number where two have the same. Bounded by the requests in flight.
    by_time: BTreeMap<(Instant, u64), Weak<Errand>>,
    next_number: u64,
    has_thread: bool,
}

static CLOCK: PerProcess<Clock> = PerProcess::new();

impl Alarm {
    /// Where no thread can be started the deadline is the daemon's alone to keep.
    pub(crate) fn set(time: Instant, errand: Weak<Errand>) -> Alarm {
        let clock = CLOCK.get();
        let mut alarms = clock.lock();
        let number = alarms.next_number;
        alarms.next_number += 1;
        alarms.by_time.insert((time, number), errand);
        if !alarms.has_thread {
            alarms.has_thread = threads::spawn("reeld-alarm", || CLOCK.get().run()).is_ok();
        }
        clock.change.notify_one();
        Alarm { time, number }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        CLOCK.get().lock().by_time.remove(&(self.time, self.number));
    }
}

impl Clock {
    fn lock(&self) -> MutexGuard<'_, Alarms> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut alarms = self.lock();
        loop {
            let first = alarms.by_time.first_key_value().map(|((time, _), _)| *time);
            let left = first.map(|time| time.saturating_duration_since(Instant::now()));
            alarms = match left {
                None => self.change.wait(alarms).unwrap_or_else(PoisonError::into_inner),
                Some(left) if !left.is_zero() => {
                    self.change.wait_timeout(alarms, left).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let due = alarms.by_time.pop_first().and_then(|(_, errand)| errand.upgrade());
                    // Waking runs code of the caller's, and dropping an errand comes back to this lock.
                    drop(alarms);
                    if let Some(errand) = due {
                        errand.wake();
                    }
                    self.lock()
                }
            };
        }
    }
}
