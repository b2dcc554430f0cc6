//! [`Bulk`]: how long lists of indices and times travel: within the message, or in sealed memory beside it.
//!
//! What the lists mean is the daemon's matter.

use std::sync::Arc;

use reeld_protocol::SealedMemfd;
use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::message::{MemoryRange, Wanted};

use crate::error::Error;

/// Values that travel within a message. Each takes at most 10 bytes there, of 64 KiB.
const INLINE_MAX: usize = 4096;

/// Every frame takes at least these bytes of a slot: one pixel and two times.
const FRAME_BYTES_MIN: u64 = 3 + 2 * 8;

/// The wanted frames of all parts of a request.
pub(crate) struct Bulk<'a> {
    wanted: Vec<&'a Wanted>,
    value_count: usize,
}

impl<'a> Bulk<'a> {
    pub(crate) fn new(wanted: impl Iterator<Item = &'a Wanted>) -> Bulk<'a> {
        let wanted: Vec<_> = wanted.collect();
        let value_count = wanted.iter().map(|wanted| value_count(wanted)).sum();
        Bulk { wanted, value_count }
    }

    /// Refuses lists whose result could not fit into the quota whatever its size: no memory is spent on
    /// sending them.
    pub(crate) fn check_quota(&self, quota_bytes: u64) -> Result<(), Error> {
        let needed_min = (self.value_count as u64).saturating_mul(FRAME_BYTES_MIN);
        if needed_min <= quota_bytes {
            return Ok(());
        }
        let message = format!(
            "{} frames do not fit into the quota of {quota_bytes} bytes; ask for fewer at a time",
            self.value_count
        );
        Err(Error::NoSlots(message))
    }

    /// What goes into the message for each part, and the memory that goes with it.
    pub(crate) fn place(&self) -> Result<(Vec<Wanted>, Vec<OutgoingFd>), Error> {
        if self.value_count <= INLINE_MAX {
            return Ok((self.wanted.iter().map(|wanted| (*wanted).clone()).collect(), Vec::new()));
        }
        let mut content = Vec::with_capacity(self.value_count * 8);
        let wanted = self.wanted.iter().map(|wanted| move_to_memory(wanted, &mut content)).collect();
        let memfd = SealedMemfd::new("reeld-request", &content)
            .map_err(|error| Error::io("memory for a long request", error))?;
        Ok((wanted, vec![Arc::new(memfd.into_fd())]))
    }
}

fn value_count(wanted: &Wanted) -> usize {
    match wanted {
        Wanted::Indices(indices) => indices.len(),
        Wanted::PlayedAtEach(times) => times.len(),
        Wanted::IndexRange { .. }
        | Wanted::PlayedAt(_)
        | Wanted::PlayedInRange { .. }
        | Wanted::IndicesInMemory(_)
        | Wanted::PlayedAtEachInMemory(_) => 0,
    }
}

fn move_to_memory(wanted: &Wanted, content: &mut Vec<u8>) -> Wanted {
    let offset_bytes = content.len() as u64;
    let range = |count: usize| MemoryRange { offset_bytes, count: count as u64 };
    match wanted {
        Wanted::Indices(indices) => {
            content.extend(indices.iter().flat_map(|index| index.to_le_bytes()));
            Wanted::IndicesInMemory(range(indices.len()))
        }
        Wanted::PlayedAtEach(times) => {
            content.extend(times.iter().flat_map(|time| time.to_le_bytes()));
            Wanted::PlayedAtEachInMemory(range(times.len()))
        }
        Wanted::IndexRange { .. }
        | Wanted::PlayedAt(_)
        | Wanted::PlayedInRange { .. }
        | Wanted::IndicesInMemory(_)
        | Wanted::PlayedAtEachInMemory(_) => wanted.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lists_stay_in_the_message() {
        let wanted = [Wanted::Indices(vec![1, -1]), Wanted::PlayedAt(0.5)];
        let (placed, fds) = Bulk::new(wanted.iter()).place().unwrap();
        assert_eq!((placed, fds.len()), (wanted.to_vec(), 0));
    }

    #[test]
    fn long_lists_lie_one_behind_the_other_in_memory() {
        let wanted = [Wanted::Indices(vec![7; INLINE_MAX]), Wanted::PlayedAtEach(vec![0.5, 1.5])];
        let (placed, fds) = Bulk::new(wanted.iter()).place().unwrap();
        let Wanted::PlayedAtEachInMemory(range) = placed[1] else { panic!("{placed:?}") };
        let fd = Arc::into_inner(fds.into_iter().next().unwrap()).unwrap();
        let memory = SealedMemfd::from_peer(fd).unwrap();
        let words = memory.read_words(range.offset_bytes, range.count).unwrap();
        assert_eq!(words, [0.5f64.to_le_bytes(), 1.5f64.to_le_bytes()]);
        assert_eq!(memory.read_words(0, 1).unwrap(), [7i64.to_le_bytes()]);
    }

    #[test]
    fn list_beyond_the_quota_is_refused_by_its_length() {
        let wanted = [Wanted::Indices(vec![0; 100])];
        let bulk = Bulk::new(wanted.iter());
        assert!(bulk.check_quota(1900).is_ok());
        assert!(matches!(bulk.check_quota(1899), Err(Error::NoSlots(_))));
    }
}
