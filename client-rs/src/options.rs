//! What a caller may choose: [`OpenOptions`] for a video with [`DtypeChoice`], [`RequestOptions`] for one request,
//! and [`FrameRange`] for a stretch of frames.
//!
//! What is chosen where nothing is said is written here; what a choice means is the daemon's.

use std::ops::Range;
use std::time::{Duration, Instant};

use reeld_protocol::message::{Dtype, SeekMode, Wanted};
use reeld_protocol::metadata::VideoHeader;

use crate::mapping::FrameMapping;

/// How a video is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Absolute index of the stream in its container; none means the one that FFmpeg prefers.
    pub stream: Option<u32>,
    /// How frames are found. Default: [`SeekMode::Exact`].
    pub seek_mode: SeekMode,
    /// Type of the values of returned pixels. Default: [`Dtype::Uint8`].
    pub dtype: DtypeChoice,
    /// Decoder threads that the caller would like; 0 leaves it to the daemon. A hint.
    pub thread_count: u16,
    /// Where the frames are, if that is known already: in place of a scan of the file, and of `seek_mode`.
    pub mapping: Option<FrameMapping>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            stream: None,
            seek_mode: SeekMode::Exact,
            dtype: Dtype::Uint8.into(),
            thread_count: 0,
            mapping: None,
        }
    }
}

impl OpenOptions {
    /// The defaults: the best video stream, exact seeking, 8-bit values.
    pub fn new() -> Self {
        OpenOptions::default()
    }

    /// Chooses a stream by its absolute index in the container.
    pub fn stream(mut self, stream: u32) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Chooses how frames are found.
    pub fn seek_mode(mut self, seek_mode: SeekMode) -> Self {
        self.seek_mode = seek_mode;
        self
    }

    /// Chooses the type of the values of returned pixels: a [`Dtype`], or [`DtypeChoice::ByDepth`].
    ///
    /// ```
    /// # reeld_tests::enter_example_folder();
    /// use reeld_client::{Dtype, DtypeChoice, OpenOptions, Video};
    ///
    /// let video = Video::open_with("clip.mp4", OpenOptions::new().dtype(DtypeChoice::ByDepth))?;
    /// assert_eq!(video.metadata().video().bit_depth, Some(8));
    /// assert_eq!(video.dtype(), Dtype::Uint8);
    /// # Ok::<(), reeld_client::Error>(())
    /// ```
    pub fn dtype(mut self, dtype: impl Into<DtypeChoice>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// Says where the frames are.
    pub fn mapping(mut self, mapping: FrameMapping) -> Self {
        self.mapping = Some(mapping);
        self
    }

    /// Hints how many threads one decoder shall use; 0 leaves it to the daemon.
    pub fn thread_count(mut self, thread_count: u16) -> Self {
        self.thread_count = thread_count;
        self
    }
}

/// Which type the values of returned pixels shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtypeChoice {
    /// This one.
    Exactly(Dtype),
    /// [`Dtype::Float32`] for videos of more than 8 bits, else [`Dtype::Uint8`]: nothing is lost, and no memory
    /// is wasted.
    ByDepth,
}

impl DtypeChoice {
    /// What it means for a video.
    pub(crate) fn resolve(self, header: &VideoHeader) -> Dtype {
        match self {
            DtypeChoice::Exactly(dtype) => dtype,
            DtypeChoice::ByDepth if header.bit_depth.is_some_and(|depth| depth > 8) => Dtype::Float32,
            DtypeChoice::ByDepth => Dtype::Uint8,
        }
    }
}

impl From<Dtype> for DtypeChoice {
    fn from(dtype: Dtype) -> Self {
        DtypeChoice::Exactly(dtype)
    }
}

/// How urgent one request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// Higher goes first among the requests of one user; 0 is usual.
    pub priority: i8,
    /// How long the answer is of use; after that the request fails with [`crate::Error::Deadline`].
    /// None, the default, waits as long as it takes. It counts from the call on, also while the daemon is
    /// away and looked for.
    pub timeout: Option<Duration>,
}

impl RequestOptions {
    /// The defaults: usual priority, no deadline.
    pub fn new() -> Self {
        RequestOptions::default()
    }

    /// Sets the priority.
    pub fn priority(mut self, priority: i8) -> Self {
        self.priority = priority;
        self
    }

    /// Sets how long the answer is of use.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// When the answer is of no use any more. A time beyond what the clock can tell is none.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.timeout?)
    }
}

/// `start`, `start + step`, … below `stop`. Made from a `Range` or from `(start, stop, step)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRange {
    /// The first frame.
    pub start: u64,
    /// Below this.
    pub stop: u64,
    /// At least 1.
    pub step: u64,
}

impl From<Range<u64>> for FrameRange {
    fn from(range: Range<u64>) -> Self {
        FrameRange { start: range.start, stop: range.end, step: 1 }
    }
}

impl From<(u64, u64, u64)> for FrameRange {
    fn from((start, stop, step): (u64, u64, u64)) -> Self {
        FrameRange { start, stop, step }
    }
}

impl From<FrameRange> for Wanted {
    fn from(range: FrameRange) -> Self {
        Wanted::IndexRange { start: range.start, stop: range.stop, step: range.step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_beyond_the_clock_is_no_deadline() {
        assert_eq!(RequestOptions::new().deadline(), None);
        assert_eq!(RequestOptions::new().timeout(Duration::MAX).deadline(), None);
        assert!(RequestOptions::new().timeout(Duration::ZERO).deadline().unwrap() <= Instant::now());
    }
}
