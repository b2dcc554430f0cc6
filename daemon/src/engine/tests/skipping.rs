//! Samples that nobody needs: which are left out, and that all pictures stay what they were.

use std::path::{Path, PathBuf};

use reeld_protocol::message::Dtype;
use tempfile::TempDir;

use super::{Broker, clip, first, frames, remux, start_of, video, wanted};
use crate::link::{EngineReport, RunStart, Target};

const SOURCE: &str = "testsrc2=s=160x96:d=4";
const X264: &[&str] = &["-c:v", "libx264", "-bf", "3", "-g", "50"];

/// Frames far apart, each with its own run, against FFmpeg's tool. Returns what was done for them.
fn far_apart(path: &Path, start: Option<RunStart>) -> EngineReport {
    let (mut broker, media) = Broker::open(path);
    let header = video(&media).clone();
    let index = broker.scan();
    let truth = frames(path, &header, "rgb24", 3);
    assert_eq!(index.entries.len(), truth.len(), "{}", path.display());
    for position in [97, 45, 2, 70, 49, 93, 94, 95, 31].into_iter().filter(|&position| position < truth.len())
    {
        let target = Target::AtOrAfter(index.entries[position].pts);
        let wanted = wanted(0, &header, target, Dtype::Uint8);
        let start = start.unwrap_or_else(|| start_of(&index, position));
        assert_eq!(broker.decode(start, &[wanted]).0, []);
        assert!(broker.pixels(&wanted) == truth[position], "frame {position} of {}", path.display());
    }
    broker.report
}

fn skipped_count(path: &Path) -> u64 {
    far_apart(path, None).samples_skipped
}

fn x264(folder: &TempDir, name: &str, parameters: &str) -> PathBuf {
    clip(folder, name, SOURCE, &[X264, &["-x264-params", parameters]].concat())
}

fn x265(folder: &TempDir, name: &str, parameters: &str) -> PathBuf {
    let parameters = format!("log-level=none:keyint=50:{parameters}");
    clip(folder, name, SOURCE, &["-c:v", "libx265", "-x265-params", &parameters])
}

#[test]
fn samples_that_nothing_refers_to_are_left_out() {
    let folder = TempDir::new().unwrap();
    let h264 = clip(&folder, "h264.mp4", SOURCE, X264);
    let h265 = x265(&folder, "h265.mp4", "open-gop=1");
    // With lengths before the units, and with start codes.
    let (h264_ts, h265_ts) = (remux(&h264, "h264.ts", &[]), remux(&h265, "h265.ts", &[]));
    let layers = x265(&folder, "layers.mp4", "temporal-layers=1");
    let ten_bits = clip(&folder, "ten.mkv", SOURCE, &[X264, &["-pix_fmt", "yuv420p10le"]].concat());
    for path in [&h264, &h264_ts, &h265, &h265_ts, &layers, &ten_bits] {
        assert!(skipped_count(path) > 20, "{}", path.display());
    }
}

#[test]
fn streams_that_leave_a_doubt_are_decoded_whole() {
    let folder = TempDir::new().unwrap();
    let fields = x264(&folder, "fields.mp4", "tff=1");
    let mpeg4 = clip(&folder, "mpeg4.mp4", SOURCE, &["-c:v", "mpeg4", "-bf", "2", "-g", "50"]);
    for path in [&fields, &mpeg4] {
        assert_eq!(skipped_count(path), 0, "{}", path.display());
    }
}

#[test]
fn approximate_seeks_skip_as_well() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", SOURCE, X264);
    assert!(far_apart(&path, Some(RunStart::Demuxer)).samples_skipped > 20);
}

#[test]
fn session_that_has_skipped_goes_on_from_where_it_arrived() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", SOURCE, &[X264, &["-g", "100"]].concat());
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let truth = frames(&path, &header, "rgb24", 3);
    assert!(broker.frame(&index, 60, first(&header)) == truth[60]);
    let before = broker.report.pictures_decoded;
    for (position, truth) in truth.iter().enumerate().take(80).skip(61) {
        assert!(&broker.frame(&index, position, first(&header)) == truth, "frame {position}");
    }
    // One picture each, and none from the keyframe again.
    assert_eq!(broker.report.pictures_decoded - before, 19);
    assert!(broker.frame(&index, 59, first(&header)) == truth[59], "a frame that was left out before");
}

/// What decoders make up for what is missing depends on all that they were given before.
#[test]
fn damaged_streams_are_decoded_whole_from_where_decoding_begins() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mkv", "testsrc2=s=320x180:d=4", &[X264, &["-g", "100"]].concat());
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    // In the middle of a sample that others refer to.
    let begin = index.entries[0].position;
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() as i64;
    let middle = (begin + (last - begin) / 5) as usize;
    bytes[middle..middle + 40].fill(0x55);
    let damaged = folder.path().join("damaged.mkv");
    std::fs::write(&damaged, bytes).unwrap();
    let truth = frames(&damaged, &header, "rgb24", 3);
    assert_eq!(truth.len(), index.entries.len());
    assert!(truth != frames(&path, &header, "rgb24", 3), "the damage shows");
    for thread_count in [1, 4] {
        let (mut broker, _) = Broker::open(&damaged);
        broker.thread_count = thread_count;
        for position in [90, 45, 70, 20] {
            let frame = broker.frame(&index, position, first(&header));
            assert!(frame == truth[position], "frame {position} by {thread_count} threads");
        }
    }
}

/// No decoder complains of a sample that is not there at all; the numbers of the others tell.
#[test]
fn streams_that_lack_samples_are_decoded_whole() {
    let folder = TempDir::new().unwrap();
    let path = x264(&folder, "clip.mkv", "b-pyramid=none:ref=3:bframes=3:keyint=100");
    for (name, every, offset) in [("a.mkv", 11, 1), ("b.ts", 11, 2), ("c.mkv", 40, 2)] {
        let drop = format!("noise=drop=not(key)*eq(mod(n\\,{every})\\,{offset})");
        let lacking = remux(&path, name, &["-bsf:v", &drop]);
        let (mut broker, media) = Broker::open(&lacking);
        let header = video(&media).clone();
        let index = broker.scan();
        let truth = frames(&lacking, &header, "rgb24", 3);
        assert_eq!(truth.len(), index.entries.len());
        for thread_count in [1, 4] {
            for position in [80, 45, 70, 20, 63, 11] {
                let (mut broker, _) = Broker::open(&lacking);
                broker.scan();
                broker.thread_count = thread_count;
                let frame = broker.frame(&index, position, first(&header));
                assert!(frame == truth[position], "frame {position} of {name} by {thread_count} threads");
            }
        }
    }
}

#[test]
fn several_codec_threads_bring_the_same_pictures() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", SOURCE, &[X264, &["-g", "100"]].concat());
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let truth = frames(&path, &header, "rgb24", 3);
    for (position, thread_count) in [(80, 4), (5, 4), (99, 3), (98, 1), (40, 2), (41, 1), (3, 1)] {
        broker.thread_count = thread_count;
        let frame = broker.frame(&index, position, first(&header));
        assert!(frame == truth[position], "frame {position} by {thread_count} threads");
    }
}
