//! Whether this process may still have some memory.
//!
//! How much it may have is set by `engine::cage`.

use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// True if so many bytes could be had at this moment. None of them is touched.
pub fn has_room(bytes: usize) -> bool {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping overlaps nothing.
    let Ok(mapping) = (unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) })
    else {
        return false;
    };
    // SAFETY: mapped above with this length, and nobody else knows of it.
    let unmapped = unsafe { munmap(mapping, bytes) };
    unmapped.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_little_and_none_for_more_than_any_memory() {
        assert!(has_room(1 << 16));
        assert!(!has_room(1 << 62));
    }
}
