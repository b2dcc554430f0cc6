//! Formats without times, such as elementary streams: each frame is the one that decoding in order brings.

use reeld_protocol::message::Dtype;
use tempfile::TempDir;

use super::{Broker, assert_random_access_equals_ffmpeg, clip, first, frames, video, wanted};
use crate::link::{RunStart, Target};

#[test]
fn formats_without_times_are_read_in_order() {
    let folder = TempDir::new().unwrap();
    let source = "testsrc2=s=176x144:r=25:d=2";
    let hevc = ["-c:v", "libx265", "-x265-params", "log-level=none:keyint=12:open-gop=1"];
    let clips: [(&str, &[&str]); 9] = [
        ("clip.m2v", &["-c:v", "mpeg2video", "-bf", "2", "-g", "12"]),
        ("clip.m1v", &["-c:v", "mpeg1video", "-bf", "2", "-g", "9"]),
        ("clip.m4v", &["-c:v", "mpeg4", "-bf", "2", "-g", "12"]),
        ("clip.h263", &["-c:v", "h263"]),
        ("clip.mjpeg", &["-c:v", "mjpeg"]),
        ("clip.png", &["-c:v", "png", "-f", "image2pipe"]),
        ("clip.h264", &["-c:v", "libx264", "-bf", "3", "-g", "12"]),
        ("clip.hevc", &hevc),
        ("clip.obu", &["-c:v", "libaom-av1", "-cpu-used", "8", "-g", "10", "-frames:v", "25"]),
    ];
    for (name, encoder) in clips {
        assert_random_access_equals_ffmpeg(&clip(&folder, name, source, encoder));
    }
}

#[test]
fn times_of_a_format_without_times_are_those_of_the_index() {
    let folder = TempDir::new().unwrap();
    let mpeg2 = ["-c:v", "mpeg2video", "-bf", "2", "-g", "12"];
    let path = clip(&folder, "clip.m2v", "testsrc2=s=640x360:r=10:d=8", &mpeg2);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let truth = frames(&path, &header, "rgb24", 3);
    // The first is more than a turn away, and the others lie behind it.
    for position in [79, 40, 0] {
        let seconds = position as f64 / 10.0;
        let wanted = wanted(0, &header, Target::PlayedAt(seconds + 0.05), Dtype::Uint8);
        assert_eq!(broker.decode(RunStart::Demuxer, &[wanted]).0, []);
        assert!(broker.pixels(&wanted) == truth[position], "frame {position}");
        assert_eq!(broker.seconds(wanted.destination.pts_offset), seconds);
    }
}

#[test]
fn pictures_that_need_no_other_are_left_out_on_the_way() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mjpeg", "testsrc2=s=176x144:d=2", &["-c:v", "mjpeg"]);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let truth = frames(&path, &header, "rgb24", 3);
    // The last goes on from the first; a session that has passed what is wanted begins anew.
    for (position, skipped_count) in [(30, 30), (10, 10), (45, 14)] {
        let before = broker.report.samples_skipped;
        assert!(broker.frame(&index, position, first(&header)) == truth[position], "frame {position}");
        assert_eq!(broker.report.samples_skipped - before, skipped_count, "frame {position}");
    }
}
