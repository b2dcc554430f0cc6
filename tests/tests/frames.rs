//! Frames by index and by time are those that the ffmpeg program decodes, byte for byte.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::File;

use reeld_client::{Client, Dtype, DtypeChoice, Error, Frames, MediaSource, OpenOptions, RequestOptions};
use reeld_client::{SeekMode, Transform, Video, Wanted};
use reeld_tests::{Daemon, Random, Reference, clip};

const CLIP: &str = "h264_bframes.mp4";
const WIDTH: usize = 320;
const HEIGHT: usize = 180;
const FRAME_COUNT: u64 = 50;

struct Scene {
    _daemon: Daemon,
    video: Video,
    reference: Reference,
}

fn scene(options: OpenOptions) -> Scene {
    let daemon = Daemon::start();
    let path = clip(CLIP);
    let video = daemon.client().open(&path, options).unwrap();
    let reference = Reference::new(&path, WIDTH, HEIGHT);
    Scene { _daemon: daemon, video, reference }
}

fn exact() -> Scene {
    scene(OpenOptions::default())
}

#[track_caller]
fn assert_same(frames: &Frames, reference: &Reference, indices: &[i64]) {
    assert_eq!(frames.part(0).unwrap().shape(), [indices.len(), HEIGHT, WIDTH, 3]);
    assert!(frames[..] == reference.frames(indices.iter().copied())[..], "other pixels than ffmpeg's");
}

#[test]
fn frames_that_come_leave_no_error_in_the_log() {
    let cache = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(&["--cache-dir", cache.path().to_str().unwrap()]);
    for index in 0..10 {
        // A new connection has a new arena, which a helper prepares; the first one finds no index on disk.
        let video = daemon.client().open(clip(CLIP), OpenOptions::default()).unwrap();
        video.frame_at(index).unwrap();
    }
    daemon.await_rest();
    let log = std::fs::read_to_string(daemon.folder().join("log")).unwrap();
    assert!(log.contains("engine started") && !log.contains("ERROR"), "{log}");
}

#[test]
fn key_frames_are_those_of_the_index() {
    let scene = exact();
    assert_eq!(scene.video.key_frames().unwrap(), [0, 25]);
}

#[test]
fn key_frames_that_need_several_replies_come_complete() {
    let daemon = Daemon::start();
    // All its frames are keyframes, and they are more than one reply has.
    let video = daemon.client().open(clip("all_keyframes.mkv"), OpenOptions::default()).unwrap();
    let frame_count = video.metadata().frame_count().unwrap();
    assert!(frame_count > 2 * 4096);
    assert_eq!(video.key_frames().unwrap(), (0..frame_count).collect::<Vec<_>>());
}

#[test]
fn key_frames_of_approximate_mode_are_unsupported() {
    let scene = scene(OpenOptions { seek_mode: SeekMode::Approximate, ..OpenOptions::default() });
    assert!(matches!(scene.video.key_frames(), Err(Error::Unsupported(_))));
}

#[test]
fn metadata_are_those_of_the_clip() {
    let scene = exact();
    let Scene { video, reference, .. } = &scene;
    let metadata = video.metadata();
    assert_eq!(metadata.frame_count(), Some(FRAME_COUNT));
    assert_eq!(reference.frame_count() as u64, FRAME_COUNT);
    assert_eq!((metadata.width(), metadata.height()), (WIDTH as u32, HEIGHT as u32));
    assert_eq!((metadata.codec(), metadata.average_fps()), ("h264", Some(25.0)));
    assert_eq!((metadata.begin_stream_seconds(), metadata.end_stream_seconds()), (0.0, Some(2.0)));
}

#[test]
fn frames_by_index_are_ffmpegs() {
    let scene = exact();
    let Scene { video, reference, .. } = &scene;
    let mut random = Random::new(1);
    for length in [1, 2, 7, 50] {
        let indices: Vec<i64> =
            (0..length).map(|_| random.below(2 * FRAME_COUNT) as i64 - FRAME_COUNT as i64).collect();
        assert_same(&video.frames_at(&indices).unwrap(), reference, &indices);
    }
}

#[test]
fn each_single_frame_is_ffmpegs() {
    let scene = exact();
    let Scene { video, reference, .. } = &scene;
    for index in (0..FRAME_COUNT as i64).rev() {
        let frames = video.frame_at(index).unwrap();
        assert_same(&frames, reference, &[index]);
        assert_eq!(frames.part(0).unwrap().pts_seconds(), [index as f64 / 25.0]);
        assert_eq!(frames.part(0).unwrap().duration_seconds(), [1.0 / 25.0]);
    }
}

#[test]
fn frames_in_a_range_are_ffmpegs() {
    let scene = exact();
    let Scene { video, reference, .. } = &scene;
    let all: Vec<i64> = (0..FRAME_COUNT as i64).collect();
    assert_same(&video.frames_in_range(0..FRAME_COUNT).unwrap(), reference, &all);
    let some: Vec<i64> = (3..47).step_by(10).collect();
    assert_same(&video.frames_in_range((3, 47, 10)).unwrap(), reference, &some);
}

#[test]
fn range_without_frames_is_empty() {
    let scene = exact();
    let Scene { video, .. } = &scene;
    let frames = video.frames_in_range(5..5).unwrap();
    assert_eq!((frames.frame_count(), frames.len()), (0, 0));
    assert_eq!(video.frames_at(&[]).unwrap().frame_count(), 0);
}

#[test]
fn frames_by_time_are_those_on_display_then() {
    let scene = exact();
    let Scene { video, reference, .. } = &scene;
    assert_same(&video.frame_played_at(0.5).unwrap(), reference, &[12]);
    let times = [0.0, 0.039, 0.04, 1.999, 1.0];
    assert_same(&video.frames_played_at(&times).unwrap(), reference, &[0, 0, 1, 49, 25]);
    let range = video.frames_played_in_range(0.5, 0.6).unwrap();
    assert_same(&range, reference, &[12, 13, 14]);
}

#[test]
fn approximate_mode_gives_the_same_frames_of_a_regular_clip() {
    let scene = scene(OpenOptions::new().seek_mode(SeekMode::Approximate));
    let Scene { video, reference, .. } = &scene;
    assert!(video.metadata().content().is_none());
    assert_same(&video.frames_at(&[0, 10, 49]).unwrap(), reference, &[0, 10, 49]);
}

#[test]
fn float_pixels_are_ffmpegs_16_bit_ones_divided_by_65535() {
    let scene = scene(OpenOptions::new().dtype(Dtype::Float32));
    let frames = scene.video.frames_at(&[7]).unwrap();
    let part = frames.part(0).unwrap();
    let reference = Reference::deep(&clip(CLIP), WIDTH, HEIGHT);
    let (values, _) = reference.frame(7).as_chunks::<2>();
    let expected: Vec<f32> =
        values.iter().map(|value| f32::from(u16::from_le_bytes(*value)) / 65535.0).collect();
    assert_eq!((part.dtype(), part.shape()), (Dtype::Float32, [1, HEIGHT, WIDTH, 3]));
    assert!(part.pixels_f32().unwrap() == expected);
}

/// Rows of a part of a whole frame.
fn cut(frame: &[u8], top: usize, left: usize, height: usize, width: usize) -> Vec<u8> {
    let rows = frame.chunks_exact(WIDTH * 3).skip(top).take(height);
    rows.flat_map(|row| &row[left * 3..(left + width) * 3]).copied().collect()
}

#[test]
fn several_looks_of_one_video_come_by_one_request() {
    let scene = exact();
    let Scene { video, reference, .. } = &scene;
    let crop =
        |top, left| video.transformed(&[Transform::Crop { top, left, height: 33, width: 21 }]).unwrap();
    let crops = [crop(0, 0), crop(100, 299)];
    let middle = crops[1].transformed(&[Transform::CenterCrop { height: 8, width: 10 }]).unwrap();
    let small = video.transformed(&[Transform::Resize { height: 45, width: 80 }]).unwrap();
    assert_eq!((middle.frame_height(), middle.frame_width(), middle.transforms().len()), (8, 10, 2));
    let wanted = || Wanted::Indices(vec![30, 3]);
    let videos = [video, &crops[0], &crops[1], &middle, &small];
    let frames = |client: &Client| {
        let pending = client.submit(&videos.map(|video| (video, wanted())), RequestOptions::new());
        pending.unwrap().wait().unwrap()
    };
    // Decoded, from the cache, and from frames that were kept.
    for round in 0..3 {
        let frames = frames(video.client());
        let pixels = |part: usize| frames.part(part).unwrap().pixels().to_vec();
        let expected = |top: usize, left: usize, height: usize, width: usize| -> Vec<u8> {
            let of = |index| cut(reference.frame(index), top, left, height, width);
            [of(30), of(3)].concat()
        };
        assert!(pixels(0) == expected(0, 0, HEIGHT, WIDTH), "round {round}");
        assert!(pixels(1) == expected(0, 0, 33, 21), "round {round}");
        assert!(pixels(2) == expected(100, 299, 33, 21), "round {round}");
        assert!(pixels(3) == expected(112, 305, 8, 10), "round {round}");
        assert_eq!(frames.part(4).unwrap().shape(), [2, 45, 80, 3]);
    }
}

#[test]
fn transforms_that_do_not_fit_are_refused_before_anything_is_asked() {
    let scene = exact();
    let (height, width) = (HEIGHT as u32, WIDTH as u32);
    let wrong = [
        Transform::Resize { height: 0, width: 5 },
        Transform::CenterCrop { height: height + 1, width: 5 },
        Transform::Crop { top: 0, left: 1, height, width },
    ];
    for transform in wrong {
        let refused = scene.video.transformed(&[transform]);
        assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{transform:?}");
    }
}

#[test]
fn type_by_depth_is_float_above_8_bits() {
    let daemon = Daemon::start();
    let dtype_of = |name| {
        let options = OpenOptions::new().dtype(DtypeChoice::ByDepth);
        let video = daemon.client().open(clip(name), options).unwrap();
        let depth = video.metadata().video().bit_depth;
        (depth, video.dtype(), video.frame_at(0).unwrap().part(0).unwrap().dtype())
    };
    assert_eq!(dtype_of("h264_10bit.mp4"), (Some(10), Dtype::Float32, Dtype::Float32));
    assert_eq!(dtype_of(CLIP), (Some(8), Dtype::Uint8, Dtype::Uint8));
}

#[test]
fn open_file_and_bytes_are_sources_too() {
    let daemon = Daemon::start();
    let (client, path) = (daemon.client(), clip(CLIP));
    let reference = Reference::new(&path, WIDTH, HEIGHT);
    let file = MediaSource::File(File::open(&path).unwrap(), "my file".into());
    for source in [file, std::fs::read(&path).unwrap().into()] {
        let video = client.open(source, OpenOptions::default()).unwrap();
        assert_same(&video.frames_at(&[40, 2]).unwrap(), &reference, &[40, 2]);
    }
}

#[test]
fn ten_thousand_indices_travel_beside_the_message() {
    let daemon = Daemon::start();
    let path = clip("many_frames.mp4");
    let video = daemon.client().open(&path, OpenOptions::default()).unwrap();
    let reference = Reference::new(&path, 64, 48);
    let mut random = Random::new(2);
    let count = reference.frame_count() as u64;
    let indices: Vec<i64> = (0..10_000).map(|_| random.below(count) as i64).collect();
    let frames = video.frames_at(&indices).unwrap();
    assert!(frames[..] == reference.frames(indices.iter().copied())[..]);
    let times: Vec<f64> = indices.iter().map(|index| (*index as f64 + 0.5) / 25.0).collect();
    let by_time = video.frames_played_at(&times).unwrap();
    assert!(by_time[..] == frames[..]);
}

#[test]
fn stream_is_chosen_by_its_index() {
    let daemon = Daemon::start();
    let options = OpenOptions::new().stream(1);
    let video = daemon.client().open(clip("two_videos.mkv"), options).unwrap();
    assert_eq!((video.metadata().stream_index(), video.metadata().width()), (1, 224));
    let best = daemon.client().open(clip("audio_then_video.mp4"), OpenOptions::default()).unwrap();
    assert_eq!(best.metadata().stream_index(), 1);
}
