//! [`FrameMapping`]: the frames of a video stream, listed by a caller who knows them.
//!
//! Whether a list is right is not known here. How it is written down is `reeld_protocol::mapping`'s matter.

use std::sync::Arc;

use reeld_protocol::SealedMemfd;
use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::mapping::{self, MappedFrame};

use crate::error::Error;

/// All frames of one video stream, such as `ffprobe` lists them: opening with it spares the scan that finds them.
///
/// It counts for this video alone, and not for others who open the same file. One that is wrong gives other frames
/// than its indices say, or errors; never frames of another file. [`crate::Video::frame_played_at`] does not use it, but
/// looks for the time among the pictures themselves.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// use reeld_client::{FrameMapping, MappedFrame, OpenOptions, Video};
///
/// // In ticks of the stream's time base; here there are 12,800 in a second, and 25 frames.
/// let frame = |number: i64| MappedFrame { pts: number * 512, duration: 512, is_key: number == 0 };
/// let mapping = FrameMapping::new(&(0..50).map(frame).collect::<Vec<_>>())?;
/// let video = Video::open_with("clip.mp4", OpenOptions::new().mapping(mapping))?;
/// assert_eq!(video.metadata().frame_count(), Some(50));
/// assert_eq!(video.frame_at(-1)?[..], Video::open("clip.mp4")?.frame_at(-1)?[..]);
/// # Ok::<(), reeld_client::Error>(())
/// ```
///
/// A clone is cheap and means the same memory.
#[derive(Clone, Debug)]
pub struct FrameMapping {
    memory: OutgoingFd,
    frame_count: u64,
}

impl FrameMapping {
    /// Lists frames, in any order.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if there are none, or more than 4,194,304; [`Error::Io`] without memory.
    pub fn new(frames: &[MappedFrame]) -> Result<FrameMapping, Error> {
        let bytes = mapping::to_bytes(frames).map_err(|error| Error::InvalidRequest(error.to_string()))?;
        let memory = SealedMemfd::new("reeld-mapping", &bytes)
            .map_err(|error| Error::io("memory for a mapping", error))?;
        Ok(FrameMapping { memory: Arc::new(memory.into_fd()), frame_count: frames.len() as u64 })
    }

    /// How many frames it has.
    pub fn frame_count(&self) -> u64 {
        self.frame_count
    }

    pub(crate) fn memory(&self) -> OutgoingFd {
        Arc::clone(&self.memory)
    }
}

impl PartialEq for FrameMapping {
    /// True for clones of one mapping.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }
}

impl Eq for FrameMapping {}
