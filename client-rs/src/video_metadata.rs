//! [`VideoMetadata`]: what is known of an open video.
//!
//! How the values are found is the daemon's matter; their names follow TorchCodec's.

use reeld_protocol::message::SourceOpened;
use reeld_protocol::metadata::{
    ContentMetadata, EffectiveMetadata, MediaMetadata, StreamMetadata, VideoHeader,
};

use crate::error::Error;

/// What is known of a file and of the video stream that was opened in it. Times are in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoMetadata {
    media: MediaMetadata,
    content: Option<ContentMetadata>,
    effective: EffectiveMetadata,
    stream: StreamMetadata,
    video: VideoHeader,
}

impl VideoMetadata {
    pub(crate) fn new(opened: SourceOpened) -> Result<VideoMetadata, Error> {
        let SourceOpened { source: _, stream, media, content, effective } = opened;
        let found = media.streams.iter().find(|candidate| candidate.stream_index == stream);
        let chosen = found.and_then(|found| Some((found.clone(), found.video.clone()?)));
        let Some((stream, video)) = chosen else {
            return Err(Error::Protocol("it opened a stream that is no video stream of the file".into()));
        };
        Ok(VideoMetadata { media, content, effective, stream, video })
    }

    /// What the header says of the file and all its streams.
    pub fn media(&self) -> &MediaMetadata {
        &self.media
    }

    /// What the header says of the open stream.
    pub fn stream(&self) -> &StreamMetadata {
        &self.stream
    }

    /// What the header says of the open stream's pictures.
    pub fn video(&self) -> &VideoHeader {
        &self.video
    }

    /// What a scan of all packets found; none in approximate mode.
    pub fn content(&self) -> Option<&ContentMetadata> {
        self.content.as_ref()
    }

    /// What applies, from the scan where there was one and else from the header.
    pub fn effective(&self) -> &EffectiveMetadata {
        &self.effective
    }

    /// Absolute index of the open stream in its container.
    pub fn stream_index(&self) -> u32 {
        self.stream.stream_index.0
    }

    /// Number of frames; none where only a scan could tell and there was none.
    pub fn frame_count(&self) -> Option<u64> {
        self.effective.num_frames
    }

    /// Frames per second.
    pub fn average_fps(&self) -> Option<f64> {
        self.effective.average_fps
    }

    /// Duration.
    pub fn duration_seconds(&self) -> Option<f64> {
        self.effective.duration_seconds
    }

    /// When the first frame begins.
    pub fn begin_stream_seconds(&self) -> f64 {
        self.effective.begin_stream_seconds
    }

    /// When the last frame ends.
    pub fn end_stream_seconds(&self) -> Option<f64> {
        self.effective.end_stream_seconds
    }

    /// Columns of the frames that are returned, unless they are transformed: after rotation.
    pub fn width(&self) -> u32 {
        self.video.width
    }

    /// Rows of the frames that are returned, unless they are transformed: after rotation.
    pub fn height(&self) -> u32 {
        self.video.height
    }

    /// FFmpeg's name of the codec.
    pub fn codec(&self) -> &str {
        &self.stream.codec
    }
}
