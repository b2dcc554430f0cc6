//! [`Lease`]: the right to one slot of an arena, until it is dropped.
//!
//! What lies in the slot is `frames.rs`'s matter.

use std::ptr::NonNull;
use std::sync::Arc;

use reeld_protocol::{Arena, LeaseId};

use crate::fork::Own;
use crate::fork::heirs::Heritage;
use crate::link::Link;

/// A slot of shared memory that this process may read and write.
///
/// The mapping lives as long as the lease does, whatever becomes of the connection. A forked child may go
/// on reading, but gives nothing back.
pub(crate) struct Lease {
    arena: Arc<Arena>,
    slot: NonNull<u8>,
    slot_bytes: usize,
    /// Its drop gives the lease back.
    claim: Own<Claim>,
}

/// What only the process that got the lease deals with.
struct Claim {
    link: Arc<Link>,
    /// Taken out when the lease is given back.
    returned: Option<ReturnedLease>,
}

/// A lease on its way back to the daemon.
#[derive(Debug)]
pub(crate) struct ReturnedLease {
    pub(crate) id: LeaseId,
    pub(crate) bytes: u64,
    pub(crate) heritage: Heritage,
}

// SAFETY: the slot's address is an address in a mapping that belongs to no thread.
unsafe impl Send for Lease {}
// SAFETY: as above; reading through a shared lease is what it is for, and writing needs care at its use.
unsafe impl Sync for Lease {}

impl Lease {
    /// `slot` must be the start of `slot_bytes` bytes of `arena`.
    pub(crate) fn new(
        id: LeaseId,
        arena: Arc<Arena>,
        slot: NonNull<u8>,
        slot_bytes: usize,
        link: Arc<Link>,
    ) -> Lease {
        let returned = ReturnedLease { id, bytes: slot_bytes as u64, heritage: Heritage::new() };
        let claim = Own::new(Claim { link, returned: Some(returned) });
        Lease { arena, slot, slot_bytes, claim }
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.slot
    }

    pub(crate) fn bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Its name, and the connection on which that means something; none in a process that only inherited it.
    pub(crate) fn claim(&self) -> Option<(LeaseId, &Arc<Link>)> {
        let claim = self.claim.get()?;
        claim.returned.as_ref().map(|returned| (returned.id, &claim.link))
    }

    /// The mapping that the slot lies in.
    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(returned) = self.returned.take() {
            self.link.give_back(returned);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("slot_bytes", &self.slot_bytes).finish_non_exhaustive()
    }
}
