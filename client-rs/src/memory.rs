//! [`Memory`]: where a result's bytes lie, in a leased slot or in a private copy of it.
//!
//! What the bytes mean is `frames.rs`'s matter.

use std::alloc::{self, Layout};
use std::ptr::NonNull;

use crate::lease::Lease;

/// The bytes of one slot.
#[derive(Debug)]
pub(crate) enum Memory {
    Leased(Lease),
    Private(PrivateMemory),
}

impl Memory {
    /// A copy that needs no lease.
    pub(crate) fn copy_of(bytes: &[u8]) -> Memory {
        Memory::Private(PrivateMemory::copy_of(bytes))
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        match self {
            Memory::Leased(lease) => lease.address(),
            Memory::Private(private) => private.address,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Memory::Leased(lease) => lease.bytes(),
            Memory::Private(private) => private.layout.size(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is alive and readable as long as `self`. The daemon does not write to a slot
        // while it is leased; whoever writes through a raw address answers for it.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` keeps others of this process away.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), self.len()) }
    }
}

/// Memory of this process, aligned for every kind of value.
#[derive(Debug)]
pub(crate) struct PrivateMemory {
    address: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its bytes as a `Vec` would.
unsafe impl Send for PrivateMemory {}
// SAFETY: as above.
unsafe impl Sync for PrivateMemory {}

impl PrivateMemory {
    /// A cache line, and what libraries for tensors align to.
    const ALIGNMENT: usize = 64;

    fn copy_of(bytes: &[u8]) -> PrivateMemory {
        // A slice is never longer than isize::MAX, but its rounded length might be.
        let layout = Layout::from_size_align(bytes.len(), Self::ALIGNMENT)
            .unwrap_or_else(|_| alloc::handle_alloc_error(Layout::new::<u8>()));
        if bytes.is_empty() {
            return PrivateMemory { address: NonNull::<Aligned>::dangling().cast(), layout };
        }
        // SAFETY: the layout's size is not 0.
        let address = NonNull::new(unsafe { alloc::alloc(layout) })
            .unwrap_or_else(|| alloc::handle_alloc_error(layout));
        // SAFETY: `address` is fresh memory of that many bytes.
        unsafe { address.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        PrivateMemory { address, layout }
    }
}

/// Only lends its alignment to the address of empty memory.
#[repr(align(64))]
struct Aligned;

impl Drop for PrivateMemory {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: allocated in `copy_of` with this layout.
            unsafe { alloc::dealloc(self.address.as_ptr(), self.layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_copy_is_aligned_and_equal() {
        for length in [0, 1, 63, 4097] {
            let bytes: Vec<u8> = (0..length).map(|value| value as u8).collect();
            let memory = Memory::copy_of(&bytes);
            assert_eq!(memory.bytes(), bytes);
            assert_eq!(memory.address().as_ptr() as usize % 64, 0);
        }
    }
}
