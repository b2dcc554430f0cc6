//! The header of a file as metadata: what FFmpeg says after it has looked at the first samples.
//!
//! What does not live here: fallbacks between header and content; those are `EffectiveMetadata`'s.

use reeld_protocol::ids::StreamIndex;
use reeld_protocol::metadata::{
    AudioHeader, MediaMetadata, MediaType, Rational, StreamMetadata, VideoHeader,
};

use super::Rotation;
use crate::ffi::{MediaInput, Stream};

/// FFmpeg counts a container's duration in microseconds.
const CONTAINER_TIME_BASE: Rational = Rational { numerator: 1, denominator: 1_000_000 };

/// Everything that the header says.
pub fn probe(input: &MediaInput) -> MediaMetadata {
    let streams = (0..input.stream_count()).filter_map(|index| {
        let stream = input.stream(index)?;
        Some(describe(index, stream))
    });
    MediaMetadata {
        format: input.format_name(),
        duration_seconds_from_header: input
            .duration_micros()
            .map(|micros| CONTAINER_TIME_BASE.seconds(micros)),
        bit_rate: input.bit_rate(),
        best_video_stream: input.best_video_stream(None).map(|best| stream_index(best.index)),
        best_audio_stream: input.best_audio_stream().map(|best| stream_index(best.index)),
        streams: streams.collect(),
    }
}

fn describe(index: usize, stream: Stream<'_>) -> StreamMetadata {
    let time_base = stream.time_base();
    let media_type = stream.media_type();
    StreamMetadata {
        stream_index: stream_index(index),
        media_type,
        codec: stream.codec_name(),
        time_base,
        bit_rate: stream.bit_rate(),
        duration_seconds_from_header: stream
            .duration_ticks()
            .filter(|_| time_base.denominator > 0)
            .map(|ticks| time_base.seconds(ticks)),
        begin_stream_seconds_from_header: stream.start_ticks().map(|ticks| time_base.seconds(ticks)),
        video: (media_type == MediaType::Video).then(|| describe_video(stream)),
        audio: (media_type == MediaType::Audio).then(|| describe_audio(stream)),
    }
}

fn describe_video(stream: Stream<'_>) -> VideoHeader {
    let rotation_degrees = stream.rotation_degrees();
    let (width, height) = Rotation::from_degrees(rotation_degrees).apply(stream.coded_size());
    VideoHeader {
        width: u32::try_from(width).unwrap_or(0),
        height: u32::try_from(height).unwrap_or(0),
        num_frames_from_header: stream.frame_count(),
        average_fps_from_header: frames_per_second(stream),
        sample_aspect_ratio: stream.sample_aspect_ratio(),
        rotation_degrees,
        color_primaries: stream.color_primaries(),
        color_space: stream.color_space(),
        color_transfer_characteristic: stream.color_transfer(),
        pixel_format: stream.pixel_format(),
        bit_depth: stream.bit_depth(),
    }
}

fn describe_audio(stream: Stream<'_>) -> AudioHeader {
    AudioHeader {
        sample_rate: i64::from(stream.sample_rate()),
        num_channels: i64::from(stream.channel_count()),
        sample_format: stream.sample_format(),
    }
}

/// The base frame rate, not the average one: that is what TorchCodec calls the header's average.
pub fn frames_per_second(stream: Stream<'_>) -> Option<f64> {
    let rate = stream.base_frame_rate();
    let fps = f64::from(rate.numerator) / f64::from(rate.denominator);
    (fps > 0.0).then_some(fps)
}

fn stream_index(index: usize) -> StreamIndex {
    StreamIndex(u32::try_from(index).unwrap_or(u32::MAX))
}
