//! Which forked children may still read leases of this process.
//!
//! Each fork gets a pipe whose write end only the child keeps, and its children in turn, until they exit or
//! become another program. Its end of file at the parent says that nobody is left who inherited what was
//! leased at the fork. What is done with such leases is decided in `outbound.rs`.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use super::PerProcess;
use super::fd_table::Place;

/// Counts one lease of this process from its arrival until the daemon was told of its end.
#[derive(Debug)]
pub(crate) struct Heritage {
    epoch: u64,
    /// How many forks this process had finished when the lease arrived.
    birth: u64,
    /// The same when it was dropped.
    death: u64,
}

impl Heritage {
    pub(crate) fn new() -> Heritage {
        let epoch = super::epoch();
        let state = STATE.get();
        state.lease_count.fetch_add(1, Ordering::AcqRel);
        Heritage { epoch, birth: state.fork_count.load(Ordering::Acquire), death: UNDER_WAY }
    }

    /// The lease was dropped: forks from here on do not concern it. Never waits.
    pub(crate) fn drop_lease(&mut self) {
        let state = STATE.get();
        let is_fork_under_way = state.family_count.load(Ordering::Acquire) > 0
            && state.families.try_lock().map_or(true, |families| families.iter().any(Family::is_under_way));
        if !is_fork_under_way {
            self.death = state.fork_count.load(Ordering::Acquire);
        }
    }

    /// True if no child that lives inherited the lease, as far as the last [`look`] has seen.
    pub(crate) fn is_ours_alone(&self) -> bool {
        let state = STATE.get();
        let has_inherited = |family: &Family| self.birth < family.number && family.number <= self.death;
        state.family_count.load(Ordering::Acquire) == 0 || !lock(state).iter().any(has_inherited)
    }
}

impl Drop for Heritage {
    fn drop(&mut self) {
        if self.epoch != super::epoch() {
            return;
        }
        let state = STATE.get();
        let before = state.lease_count.fetch_sub(1, Ordering::AcqRel);
        if before == 1 && state.family_count.load(Ordering::Acquire) > 0 {
            // No lease is left that anybody could have inherited.
            let mut families = lock(state);
            if state.lease_count.load(Ordering::Acquire) == 0 {
                families.retain(Family::is_under_way);
                state.family_count.store(families.len(), Ordering::Release);
            }
        }
    }
}

/// While its fork is under way, a family inherits every lease there is.
const UNDER_WAY: u64 = u64::MAX;

#[derive(Default)]
struct State {
    fork_count: AtomicU64,
    /// Leases of this process that are not yet given back to the daemon, over all connections.
    lease_count: AtomicUsize,
    family_count: AtomicUsize,
    families: Mutex<Vec<Family>>,
}

/// A forked child and its descendants.
struct Family {
    /// It inherited the leases that were born before this fork.
    number: u64,
    /// None where no pipe could be made: then it counts as alive for ever.
    pipe: Option<Pipe>,
}

struct Pipe {
    // Dropped in this order; see `Place`.
    _place: Place,
    read_end: OwnedFd,
}

static STATE: PerProcess<State> = PerProcess::new();

thread_local! {
    /// Raw numbers from before a fork until after it: the read end, which tells families under way apart,
    /// and the write end. Raw, because a destructor has no place in a fork handler.
    static FORK_UNDER_WAY: Cell<Option<(RawFd, RawFd)>> = const { Cell::new(None) };
}

/// Looks which families have died out.
pub(crate) fn look() {
    let state = STATE.get();
    if state.family_count.load(Ordering::Acquire) > 0 {
        let mut families = lock(state);
        families.retain(|family| family.is_under_way() || family.is_alive());
        state.family_count.store(families.len(), Ordering::Release);
    }
}

impl Family {
    fn is_under_way(&self) -> bool {
        self.number == UNDER_WAY
    }

    fn is_alive(&self) -> bool {
        let Some(pipe) = &self.pipe else { return true };
        let mut fds = [PollFd::new(&pipe.read_end, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Nobody writes: readable means end of file. Where poll itself fails, nothing is known.
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
    }
}

fn lock(state: &State) -> MutexGuard<'_, Vec<Family>> {
    state.families.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn fork_begins() {
    // Otherwise a process that keeps its leases would keep a pipe for each child that it ever had.
    look();
    let state = STATE.get();
    let ends = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).ok();
    let (pipe, numbers) = match ends {
        Some((read_end, write_end)) => match Place::take(read_end.as_fd()) {
            Some(place) => {
                let numbers = (read_end.as_raw_fd(), write_end.into_raw_fd());
                (Some(Pipe { _place: place, read_end }), Some(numbers))
            }
            None => (None, None),
        },
        None => (None, None),
    };
    FORK_UNDER_WAY.set(numbers);
    let mut families = lock(state);
    families.push(Family { number: UNDER_WAY, pipe });
    state.family_count.store(families.len(), Ordering::Release);
}

pub(super) fn fork_done_in_parent() {
    let state = STATE.get();
    let numbers = FORK_UNDER_WAY.take();
    if let Some((_, write_end)) = numbers {
        // SAFETY: `fork_begins` took the number out of its `OwnedFd`; this thread alone has it.
        drop(unsafe { OwnedFd::from_raw_fd(write_end) });
    }
    let mut families = lock(state);
    // Leases that arrived while the fork was under way count as inherited.
    let number = state.fork_count.fetch_add(1, Ordering::AcqRel) + 1;
    let read_end = numbers.map(|(read_end, _)| read_end);
    let is_ours = |family: &&mut Family| {
        let pipe = family.pipe.as_ref().map(|pipe| pipe.read_end.as_raw_fd());
        family.is_under_way() && pipe == read_end
    };
    if let Some(family) = families.iter_mut().find(is_ours) {
        family.number = number;
    }
    if state.lease_count.load(Ordering::Acquire) == 0 {
        families.retain(|family| family.number != number);
    }
    state.family_count.store(families.len(), Ordering::Release);
}

/// The write end stays open in the child, on purpose without an owner, until it exits or executes. The
/// read end is in the table of descriptors that are closed.
pub(super) fn fork_done_in_child() {
    FORK_UNDER_WAY.set(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_that_have_died_out_are_forgotten_at_the_next_fork() {
        let _lease = Heritage::new();
        for _ in 0..3 {
            fork_begins();
            // The parent closes its write end, and there is no child: the family has died out.
            fork_done_in_parent();
        }
        assert_eq!(STATE.get().family_count.load(Ordering::Acquire), 1);
    }
}
