//! Frames that were resized and cropped, against FFmpeg's own tool.

use std::path::Path;

use reeld_protocol::Transform;
use reeld_protocol::message::Dtype;
use tempfile::TempDir;

use super::{Broker, H264, clip, ffmpeg, first, remux, start_of, video, wanted};
use crate::link::{Destination, EngineError, LookIndex, Target, WantedPicture};

/// All frames through these filters, as FFmpeg's own tool computes them, one after the other.
fn filtered_stream(path: &Path, filters: &str) -> Vec<u8> {
    let path = path.to_str().unwrap();
    let output = ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
    ffmpeg(&[&["-noautorotate", "-i", path, "-vf", filters], &output[..]].concat())
}

/// The first frame through these filters.
fn filtered(path: &Path, filters: &str, (height, width): (u32, u32)) -> Vec<u8> {
    let mut stream = filtered_stream(path, filters);
    stream.truncate((height * width * 3) as usize);
    stream
}

fn sized(wanted: WantedPicture, look: u8, (height, width): (u32, u32)) -> WantedPicture {
    let destination = Destination { height, width, look: LookIndex(look), ..wanted.destination };
    WantedPicture { destination, ..wanted }
}

#[test]
fn transformed_frames_equal_ffmpeg() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=162x94:d=1", H264);
    let turned = remux(&path, "turned.mp4", &["-metadata:s:v", "rotate=90"]);
    let resize = Transform::Resize { height: 64, width: 96 };
    let crop = Transform::Crop { top: 11, left: 7, height: 33, width: 21 };
    let center = Transform::CenterCrop { height: 33, width: 21 };
    let looks = [
        (vec![resize], "scale=96:64:flags=bilinear"),
        (vec![crop], "crop=21:33:7:11:exact=1"),
        (vec![center], "crop=21:33:exact=1"),
        (vec![resize, crop, center], "scale=96:64:flags=bilinear,crop=21:33:7:11:exact=1"),
        (vec![center, resize], "crop=21:33:exact=1,scale=96:64:flags=bilinear"),
        (vec![resize, resize], "scale=96:64:flags=bilinear"),
    ];
    for (path, turn) in [(path, "format=rgb24,"), (turned, "format=rgb24,transpose=cclock,")] {
        let (mut broker, media) = Broker::open(&path);
        let header = video(&media).clone();
        let index = broker.scan();
        for (transforms, filters) in &looks {
            broker.looks = vec![vec![], transforms.clone()];
            let size = transforms.last().unwrap().result_size();
            let frame = broker.frame(&index, 0, sized(first(&header), 1, size));
            assert!(
                frame == filtered(&path, &format!("{turn}{filters}"), size),
                "{} {filters}",
                path.display()
            );
        }
    }
}

#[test]
fn one_picture_serves_several_looks_of_one_run() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let mut broker = Broker::new(16 << 20);
    broker.add_source(&path);
    let header = video(&broker.probe().unwrap()).clone();
    let index = broker.scan();
    let crop = |left| vec![Transform::Crop { top: 0, left, height: 96, width: 32 }];
    broker.looks = vec![vec![], crop(0), crop(64), vec![Transform::Resize { height: 48, width: 64 }]];
    let sizes = [(96, 160), (96, 32), (96, 32), (48, 64)];
    let at = |slot: u8| wanted(u64::from(slot), &header, Target::AtOrAfter(0), Dtype::Uint8);
    let all: Vec<WantedPicture> =
        (0..4).map(|slot| sized(at(slot), slot, sizes[usize::from(slot)])).collect();
    let columns = |left: usize| -> Vec<u8> {
        let whole = filtered(&path, "null", (96, 160));
        whole.chunks_exact(160 * 3).flat_map(|row| row[left * 3..(left + 32) * 3].to_vec()).collect()
    };
    // Decoded; from the native picture; from the frames that were kept of it.
    for round in 0..3 {
        assert_eq!(broker.decode(start_of(&index, 0), &all).0, []);
        assert!(broker.pixels(&all[0]) == filtered(&path, "null", (96, 160)), "round {round}");
        assert!(broker.pixels(&all[1]) == columns(0), "round {round}");
        assert!(broker.pixels(&all[2]) == columns(64), "round {round}");
    }
}

#[test]
fn picture_of_another_size_is_resized_and_not_cropped_beyond_its_edge() {
    let folder = TempDir::new().unwrap();
    let later = [H264, &["-output_ts_offset", "10"]].concat();
    let small = clip(&folder, "small.ts", "testsrc2=s=96x64:d=1", &later);
    let large = clip(&folder, "large.ts", "testsrc2=s=160x96:d=1", H264);
    let path = folder.path().join("both.ts");
    std::fs::write(&path, [std::fs::read(large).unwrap(), std::fs::read(&small).unwrap()].concat()).unwrap();
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let last = index.entries.len() - 1;
    let crop = |height| Transform::Crop { top: 30, left: 90, height, width: 64 };
    broker.looks = vec![vec![Transform::Resize { height: 48, width: 64 }], vec![crop(64)], vec![crop(65)]];
    let truth = |filters: &str, bytes: usize| {
        let stream = filtered_stream(&small, filters);
        stream[stream.len() - bytes..].to_vec()
    };
    // Both widths are multiples of 32: TorchCodec's way there is not the tool's, and differs from it by rounding. That
    // it is TorchCodec's to the bit is tested in Python, beside TorchCodec.
    let resized = broker.frame(&index, last, sized(first(&header), 0, (48, 64)));
    let scaled = truth("format=rgb24,scale=64:48:flags=bilinear", 64 * 48 * 3);
    assert!(resized.iter().zip(&scaled).all(|(ours, theirs)| ours.abs_diff(*theirs) <= 1));
    // The crop begins as far down and right as there is room for it.
    let cropped = broker.frame(&index, last, sized(first(&header), 1, (64, 64)));
    assert!(cropped == truth("format=rgb24,crop=64:64:32:0:exact=1", 64 * 64 * 3));
    let target = Target::AtOrAfter(index.entries[last].pts);
    let too_large = WantedPicture { target, ..sized(first(&header), 2, (65, 64)) };
    let (failed, _) = broker.decode(start_of(&index, last), &[too_large]);
    assert!(matches!(failed[..], [(_, EngineError::Media(_))]));
}
