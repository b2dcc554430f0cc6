//! What is known of a media file and its streams. Field names and meanings follow TorchCodec 0.17, so that
//! its metadata classes can be filled without interpretation; `docs/differences.md` lists exceptions.
//!
//! What does not live here: how the values are found. That is the engine's probe and scan.

use crate::codec::{Decode, Encode};
use crate::ids::StreamIndex;

/// A ratio of two integers, as FFmpeg's `AVRational`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rational {
    /// Numerator.
    pub numerator: i32,
    /// Denominator.
    pub denominator: i32,
}

impl Rational {
    /// Ticks of this time base as seconds: multiplication before division, in double precision, which is
    /// what makes times equal to TorchCodec's to the last bit.
    pub fn seconds(self, ticks: i64) -> f64 {
        ticks as f64 * f64::from(self.numerator) / f64::from(self.denominator)
    }

    /// The tick nearest to a time, halves away from zero.
    pub fn nearest_ticks(self, seconds: f64) -> i64 {
        (seconds * f64::from(self.denominator) / f64::from(self.numerator)).round() as i64
    }

    /// The last tick that is not after a time. Just before a frame begins that is the frame before it, where
    /// the nearest tick would be the frame itself.
    pub fn ticks_at(self, seconds: f64) -> i64 {
        let nearest = self.nearest_ticks(seconds);
        if self.seconds(nearest) > seconds { nearest.saturating_sub(1) } else { nearest }
    }
}

/// Which kind of media a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MediaType {
    /// Pictures.
    Video,
    /// Sound.
    Audio,
    /// Text.
    Subtitle,
    /// Data.
    Data,
    /// A file within the file.
    Attachment,
    /// None of these.
    Unknown,
}

/// What the header says about one stream, whatever its kind.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct StreamMetadata {
    /// Absolute index in the container.
    pub stream_index: StreamIndex,
    /// Kind of media.
    pub media_type: MediaType,
    /// FFmpeg's name of the codec.
    pub codec: String,
    /// Ticks are this fraction of a second.
    pub time_base: Rational,
    /// Bits per second, as the header says; 0 where it does not.
    pub bit_rate: i64,
    /// Duration in seconds.
    pub duration_seconds_from_header: Option<f64>,
    /// First timestamp in seconds.
    pub begin_stream_seconds_from_header: Option<f64>,
    /// Present for video streams.
    pub video: Option<VideoHeader>,
    /// Present for audio streams.
    pub audio: Option<AudioHeader>,
}

/// What the header says about a video stream.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct VideoHeader {
    /// Width in pixels of the frames that are returned: after rotation.
    pub width: u32,
    /// Height in pixels of the frames that are returned: after rotation.
    pub height: u32,
    /// Number of frames.
    pub num_frames_from_header: Option<i64>,
    /// FFmpeg's `r_frame_rate` in frames per second.
    pub average_fps_from_header: Option<f64>,
    /// Width to height of one pixel; numerator 0 where unknown.
    pub sample_aspect_ratio: Rational,
    /// Degrees counter-clockwise from the display matrix.
    pub rotation_degrees: Option<f64>,
    /// FFmpeg's name, where specified.
    pub color_primaries: Option<String>,
    /// FFmpeg's name, where specified.
    pub color_space: Option<String>,
    /// FFmpeg's name, where specified.
    pub color_transfer_characteristic: Option<String>,
    /// FFmpeg's name of the coded pixel format.
    pub pixel_format: Option<String>,
    /// Bits of one value of that format's first component.
    pub bit_depth: Option<u32>,
}

/// What the header says about an audio stream.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct AudioHeader {
    /// Samples per second.
    pub sample_rate: i64,
    /// Number of channels.
    pub num_channels: i64,
    /// FFmpeg's name of the sample format.
    pub sample_format: Option<String>,
}

/// What the header says about a file and all its streams.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct MediaMetadata {
    /// Name of the container format.
    pub format: String,
    /// Duration of the container in seconds.
    pub duration_seconds_from_header: Option<f64>,
    /// Bits per second of the container.
    pub bit_rate: Option<i64>,
    /// The video stream that FFmpeg prefers.
    pub best_video_stream: Option<StreamIndex>,
    /// The audio stream that FFmpeg prefers.
    pub best_audio_stream: Option<StreamIndex>,
    /// Every stream, in the container's order.
    pub streams: Vec<StreamMetadata>,
}

/// What a scan of all packets found out about one stream.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct ContentMetadata {
    /// Number of frames.
    pub num_frames: u64,
    /// Number of keyframes.
    pub num_key_frames: u64,
    /// The smallest pts, in seconds.
    pub begin_stream_seconds: f64,
    /// The largest pts + duration, in seconds.
    pub end_stream_seconds: f64,
}

/// What decides between header and content: the values that callers use.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct EffectiveMetadata {
    /// Number of frames, where known.
    pub num_frames: Option<u64>,
    /// Frames per second.
    pub average_fps: Option<f64>,
    /// Duration in seconds.
    pub duration_seconds: Option<f64>,
    /// Time of the first frame in seconds.
    pub begin_stream_seconds: f64,
    /// Time of the end in seconds: no frame is played then.
    pub end_stream_seconds: Option<f64>,
}

impl EffectiveMetadata {
    /// Exact mode: the scan decides; the header only fills in the frame rate of a stream without duration.
    pub fn exact(header: &VideoHeader, content: &ContentMetadata) -> Self {
        let duration = content.end_stream_seconds - content.begin_stream_seconds;
        let average_fps = if duration == 0.0 {
            header.average_fps_from_header
        } else {
            Some(content.num_frames as f64 / duration)
        };
        EffectiveMetadata {
            num_frames: Some(content.num_frames),
            average_fps,
            duration_seconds: Some(duration),
            begin_stream_seconds: content.begin_stream_seconds,
            end_stream_seconds: Some(content.end_stream_seconds),
        }
    }

    /// Approximate mode: the header decides, first the stream's, then its frame count, then the container's.
    pub fn approximate(stream: &StreamMetadata, header: &VideoHeader, container: &MediaMetadata) -> Self {
        let fps = header.average_fps_from_header;
        let from_count = match (header.num_frames_from_header, fps) {
            (Some(count), Some(fps)) if fps != 0.0 => Some(count as f64 / fps),
            (Some(_) | None, Some(_) | None) => None,
        };
        let duration =
            stream.duration_seconds_from_header.or(from_count).or(container.duration_seconds_from_header);
        let begin = stream.begin_stream_seconds_from_header.unwrap_or(0.0);
        let from_duration = fps.zip(duration).map(|(fps, duration)| (fps * duration) as i64);
        let num_frames = header.num_frames_from_header.or(from_duration);
        EffectiveMetadata {
            num_frames: num_frames.map(|count| count.max(0) as u64),
            average_fps: fps,
            duration_seconds: duration,
            begin_stream_seconds: begin,
            end_stream_seconds: duration.map(|duration| begin + duration),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_multiply_before_they_divide() {
        let time_base = Rational { numerator: 1001, denominator: 30000 };
        assert_eq!(time_base.seconds(3), 3.0 * 1001.0 / 30000.0);
        assert_eq!(time_base.nearest_ticks(time_base.seconds(12345)), 12345);
        assert_eq!(time_base.ticks_at(time_base.seconds(12345)), 12345);
        assert_eq!(time_base.ticks_at(time_base.seconds(12345).next_down()), 12344);
    }
}
