//! A mapping: the frames of a stream as a client knows them, in the sealed memory that travels with `OpenSource`.
//!
//! Whether they are there is not known here: a mapping may be wrong in every number.

use crate::arena::{ArenaError, SealedMemfd};

const MAGIC: [u8; 8] = *b"REELDMP\x01";
const HEADER_BYTES: usize = 16;
const FRAME_BYTES: usize = 24;

/// The most frames of one mapping: 19 hours at 60 per second, 100 MB.
pub const MAPPED_FRAMES_MAX: u64 = 1 << 22;

/// Frames that are read at once: the bytes of all would lie in memory beside what is made of them.
const FRAMES_PER_READ: usize = 1 << 14;

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedFrame {
    /// When it is shown, in ticks of its stream.
    pub pts: i64,
    /// How long, in ticks of its stream.
    pub duration: i64,
    /// Decoding can begin here.
    pub is_key: bool,
}

/// What is wrong with the memory of a mapping.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// Not the bytes of a mapping.
    #[error("not a mapping, or one of another version")]
    NotAMapping,
    /// Nothing to decode.
    #[error("a mapping needs at least one frame")]
    NoFrames,
    /// More than anybody needs.
    #[error("a mapping of {frames} frames is over the limit of {MAPPED_FRAMES_MAX}")]
    TooManyFrames {
        /// How many there are, or are said to be.
        frames: u64,
    },
    /// Shorter or longer than it says.
    #[error("a mapping of {frames} frames cannot have {bytes} bytes")]
    WrongLength {
        /// What the header says.
        frames: u64,
        /// How many bytes there are.
        bytes: u64,
    },
    /// Not sorted.
    #[error("the pts of frame {frame} is smaller than the one before it")]
    NotSorted {
        /// The first such frame.
        frame: u64,
    },
    /// Bits that mean nothing.
    #[error("frame {frame} has flags {flags:#x}, of which only 1 means something")]
    UnknownFlags {
        /// The first such frame.
        frame: u64,
        /// As found.
        flags: u64,
    },
    /// The memory cannot be read.
    #[error(transparent)]
    Memory(#[from] ArenaError),
}

/// The bytes of a mapping, its frames sorted by their pts; equal pts in the order given.
pub fn to_bytes(frames: &[MappedFrame]) -> Result<Vec<u8>, MappingError> {
    check_count(frames.len() as u64)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + frames.len() * FRAME_BYTES);
    bytes.extend(MAGIC);
    bytes.extend((frames.len() as u64).to_le_bytes());
    let mut put = |frame: &MappedFrame| {
        bytes.extend(frame.pts.to_le_bytes());
        bytes.extend(frame.duration.to_le_bytes());
        bytes.extend(u64::from(frame.is_key).to_le_bytes());
    };
    if frames.is_sorted_by_key(|frame| frame.pts) {
        frames.iter().for_each(put);
    } else {
        let mut sorted: Vec<&MappedFrame> = frames.iter().collect();
        sorted.sort_by_key(|frame| frame.pts);
        sorted.into_iter().for_each(&mut put);
    }
    Ok(bytes)
}

/// Reads a mapping out of sealed memory and checks all that can be checked without the file. `make` gets the
/// frames in the order of their pts.
pub fn read<T>(memory: &SealedMemfd, make: impl Fn(MappedFrame) -> T) -> Result<Vec<T>, MappingError> {
    let header = memory.read(0, memory.bytes().min(HEADER_BYTES as u64))?;
    let count = frame_count(&header, memory.bytes())?;
    let mut reading = Reading { made: Vec::with_capacity(count as usize), pts_min: i64::MIN, make };
    let mut offset = HEADER_BYTES as u64;
    while offset < memory.bytes() {
        let bytes = (memory.bytes() - offset).min((FRAMES_PER_READ * FRAME_BYTES) as u64);
        reading.take(&memory.read(offset, bytes)?)?;
        offset += bytes;
    }
    Ok(reading.made)
}

/// As [`read`], of bytes at hand.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<MappedFrame>, MappingError> {
    let count = frame_count(bytes, bytes.len() as u64)?;
    let made = Vec::with_capacity(count as usize);
    let mut reading = Reading { made, pts_min: i64::MIN, make: |frame| frame };
    reading.take(&bytes[HEADER_BYTES..])?;
    Ok(reading.made)
}

/// What the header says, if the length bears it out.
fn frame_count(bytes: &[u8], length: u64) -> Result<u64, MappingError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(MappingError::NotAMapping)?;
    let (frames, _) = rest.split_first_chunk::<8>().ok_or(MappingError::NotAMapping)?;
    let frames = u64::from_le_bytes(*frames);
    check_count(frames)?;
    if length == HEADER_BYTES as u64 + frames * FRAME_BYTES as u64 {
        Ok(frames)
    } else {
        Err(MappingError::WrongLength { frames, bytes: length })
    }
}

fn check_count(frames: u64) -> Result<(), MappingError> {
    match frames {
        0 => Err(MappingError::NoFrames),
        1..=MAPPED_FRAMES_MAX => Ok(()),
        _ => Err(MappingError::TooManyFrames { frames }),
    }
}

struct Reading<T, F: Fn(MappedFrame) -> T> {
    made: Vec<T>,
    pts_min: i64,
    make: F,
}

impl<T, F: Fn(MappedFrame) -> T> Reading<T, F> {
    /// The bytes of whole frames.
    fn take(&mut self, bytes: &[u8]) -> Result<(), MappingError> {
        let (words, _) = bytes.as_chunks::<8>();
        let (frames, _) = words.as_chunks::<3>();
        for &[pts, duration, flags] in frames {
            let frame = self.made.len() as u64;
            let (pts, flags) = (i64::from_le_bytes(pts), u64::from_le_bytes(flags));
            if pts < self.pts_min {
                return Err(MappingError::NotSorted { frame });
            }
            if flags > 1 {
                return Err(MappingError::UnknownFlags { frame, flags });
            }
            self.pts_min = pts;
            let duration = i64::from_le_bytes(duration);
            self.made.push((self.make)(MappedFrame { pts, duration, is_key: flags == 1 }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(pts: i64, is_key: bool) -> MappedFrame {
        MappedFrame { pts, duration: 2, is_key }
    }

    #[test]
    fn frames_come_back_in_the_order_of_their_pts() {
        let frames = [frame(4, true), frame(0, true), frame(2, false)];
        let bytes = to_bytes(&frames).unwrap();
        let pts: Vec<i64> = from_bytes(&bytes).unwrap().iter().map(|frame| frame.pts).collect();
        assert_eq!(pts, [0, 2, 4]);
    }

    #[test]
    fn every_cut_or_longer_mapping_is_an_error() {
        let bytes = to_bytes(&[frame(0, true), frame(2, false)]).unwrap();
        for length in 0..bytes.len() {
            assert!(from_bytes(&bytes[..length]).is_err());
        }
        assert!(matches!(from_bytes(&[&bytes[..], &[0]].concat()), Err(MappingError::WrongLength { .. })));
    }

    #[test]
    fn mapping_without_frames_is_an_error_on_both_sides() {
        assert!(matches!(to_bytes(&[]), Err(MappingError::NoFrames)));
        let bytes = [&MAGIC[..], &[0; 8]].concat();
        assert!(matches!(from_bytes(&bytes), Err(MappingError::NoFrames)));
    }

    #[test]
    fn count_beyond_the_limit_is_an_error_before_any_memory_is_taken() {
        for count in [MAPPED_FRAMES_MAX + 1, u64::MAX] {
            let bytes = [&MAGIC[..], &count.to_le_bytes()].concat();
            assert!(matches!(from_bytes(&bytes), Err(MappingError::TooManyFrames { .. })));
        }
    }

    #[test]
    fn unsorted_frames_and_unknown_flags_are_errors_that_name_the_frame() {
        let mut bytes = to_bytes(&[frame(0, true), frame(2, false), frame(4, false)]).unwrap();
        bytes[HEADER_BYTES + 2 * FRAME_BYTES] = 1;
        assert!(matches!(from_bytes(&bytes), Err(MappingError::NotSorted { frame: 2 })));
        bytes[HEADER_BYTES + 16] = 3;
        assert!(matches!(from_bytes(&bytes), Err(MappingError::UnknownFlags { frame: 0, flags: 3 })));
    }

    #[test]
    fn mapping_longer_than_one_read_comes_back_from_memory_as_it_went() {
        let frames: Vec<_> =
            (0..2 * FRAMES_PER_READ as i64 + 3).map(|pts| frame(pts, pts % 7 == 0)).collect();
        let memory = SealedMemfd::new("test", &to_bytes(&frames).unwrap()).unwrap();
        assert_eq!(read(&memory, |frame| frame).unwrap(), frames);
    }

    proptest! {
        #[test]
        fn any_frames_come_back_sorted(
            pts in proptest::collection::vec((any::<i64>(), any::<i64>(), any::<bool>()), 1..50),
        ) {
            let frames: Vec<_> =
                pts.into_iter().map(|(pts, duration, is_key)| MappedFrame { pts, duration, is_key }).collect();
            let mut sorted = frames.clone();
            sorted.sort_by_key(|frame| frame.pts);
            prop_assert_eq!(from_bytes(&to_bytes(&frames).unwrap()).unwrap(), sorted);
        }
    }
}
