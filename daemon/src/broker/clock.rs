//! [`now`]: the clock of the broker. It is the system's; only the simulation stops it, and puts it forward itself.
//!
//! How long something took on this machine is measured by whoever wants to know.

use std::time::Instant;

/// What time it is.
#[cfg(not(any(test, fuzzing)))]
pub fn now() -> Instant {
    Instant::now()
}

#[cfg(any(test, fuzzing))]
thread_local! {
    static STOPPED_AT: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// What time it is on this thread.
#[cfg(any(test, fuzzing))]
pub fn now() -> Instant {
    STOPPED_AT.get().unwrap_or_else(Instant::now)
}

/// From now on it is that time on this thread; none: that of the system.
#[cfg(any(test, fuzzing))]
pub fn stop_at(time: Option<Instant>) {
    STOPPED_AT.set(time);
}
