//! The clients' arenas as this engine sees them: mapped once, written through destinations, never read.
//!
//! What does not live here: who may use which part; the broker has reserved it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::slice;

use reeld_protocol::arena::Arena;

use super::failure::Failure;
use super::wanted::Shown;
use crate::link::{ArenaKey, Destination};
use reeld_protocol::metadata::Rational;

/// Pages are mapped so many at once when the first of them is about to be written. One by one, at each first touch, their
/// faults were 15 % of a profile of a hundred pictures of 1280x720.
const BLOCK_BYTES: u64 = 256 << 10;

/// All arenas that the broker has named.
#[derive(Default)]
pub struct Arenas {
    arenas: HashMap<ArenaKey, Mapped>,
}

struct Mapped {
    arena: Arena,
    /// Of each block, whether its pages are mapped.
    has_pages: Vec<bool>,
}

impl Mapped {
    fn new(arena: Arena) -> Self {
        let block_count = arena.bytes().div_ceil(BLOCK_BYTES) as usize;
        Mapped { arena, has_pages: vec![false; block_count] }
    }

    /// Where a stretch begins whose pages are mapped now, if all of it lies inside.
    fn stretch(&mut self, offset: u64, bytes: u64) -> Result<NonNull<u8>, Failure> {
        let address = self.arena.slice(offset, bytes)?;
        let blocks = (offset / BLOCK_BYTES) as usize..(offset + bytes).div_ceil(BLOCK_BYTES) as usize;
        for block in blocks {
            if !std::mem::replace(&mut self.has_pages[block], true) {
                self.arena.populate_part(block as u64 * BLOCK_BYTES, BLOCK_BYTES);
            }
        }
        Ok(address)
    }
}

impl Arenas {
    /// Maps one more arena.
    pub fn add(&mut self, key: ArenaKey, fd: OwnedFd, bytes: u64) -> Result<(), Failure> {
        self.arenas.insert(key, Mapped::new(Arena::map(fd, bytes)?));
        Ok(())
    }

    /// Unmaps an arena.
    pub fn remove(&mut self, key: ArenaKey) {
        self.arenas.remove(&key);
    }

    /// Where a frame's pixels go.
    pub fn pixels(&mut self, destination: &Destination, bytes: u64) -> Result<&mut [u8], Failure> {
        let address = self.arena(destination.arena)?.stretch(destination.pixels_offset, bytes)?;
        // SAFETY: the range lies in a mapping that lives as long as self, and the broker lets no other engine
        // and no reader near the slot before we have answered. A client that writes there all the same spoils
        // its own pixels: nothing is ever read through this slice.
        Ok(unsafe { slice::from_raw_parts_mut(address.as_ptr(), bytes as usize) })
    }

    /// Writes when a frame is shown.
    pub fn write_times(
        &mut self,
        destination: &Destination,
        shown: Shown,
        time_base: Rational,
    ) -> Result<(), Failure> {
        self.write_seconds(destination.arena, destination.pts_offset, time_base.seconds(shown.pts))?;
        self.write_seconds(destination.arena, destination.duration_offset, time_base.seconds(shown.duration))
    }

    fn write_seconds(&mut self, key: ArenaKey, offset: u64, seconds: f64) -> Result<(), Failure> {
        let bytes = seconds.to_le_bytes();
        let address = self.arena(key)?.stretch(offset, bytes.len() as u64)?;
        // SAFETY: as for `pixels`; byte by byte, so that no alignment is needed.
        unsafe { address.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn arena(&mut self, key: ArenaKey) -> Result<&mut Mapped, Failure> {
        self.arenas.get_mut(&key).ok_or(Failure::UnknownArena(key))
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::arena::create_arena;
    use reeld_protocol::message::Dtype;

    use super::*;
    use crate::link::LookIndex;

    const KEY: ArenaKey = ArenaKey(3);

    fn destination(pixels_offset: u64) -> Destination {
        Destination {
            arena: KEY,
            pixels_offset,
            pts_offset: 9,
            duration_offset: 17,
            height: 1,
            width: 2,
            dtype: Dtype::Uint8,
            look: LookIndex(0),
        }
    }

    fn arenas() -> (Arenas, Arena) {
        let fd = create_arena(4096).unwrap();
        let client = Arena::map(&fd, 4096).unwrap();
        let mut arenas = Arenas::default();
        arenas.add(KEY, fd, 4096).unwrap();
        (arenas, client)
    }

    #[test]
    fn client_sees_times_as_seconds() {
        let (mut arenas, client) = arenas();
        let time_base = Rational { numerator: 1, denominator: 4 };
        arenas
            .write_times(&destination(0), Shown { pts: 6, duration: 1, earlier_end: 6 }, time_base)
            .unwrap();
        // SAFETY: both offsets lie in the mapping, and nobody writes any more.
        let read = |offset| unsafe { client.slice(offset, 8).unwrap().cast::<f64>().read_unaligned() };
        assert_eq!((read(9), read(17)), (1.5, 0.25));
    }

    #[test]
    fn destination_outside_its_arena_is_an_error() {
        let (mut arenas, _client) = arenas();
        assert!(arenas.pixels(&destination(4090), 6).is_ok());
        assert!(matches!(arenas.pixels(&destination(4091), 6), Err(Failure::Arena(_))));
    }

    #[test]
    fn dropped_arena_is_an_error() {
        let (mut arenas, _client) = arenas();
        arenas.remove(KEY);
        assert!(matches!(arenas.pixels(&destination(0), 6), Err(Failure::UnknownArena(KEY))));
    }
}
