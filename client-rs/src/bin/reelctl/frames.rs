//! `reelctl frames`: frames as PNG files.
//!
//! Frames that are asked for by index are named by it, those asked for by time, by the time.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType, Compression, Encoder};
use reeld_client::{Client, Error, Frame, OpenOptions, SeekMode, Transform, Video};
use serde_json::{Value, json};

use crate::Failure;

/// Pixels of one request. Enough that the daemon decodes many frames in one go, and little beside the
/// usual quota.
const REQUEST_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct Arguments {
    /// The file
    video: PathBuf,
    /// Frames by index; negative ones count from the end
    #[arg(long, value_name = "INDEX,…", value_delimiter = ',', allow_hyphen_values = true, group = "which")]
    at: Vec<i64>,
    /// Frames on display at these times
    #[arg(
        long,
        value_name = "SECONDS,…",
        value_delimiter = ',',
        allow_hyphen_values = true,
        group = "which"
    )]
    at_seconds: Vec<f64>,
    /// The folder to write to; it is made if necessary
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Scale the frames to this size [default: the video's]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_size)]
    size: Option<Size>,
    /// The video stream, by its index in the file [default: the best]
    #[arg(long)]
    stream: Option<u32>,
    /// Find frames by arithmetic on the header instead of scanning the file
    #[arg(long)]
    approximate: bool,
}

/// Of frames, as people write it.
#[derive(Clone, Copy, Debug)]
struct Size {
    width: u32,
    height: u32,
}

/// A file that was written.
struct Written {
    path: PathBuf,
    /// None for frames that were asked for by time.
    index: Option<u64>,
    pts_seconds: f64,
    duration_seconds: f64,
}

pub(crate) fn run(client: &Client, arguments: &Arguments, is_json: bool) -> Result<String, Failure> {
    let seek_mode = if arguments.approximate { SeekMode::Approximate } else { SeekMode::Exact };
    let options = OpenOptions { stream: arguments.stream, seek_mode, ..OpenOptions::default() };
    let video = client.open(&arguments.video, options)?;
    let resize = arguments.size.map(|Size { width, height }| Transform::Resize { height, width });
    let video = video.transformed(resize.as_slice())?;
    std::fs::create_dir_all(&arguments.out).map_err(|error| failed(&arguments.out, &error))?;
    let mut written = Vec::new();
    for indices in arguments.at.chunks(batch_count(&video)) {
        let frames = video.frames_at(indices)?;
        for (frame, index) in frames.parts().flat_map(|part| part.frames()).zip(indices) {
            let index = from_start(*index, &video);
            let name = format!("frame{index:05}");
            written.push(write(&frame, Some(index), &name, arguments)?);
        }
    }
    for times in arguments.at_seconds.chunks(batch_count(&video)) {
        let frames = video.frames_played_at(times)?;
        for (frame, time) in frames.parts().flat_map(|part| part.frames()).zip(times) {
            written.push(write(&frame, None, &format!("played{time}s"), arguments)?);
        }
    }
    Ok(if is_json { format!("{:#}", to_json(&written)) } else { to_text(&written) })
}

fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once('x').map(|(width, height)| (width.parse(), height.parse()));
    let Some((Ok(width), Ok(height))) = sides else {
        return Err("not a width and a height, such as 320x180".into());
    };
    Ok(Size { width, height })
}

fn batch_count(video: &Video) -> usize {
    let frame_bytes = u64::from(video.frame_width()) * u64::from(video.frame_height()) * 3;
    (REQUEST_BYTES_MAX / frame_bytes.max(1)).clamp(1, 1024) as usize
}

/// The daemon has accepted the index, so that it lies in the stream.
fn from_start(index: i64, video: &Video) -> u64 {
    let count = video.metadata().frame_count().unwrap_or(0);
    u64::try_from(index).unwrap_or_else(|_| count.saturating_sub(index.unsigned_abs()))
}

fn write(
    frame: &Frame<'_>,
    index: Option<u64>,
    name: &str,
    arguments: &Arguments,
) -> Result<Written, Failure> {
    let (pts_seconds, duration_seconds) = (frame.pts_seconds(), frame.duration_seconds());
    let stem = arguments.video.file_stem().unwrap_or_default().to_string_lossy();
    let path = arguments.out.join(format!("{stem}_{name}_pts{pts_seconds:.3}s.png"));
    write_png(&path, frame)?;
    Ok(Written { path, index, pts_seconds, duration_seconds })
}

fn write_png(path: &Path, frame: &Frame<'_>) -> Result<(), Failure> {
    let side = |pixels: usize| {
        u32::try_from(pixels).map_err(|_| Error::Protocol("a frame of more than 2^32 rows or columns".into()))
    };
    let file = File::create(path).map_err(|error| failed(path, &error))?;
    let mut encoder = Encoder::new(BufWriter::new(file), side(frame.width())?, side(frame.height())?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    let result = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(frame.pixels())?;
        writer.finish()
    });
    result.map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Write { path: path.to_owned(), reason: error.to_string() }
}

fn to_text(written: &[Written]) -> String {
    written.iter().map(|file| format!("{}\n", file.path.display())).collect()
}

fn to_json(written: &[Written]) -> Value {
    let file = |file: &Written| {
        json!({
            "path": file.path.to_string_lossy(),
            "frame_index": file.index,
            "pts_seconds": file.pts_seconds,
            "duration_seconds": file.duration_seconds,
        })
    };
    json!({ "files": written.iter().map(file).collect::<Vec<_>>() })
}
