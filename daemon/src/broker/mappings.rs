//! [`Mapping`]: the frames of a stream as one client has listed them. It is that client's alone: never in the catalog,
//! never on disk, and gone with the source that it came for.
//!
//! What is made of it is the matter of `plan`: a `Timeline::Mapped`.

use std::os::fd::OwnedFd;

use reeld_protocol::error::WireError;
use reeld_protocol::mapping::{self, MappedFrame};
use reeld_protocol::metadata::Rational;
use reeld_protocol::{ArenaError, SealedMemfd};

use super::client::Client;
use super::helpers::Line;
use super::job::User;
use super::plan::Timeline;
use super::{Broker, reply};
use crate::link::index::{Index, IndexEntry};

/// A mapping whose stream is not known yet.
#[derive(Debug)]
pub struct Mapping(Index);

impl Mapping {
    /// Reads a descriptor that a client sent. It may be of a file system that hangs, so helpers do this.
    pub fn read(fd: OwnedFd) -> Result<Mapping, WireError> {
        let refused = |error: &dyn std::fmt::Display| reply::invalid(format!("the mapping: {error}"));
        let memory = SealedMemfd::from_peer(fd).map_err(|error: ArenaError| refused(&error))?;
        let entries = mapping::read(&memory, entry).map_err(|error| refused(&error))?;
        // Sorted already, so that this only finds the keyframes.
        Ok(Mapping(Index::new(Rational { numerator: 1, denominator: 1 }, entries)))
    }

    /// How many frames it has.
    pub fn frame_count(&self) -> u64 {
        self.0.entries.len() as u64
    }

    /// The mapping as an index of its stream.
    pub fn into_index(self, time_base: Rational) -> Index {
        Index { time_base, ..self.0 }
    }
}

fn entry(frame: MappedFrame) -> IndexEntry {
    let MappedFrame { pts, duration, is_key } = frame;
    // Nobody said whether others refer to it; so they may.
    IndexEntry { pts, duration, position: -1, is_key, is_reference: true }
}

impl Broker {
    /// Counts a mapping that is kept from here on.
    pub(super) fn count_mapping(&mut self, user: User, mapping: &Mapping) -> Result<(), WireError> {
        let count = mapping.frame_count();
        self.quotas.map_frames(user, count).map_err(|_| {
            reply::limit(format!(
                "a mapping of {count} frames is too many beside those that the clients of this user have open; \
                 close some videos, or open them without a mapping"
            ))
        })
    }

    /// Drops what a client alone had of its sources: giving so much memory back may take milliseconds.
    pub(super) fn drop_timelines(&mut self, timelines: impl IntoIterator<Item = Timeline>) {
        let is_private = |timeline: &Timeline| timeline.private_frame_count() > 0;
        let private: Vec<Timeline> = timelines.into_iter().filter(is_private).collect();
        if !private.is_empty() {
            self.helpers.discard(Line::House, private);
        }
    }

    /// Frames of the mappings that a client has open or is opening.
    pub(super) fn mapped_frame_count(&self, key: u64, client: &Client) -> u64 {
        let open: u64 = client.sources.values().map(|opened| opened.timeline.private_frame_count()).sum();
        let own = self.opens.values().filter(|pending| pending.client() == key);
        open + own.map(super::opening::PendingOpen::mapped_frame_count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::error::ErrorCode;

    use super::*;

    fn memory(bytes: &[u8]) -> OwnedFd {
        SealedMemfd::new("test", bytes).unwrap().into_fd()
    }

    #[test]
    fn mapping_becomes_an_index_in_the_ticks_of_its_stream() {
        let frame = |pts, is_key| MappedFrame { pts, duration: 2, is_key };
        let bytes = mapping::to_bytes(&[frame(4, false), frame(0, true), frame(2, false)]).unwrap();
        let mapping = Mapping::read(memory(&bytes)).unwrap();
        assert_eq!(mapping.frame_count(), 3);
        let index = mapping.into_index(Rational { numerator: 1, denominator: 2 });
        assert_eq!((index.keyframes.as_slice(), index.content().end_stream_seconds), (&[0][..], 3.0));
    }

    #[test]
    fn memory_that_is_no_mapping_or_can_still_change_is_an_invalid_request() {
        let open = reeld_protocol::arena::create_memfd("open", 64).unwrap();
        for fd in
            [memory(b"REELDIX\x01"), memory(b""), open, std::fs::File::open("/dev/null").unwrap().into()]
        {
            assert_eq!(Mapping::read(fd).unwrap_err().code, ErrorCode::InvalidRequest);
        }
    }
}
