//! `reelctl probe`: what the daemon knows of a file and its streams.
//!
//! The video stream is scanned, so that its counts and times are exact.

use std::path::PathBuf;

use reeld_client::metadata::{MediaType, Rational, StreamMetadata};
use reeld_client::{Client, OpenOptions, VideoMetadata};
use serde_json::{Value, json};

use crate::Failure;
use crate::table::{row, table};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file
    video: PathBuf,
    /// The video stream to scan, by its index in the file [default: the best]
    #[arg(long)]
    stream: Option<u32>,
}

pub(crate) fn run(client: &Client, arguments: &Arguments, is_json: bool) -> Result<String, Failure> {
    let options = OpenOptions { stream: arguments.stream, ..OpenOptions::default() };
    let video = client.open(&arguments.video, options)?;
    let metadata = video.metadata();
    Ok(if is_json { format!("{:#}", to_json(metadata)) } else { to_text(video.label(), metadata) })
}

fn to_text(label: &str, metadata: &VideoMetadata) -> String {
    let media = metadata.media();
    let mut text = format!(
        "{label}: {}, {}, {}\n\n",
        media.format,
        seconds(media.duration_seconds_from_header),
        bit_rate(media.bit_rate)
    );
    let mut rows = vec![row([&"stream", &"kind", &"codec", &"duration", &"bit rate", &"details"])];
    rows.extend(media.streams.iter().map(|stream| stream_row(stream, metadata.stream_index())));
    text += &table(&rows);
    let Some(content) = metadata.content() else { return text };
    let facts = [
        row([&"frames", &content.num_frames]),
        row([&"keyframes", &content.num_key_frames]),
        row([&"frames per second", &optional(metadata.average_fps(), |fps| format!("{fps:.3}"))]),
        row([&"first frame begins", &seconds(Some(content.begin_stream_seconds))]),
        row([&"last frame ends", &seconds(Some(content.end_stream_seconds))]),
    ];
    text + &format!("\nStream {}, counted:\n{}", metadata.stream_index(), table(&facts))
}

fn stream_row(stream: &StreamMetadata, chosen: u32) -> Vec<String> {
    let mark = if stream.stream_index.0 == chosen { "*" } else { "" };
    let details = match (&stream.video, &stream.audio) {
        (Some(video), _) => format!(
            "{} x {}, {}",
            video.width,
            video.height,
            video.pixel_format.as_deref().unwrap_or("unknown pixel format")
        ),
        (None, Some(audio)) => format!("{} Hz, {} channels", audio.sample_rate, audio.num_channels),
        (None, None) => String::new(),
    };
    row([
        &format!("{}{mark}", stream.stream_index),
        &kind_name(stream.media_type),
        &stream.codec,
        &seconds(stream.duration_seconds_from_header),
        &bit_rate((stream.bit_rate > 0).then_some(stream.bit_rate)),
        &details,
    ])
}

fn kind_name(media_type: MediaType) -> &'static str {
    match media_type {
        MediaType::Video => "video",
        MediaType::Audio => "audio",
        MediaType::Subtitle => "subtitle",
        MediaType::Data => "data",
        MediaType::Attachment => "attachment",
        MediaType::Unknown => "unknown",
    }
}

fn seconds(seconds: Option<f64>) -> String {
    optional(seconds, |seconds| format!("{seconds:.3} s"))
}

fn bit_rate(bits_per_second: Option<i64>) -> String {
    optional(bits_per_second, |rate| format!("{:.0} kbit/s", rate as f64 / 1000.0))
}

fn optional<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "unknown".into(), show)
}

fn to_json(metadata: &VideoMetadata) -> Value {
    let media = metadata.media();
    let effective = metadata.effective();
    json!({
        "format": media.format,
        "duration_seconds_from_header": media.duration_seconds_from_header,
        "bit_rate": media.bit_rate,
        "best_video_stream_index": media.best_video_stream.map(|stream| stream.0),
        "best_audio_stream_index": media.best_audio_stream.map(|stream| stream.0),
        "stream_index": metadata.stream_index(),
        "num_frames": effective.num_frames,
        "num_key_frames": metadata.content().map(|content| content.num_key_frames),
        "average_fps": effective.average_fps,
        "duration_seconds": effective.duration_seconds,
        "begin_stream_seconds": effective.begin_stream_seconds,
        "end_stream_seconds": effective.end_stream_seconds,
        "streams": media.streams.iter().map(stream_to_json).collect::<Vec<_>>(),
    })
}

fn stream_to_json(stream: &StreamMetadata) -> Value {
    let ratio = |ratio: Rational| json!([ratio.numerator, ratio.denominator]);
    let video = stream.video.as_ref().map(|video| {
        json!({
            "width": video.width,
            "height": video.height,
            "num_frames_from_header": video.num_frames_from_header,
            "average_fps_from_header": video.average_fps_from_header,
            "sample_aspect_ratio": ratio(video.sample_aspect_ratio),
            "rotation_degrees": video.rotation_degrees,
            "color_primaries": video.color_primaries,
            "color_space": video.color_space,
            "color_transfer_characteristic": video.color_transfer_characteristic,
            "pixel_format": video.pixel_format,
        })
    });
    let audio = stream.audio.as_ref().map(|audio| {
        json!({
            "sample_rate": audio.sample_rate,
            "num_channels": audio.num_channels,
            "sample_format": audio.sample_format,
        })
    });
    json!({
        "stream_index": stream.stream_index.0,
        "media_type": kind_name(stream.media_type),
        "codec": stream.codec,
        "time_base": ratio(stream.time_base),
        "bit_rate": stream.bit_rate,
        "duration_seconds_from_header": stream.duration_seconds_from_header,
        "begin_stream_seconds_from_header": stream.begin_stream_seconds_from_header,
        "video": video,
        "audio": audio,
    })
}
