//! The index of one stream: every frame that a scan found, in presentation order, as plain data.
//!
//! How it is made is the engine's `media::scan`; how it is used is the broker's `plan`.

use bincode::{Decode, Encode};
use reeld_protocol::metadata::{ContentMetadata, Rational};

/// Bytes of one frame in the binary form.
const ENTRY_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"REELDIX\x01";
const HEADER_BYTES: usize = 24;

/// The most frames of one stream: 38 days at 60 frames per second; an index of 6.4 GB.
const FRAMES_MAX: u64 = 200_000_000;

/// One encoded frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct IndexEntry {
    /// When it is shown, in stream ticks; the dts where the container gives no pts.
    pub pts: i64,
    /// How long, in stream ticks, as the container says; may be 0.
    pub duration: i64,
    /// Where its packet begins in the file; -1 where the demuxer does not say.
    pub position: i64,
    /// Decoding can begin here.
    pub is_key: bool,
    /// Other frames may refer to it.
    pub is_reference: bool,
}

/// All frames of one stream, sorted by pts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Ticks are this fraction of a second.
    pub time_base: Rational,
    /// In the order of their pts; equal pts in the order of the file.
    pub entries: Vec<IndexEntry>,
    /// Positions in `entries` of the keyframes, ascending. Derived.
    pub keyframes: Vec<u32>,
}

/// What is wrong with the bytes of an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not the bytes of an index.
    #[error("not an index, or one of another version")]
    NotAnIndex,
    /// Shorter or longer than it says.
    #[error("an index of {frames} frames cannot have {bytes} bytes")]
    WrongLength {
        /// What the header says.
        frames: u64,
        /// How many bytes there are.
        bytes: usize,
    },
    /// Ticks of no length.
    #[error("a time base of {numerator}/{denominator}")]
    BadTimeBase {
        /// As found.
        numerator: i32,
        /// As found.
        denominator: i32,
    },
    /// Not sorted.
    #[error("the pts of frame {frame} is smaller than the one before it")]
    NotSorted {
        /// The first such frame.
        frame: usize,
    },
}

impl Index {
    /// Sorts frames into presentation order.
    pub fn new(time_base: Rational, mut entries: Vec<IndexEntry>) -> Index {
        entries.sort_by_key(|entry| entry.pts);
        let keyframes = keyframes_of(&entries);
        Index { time_base, entries, keyframes }
    }

    /// What the scan says about the stream as a whole. A stream without frames begins and ends at 0.
    pub fn content(&self) -> ContentMetadata {
        let begin = self.entries.first().map_or(0, |first| first.pts);
        let ends = self.entries.iter().map(|entry| entry.pts.saturating_add(entry.duration));
        ContentMetadata {
            num_frames: self.entries.len() as u64,
            num_key_frames: self.keyframes.len() as u64,
            begin_stream_seconds: self.time_base.seconds(begin),
            end_stream_seconds: self.time_base.seconds(ends.max().unwrap_or(0)),
        }
    }

    /// The binary form, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        bytes.extend(MAGIC);
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.time_base.numerator.to_le_bytes());
        bytes.extend(self.time_base.denominator.to_le_bytes());
        for entry in &self.entries {
            bytes.extend(entry.pts.to_le_bytes());
            bytes.extend(entry.duration.to_le_bytes());
            bytes.extend(entry.position.to_le_bytes());
            bytes.extend((u64::from(entry.is_key) | u64::from(entry.is_reference) << 1).to_le_bytes());
        }
        bytes
    }

    /// Reads the binary form and checks its invariants: an engine is not trusted to have kept them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Index, IndexError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(IndexError::NotAnIndex)?;
        let (frames, rest) = rest.split_first_chunk::<8>().ok_or(IndexError::NotAnIndex)?;
        let (numerator, rest) = rest.split_first_chunk::<4>().ok_or(IndexError::NotAnIndex)?;
        let (denominator, rest) = rest.split_first_chunk::<4>().ok_or(IndexError::NotAnIndex)?;
        let frames = u64::from_le_bytes(*frames);
        let numerator = i32::from_le_bytes(*numerator);
        let denominator = i32::from_le_bytes(*denominator);
        if frames > FRAMES_MAX || rest.len() as u64 != frames * ENTRY_BYTES as u64 {
            return Err(IndexError::WrongLength { frames, bytes: bytes.len() });
        }
        if numerator <= 0 || denominator <= 0 {
            return Err(IndexError::BadTimeBase { numerator, denominator });
        }
        let (words, _) = rest.as_chunks::<8>();
        let (entries, _) = words.as_chunks::<4>();
        let entries: Vec<IndexEntry> = entries.iter().map(entry_from_words).collect();
        if let Some(before) = entries.windows(2).position(|pair| pair[1].pts < pair[0].pts) {
            return Err(IndexError::NotSorted { frame: before + 1 });
        }
        let keyframes = keyframes_of(&entries);
        Ok(Index { time_base: Rational { numerator, denominator }, entries, keyframes })
    }
}

fn entry_from_words([pts, duration, position, flags]: &[[u8; 8]; 4]) -> IndexEntry {
    let flags = u64::from_le_bytes(*flags);
    IndexEntry {
        pts: i64::from_le_bytes(*pts),
        duration: i64::from_le_bytes(*duration),
        position: i64::from_le_bytes(*position),
        is_key: flags & 1 != 0,
        is_reference: flags & 2 != 0,
    }
}

fn keyframes_of(entries: &[IndexEntry]) -> Vec<u32> {
    let keyframes = entries.iter().enumerate().filter(|(_, entry)| entry.is_key);
    keyframes.map(|(position, _)| position as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let entry =
            |pts, is_key| IndexEntry { pts, duration: 2, position: pts * 10, is_key, is_reference: is_key };
        let entries = vec![entry(0, true), entry(6, false), entry(2, false), entry(4, true)];
        Index::new(Rational { numerator: 1, denominator: 4 }, entries)
    }

    #[test]
    fn frames_are_in_presentation_order() {
        let pts: Vec<i64> = index().entries.iter().map(|entry| entry.pts).collect();
        assert_eq!(pts, [0, 2, 4, 6]);
        assert_eq!(index().keyframes, [0, 2]);
    }

    #[test]
    fn content_spans_from_first_pts_to_last_end() {
        let content = index().content();
        assert_eq!((content.num_frames, content.num_key_frames), (4, 2));
        assert_eq!((content.begin_stream_seconds, content.end_stream_seconds), (0.0, 2.0));
    }

    #[test]
    fn binary_form_comes_back_as_it_went() {
        assert_eq!(Index::from_bytes(&index().to_bytes()).unwrap(), index());
    }

    #[test]
    fn every_cut_index_is_an_error() {
        let bytes = index().to_bytes();
        for length in 0..bytes.len() {
            assert!(Index::from_bytes(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn unsorted_index_is_an_error() {
        let mut index = index();
        index.entries.swap(1, 2);
        assert!(matches!(Index::from_bytes(&index.to_bytes()), Err(IndexError::NotSorted { frame: 2 })));
    }

    #[test]
    fn frame_count_that_does_not_fit_is_an_error() {
        let mut bytes = index().to_bytes();
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(Index::from_bytes(&bytes), Err(IndexError::WrongLength { .. })));
    }
}
