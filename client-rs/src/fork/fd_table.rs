//! Descriptors that a forked child closes at once.
//!
//! A child that kept its parent's socket would hide the parent's death from the daemon. Files that a child
//! may go on using, such as those of videos, are not in the table.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Places for sockets and for the pipes that watch forked children. A fixed table, so that a child can
/// walk through it without a lock; usual processes have one socket and a few children.
const PLACES: usize = 1024;

const FREE: RawFd = -1;

static TABLE: [AtomicI32; PLACES] = [const { AtomicI32::new(FREE) }; PLACES];

/// A place in the table. Give it back before the descriptor is closed: a child that is forked in between
/// then keeps a copy, which is harmless, and never closes a number that means something else by now.
#[derive(Debug)]
pub(crate) struct Place(usize);

impl Place {
    /// Enters a descriptor; none where the table is full.
    pub(crate) fn take(fd: BorrowedFd<'_>) -> Option<Place> {
        let fd = fd.as_raw_fd();
        let is_free =
            |place: &AtomicI32| place.compare_exchange(FREE, fd, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        TABLE.iter().position(is_free).map(Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TABLE[self.0].store(FREE, Ordering::Release);
    }
}

/// In a new child: closes all of them.
pub(super) fn close_all() {
    for place in &TABLE {
        let fd = place.swap(FREE, Ordering::AcqRel);
        if fd != FREE {
            // SAFETY: the owner of this descriptor lives in the parent; its copy here is dropped by nobody,
            // since values of the parent are not dropped in a child.
            unsafe { libc::close(fd) };
        }
    }
}
