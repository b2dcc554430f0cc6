//! What becomes of this library when its process forks.
//!
//! A child neither uses the connections of its parent nor gives back what its parent holds, and it never
//! touches a lock of its parent, because a thread that does not exist in the child may have held it at the
//! fork. So everything with a lock lives in a [`PerProcess`] or an [`Own`], and the handlers here, which the
//! C library calls around a fork, only do what needs no lock of the child's:
//!
//! - `heirs.rs`: which forked children may still read leases of this process.
//! - `fd_table.rs`: descriptors that a child closes, because it must not keep the parent's sockets open.
//! - `per_process.rs`, `own.rs`: values that belong to one process.
//!
//! What does not live here: connecting anew. That is `client.rs`, at the child's first call.

pub(crate) mod fd_table;
pub(crate) mod heirs;
mod own;
mod per_process;

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use own::Own;
pub(crate) use per_process::PerProcess;

/// How many forks lie between the process that loaded this library and this one.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// Tells this process from its ancestors. The first call installs the handlers.
pub(crate) fn epoch() -> u64 {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        // SAFETY: the three handlers are functions of this library, which is never unloaded. It can fail
        // only for want of memory; forks are then as without this library, which harms only forks.
        unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
    });
    EPOCH.load(Ordering::Acquire)
}

extern "C" fn prepare() {
    heirs::fork_begins();
}

extern "C" fn in_parent() {
    heirs::fork_done_in_parent();
}

extern "C" fn in_child() {
    EPOCH.fetch_add(1, Ordering::AcqRel);
    heirs::fork_done_in_child();
    fd_table::close_all();
}
