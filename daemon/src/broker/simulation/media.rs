//! The files of the simulation: what an engine would find in them, and what a picture of them looks like. One tick
//! of ten is a tenth of a second, and each frame lasts a second, so that everything is told by arithmetic.

use std::os::fd::OwnedFd;

use reeld_protocol::SealedMemfd;
use reeld_protocol::Transform;
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::mapping::{self, MappedFrame};
use reeld_protocol::metadata::{MediaMetadata, MediaType, Rational, StreamMetadata, VideoHeader};

use crate::link::index::{Index, IndexEntry};
use crate::link::{ContentDigest, Target};

const TICKS_PER_FRAME: i64 = 10;
const TIME_BASE: Rational = Rational { numerator: 1, denominator: 10 };

/// One file.
#[derive(Debug)]
pub struct SimulatedFile {
    /// Its position among the files.
    pub number: usize,
    /// How many frames there are.
    pub frame_count: u64,
    /// Every so many frames there is a keyframe.
    pub gop: u64,
    /// Rows of a frame.
    pub height: u32,
    /// Columns of a frame.
    pub width: u32,
    /// What clients send: a sealed memfd, which is a regular file too.
    fd: OwnedFd,
}

impl SimulatedFile {
    /// All files there are: tiny frames, of which many fit into anything; large ones, of which few fit into a
    /// quota; and a single frame.
    #[allow(clippy::expect_used, reason = "without memory there is no simulation")]
    pub fn all() -> Vec<SimulatedFile> {
        let shapes = [(40, 10, 2, 2), (12, 4, 96, 128), (1, 1, 16, 16)];
        let file = |(number, (frame_count, gop, height, width))| {
            let memory = SealedMemfd::new("simulated", &[number as u8; 8]).expect("a memfd");
            SimulatedFile { number, frame_count, gop, height, width, fd: memory.into_fd() }
        };
        shapes.into_iter().enumerate().map(file).collect()
    }

    /// Another descriptor of it.
    #[allow(clippy::expect_used, reason = "without descriptors there is no simulation")]
    pub fn fd(&self) -> OwnedFd {
        self.fd.try_clone().expect("a descriptor")
    }

    /// What a probe finds: a stream without pictures, and the video.
    pub fn media(&self) -> MediaMetadata {
        let stream = |number, video: Option<VideoHeader>| StreamMetadata {
            stream_index: StreamIndex(number),
            media_type: if video.is_some() { MediaType::Video } else { MediaType::Data },
            codec: "simulated".into(),
            time_base: TIME_BASE,
            bit_rate: 0,
            duration_seconds_from_header: Some(self.frame_count as f64),
            begin_stream_seconds_from_header: Some(0.0),
            video,
            audio: None,
        };
        let video = VideoHeader {
            width: self.width,
            height: self.height,
            num_frames_from_header: Some(self.frame_count as i64),
            average_fps_from_header: Some(1.0),
            sample_aspect_ratio: Rational { numerator: 0, denominator: 1 },
            rotation_degrees: None,
            color_primaries: None,
            color_space: None,
            color_transfer_characteristic: None,
            pixel_format: None,
            bit_depth: None,
        };
        MediaMetadata {
            format: "simulated".into(),
            duration_seconds_from_header: None,
            bit_rate: None,
            best_video_stream: Some(StreamIndex(1)),
            best_audio_stream: None,
            streams: vec![stream(0, None), stream(1, Some(video))],
        }
    }

    /// What it begins and ends with.
    pub fn content(&self) -> ContentDigest {
        ContentDigest([self.number as u8; 32])
    }

    /// What a scan finds.
    pub fn index(&self) -> Index {
        let entry = |frame: u64| IndexEntry {
            pts: frame as i64 * TICKS_PER_FRAME,
            duration: TICKS_PER_FRAME,
            position: -1,
            is_key: frame.is_multiple_of(self.gop),
            is_reference: true,
        };
        Index::new(TIME_BASE, (0..self.frame_count).map(entry).collect())
    }

    /// What a client says that a scan would find: the right times, and keyframes where there are none.
    #[allow(clippy::expect_used, reason = "without memory there is no simulation")]
    pub fn mapping(&self) -> OwnedFd {
        let frame = |frame: u64| MappedFrame {
            pts: frame as i64 * TICKS_PER_FRAME,
            duration: TICKS_PER_FRAME,
            is_key: frame % 7 == 3,
        };
        let frames: Vec<_> = (0..self.frame_count).map(frame).collect();
        let bytes = mapping::to_bytes(&frames).expect("frames");
        SealedMemfd::new("simulated", &bytes).expect("a memfd").into_fd()
    }

    /// What stands where the time of a frame would: a number that no other frame of any file has.
    pub fn stamp(&self, frame: u64) -> f64 {
        (self.number as u64 * 1000 + frame) as f64
    }

    /// The stamp of the picture that a target means.
    pub fn stamp_of(&self, target: Target) -> f64 {
        match target {
            Target::AtOrAfter(pts) => self.stamp((pts / TICKS_PER_FRAME) as u64),
            Target::PlayedAt(seconds) => self.stamp(seconds as u64),
        }
    }
}

/// What all bytes of a picture with this stamp are, after these transforms.
pub fn paint(stamp: f64, transforms: &[Transform]) -> u8 {
    let transform = |transform: &Transform| match *transform {
        Transform::Resize { height, width } => 3 * height + 5 * width,
        Transform::Crop { top, left, .. } => 7 * top + 11 * left + 1,
        Transform::CenterCrop { .. } => 2,
    };
    let shade: u64 = transforms.iter().map(transform).map(u64::from).sum();
    ((stamp as u64 + shade) % 251) as u8
}
