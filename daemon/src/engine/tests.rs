//! The whole engine, driven over its socket as the broker does, against what the `ffmpeg` command decodes.
//!
//! What does not live here: comparison with TorchCodec; that is a Python test's.

mod ahead;
mod cutting;
mod looks;
mod skipping;
mod timeless;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use reeld_protocol::arena::{Arena, create_arena};
use reeld_protocol::frame::{FrameReader, Outbox};
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::message::{Dtype, Message};
use reeld_protocol::metadata::{MediaMetadata, VideoHeader};
use rustix::net::{RecvFlags, SendFlags};
use tempfile::TempDir;

use super::{Settings, serve_in_cage};
use crate::link::index::Index;
use crate::link::{
    ArenaKey, CatalogId, Destination, EngineError, EngineReply, EngineReport, EngineRequest, FileIdentity,
    JobId, LookIndex, Looks, Run, RunStart, Target, WantedId, WantedPicture,
};

const SOURCE: CatalogId = CatalogId(1);
const STREAM: StreamIndex = StreamIndex(0);
const ARENA: ArenaKey = ArenaKey(1);
const ARENA_BYTES: u64 = 64 << 20;
/// Distance of two frames' destinations; the times lie behind the pixels.
const SLOT_BYTES: u64 = 1 << 20;
const TIMES_OFFSET: u64 = SLOT_BYTES - 16;

const H264: &[&str] = &["-c:v", "libx264", "-bf", "3", "-g", "20"];

fn ffmpeg(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "ffmpeg {arguments:?}");
    output.stdout
}

fn clip(folder: &TempDir, name: &str, source: &str, encoder: &[&str]) -> PathBuf {
    let path = folder.path().join(name);
    let input = ["-f", "lavfi", "-i", source];
    ffmpeg(&[&input, encoder, &[path.to_str().unwrap()]].concat());
    path
}

fn remux(path: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let copy = path.with_file_name(name);
    ffmpeg(&[&["-i", path.to_str().unwrap(), "-c", "copy"], arguments, &[copy.to_str().unwrap()]].concat());
    copy
}

/// All frames as FFmpeg's own tool converts them. What it makes of damaged ones depends on its threads.
fn frames(path: &Path, header: &VideoHeader, pixel_format: &str, pixel_bytes: usize) -> Vec<Vec<u8>> {
    let path = path.to_str().unwrap();
    let output = ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", pixel_format, "-"];
    let bytes = ffmpeg(&[&["-threads", "1", "-i", path, "-map", "0:v:0"], &output[..]].concat());
    let frame_bytes = header.width as usize * header.height as usize * pixel_bytes;
    bytes.chunks_exact(frame_bytes).map(<[u8]>::to_vec).collect()
}

/// The other end of an engine's socket.
struct Broker {
    socket: UnixStream,
    reader: FrameReader,
    arena: Arena,
    job: u64,
    /// What runs may name.
    looks: Looks,
    /// Codec threads of the runs to come.
    thread_count: u16,
    /// What all runs have done, and what is held since the last.
    report: EngineReport,
}

impl Broker {
    fn new(cache_bytes_max: usize) -> Self {
        let (socket, engine) = UnixStream::pair().unwrap();
        let settings =
            Settings { cache_bytes_max, memory_mib: 8192, session_bytes_max: 64 << 20, is_verbose: false };
        thread::spawn(move || serve_in_cage(engine.into(), settings).unwrap());
        let memory = create_arena(ARENA_BYTES).unwrap();
        let arena = Arena::map(&memory, ARENA_BYTES).unwrap();
        let mut broker = Broker {
            socket,
            reader: FrameReader::new(),
            arena,
            job: 0,
            looks: vec![vec![]],
            thread_count: 0,
            report: EngineReport::default(),
        };
        assert!(matches!(broker.receive(), (EngineReply::Ready { .. }, None)));
        broker.send(&EngineRequest::AddArena { arena: ARENA, bytes: ARENA_BYTES }, Some(memory));
        broker
    }

    fn open(path: &Path) -> (Self, MediaMetadata) {
        let mut broker = Broker::new(0);
        broker.add_source(path);
        let media = broker.probe().unwrap();
        (broker, media)
    }

    fn send(&mut self, request: &EngineRequest, fd: Option<OwnedFd>) {
        let mut outbox = Outbox::new();
        outbox.push(request, 0, fd.map(Arc::new).into_iter().collect()).unwrap();
        outbox.send(&self.socket, SendFlags::empty()).unwrap();
    }

    fn receive(&mut self) -> (EngineReply, Option<OwnedFd>) {
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                let reply = EngineReply::decode(frame.header.kind, &frame.body).unwrap().unwrap();
                return (reply, frame.fds.into_iter().next());
            }
            self.reader.receive(&self.socket, RecvFlags::empty()).unwrap();
        }
    }

    fn add_source(&mut self, path: &Path) {
        let file = File::open(path).unwrap();
        let stat = file.metadata().unwrap();
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let identity = FileIdentity {
            device: stat.dev(),
            inode: stat.ino(),
            size_bytes: stat.size(),
            modified_nanos: nanos(stat.mtime(), stat.mtime_nsec()),
            changed_nanos: nanos(stat.ctime(), stat.ctime_nsec()),
        };
        self.send(&EngineRequest::AddSource { source: SOURCE, identity }, Some(file.into()));
    }

    fn next_job(&mut self) -> JobId {
        self.job += 1;
        JobId(self.job)
    }

    fn probe(&mut self) -> Result<MediaMetadata, EngineError> {
        let job = self.next_job();
        self.send(&EngineRequest::Probe { job, source: SOURCE }, None);
        match self.receive().0 {
            EngineReply::Probed { media, .. } => Ok(media),
            EngineReply::JobFailed { error, .. } => Err(error),
            other => panic!("{other:?} does not answer a probe"),
        }
    }

    fn scan(&mut self) -> Index {
        let job = self.next_job();
        loop {
            self.send(&EngineRequest::Scan { job, source: SOURCE, stream: STREAM }, None);
            match self.receive() {
                (EngineReply::ScanYielded { .. }, None) => {}
                (EngineReply::Scanned { .. }, Some(memory)) => {
                    let length = rustix::fs::fstat(&memory).unwrap().st_size as usize;
                    let mut bytes = vec![0; length];
                    assert_eq!(rustix::io::pread(&memory, &mut bytes[..], 0).unwrap(), length);
                    return Index::from_bytes(&bytes).unwrap();
                }
                other => panic!("{other:?} does not answer a scan"),
            }
        }
    }

    /// Decodes until all is settled. Returns what failed and how many turns it took.
    fn decode(&mut self, start: RunStart, wanted: &[WantedPicture]) -> (Vec<(WantedId, EngineError)>, usize) {
        let (mut failures, mut turns) = (Vec::new(), 0);
        let mut open = wanted.to_vec();
        while !open.is_empty() {
            let job = self.next_job();
            let (wanted, looks) = (open.clone(), self.looks.clone());
            let thread_count = self.thread_count;
            let run = Run { source: SOURCE, stream: STREAM, start, wanted, looks, thread_count };
            self.send(&EngineRequest::Decode { job, run }, None);
            let (finished, failed) = self.run_ended();
            turns += 1;
            open.retain(|wanted| !finished.contains(&wanted.id));
            open.retain(|wanted| !failed.iter().any(|(id, _)| *id == wanted.id));
            failures.extend(failed);
        }
        (failures, turns)
    }

    fn run_ended(&mut self) -> (Vec<WantedId>, Vec<(WantedId, EngineError)>) {
        match self.receive().0 {
            EngineReply::RunEnded { finished, failed, report, .. } => {
                let pictures_decoded = self.report.pictures_decoded + report.pictures_decoded;
                let samples_skipped = self.report.samples_skipped + report.samples_skipped;
                self.report = EngineReport { pictures_decoded, samples_skipped, ..report };
                (finished, failed)
            }
            other => panic!("{other:?} does not answer a run"),
        }
    }

    /// One frame by its position in the index, each with a run of its own.
    fn frame(&mut self, index: &Index, position: usize, wanted: WantedPicture) -> Vec<u8> {
        let wanted = WantedPicture { target: Target::AtOrAfter(index.entries[position].pts), ..wanted };
        assert_eq!(self.decode(start_of(index, position), &[wanted]).0, []);
        self.pixels(&wanted)
    }

    fn pixels(&self, wanted: &WantedPicture) -> Vec<u8> {
        let destination = wanted.destination;
        let bytes =
            u64::from(destination.height) * u64::from(destination.width) * 3 * destination.dtype.bytes();
        self.bytes(destination.pixels_offset, bytes)
    }

    fn seconds(&self, offset: u64) -> f64 {
        f64::from_le_bytes(self.bytes(offset, 8).try_into().unwrap())
    }

    fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        let address = self.arena.slice(offset, length).unwrap();
        // SAFETY: the range lies in the mapping, and the engine has answered: nobody writes there.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), length as usize) }.to_vec()
    }
}

fn start_of(index: &Index, position: usize) -> RunStart {
    let keyframes = index.keyframes.iter().map(|&keyframe| keyframe as usize);
    match keyframes.take_while(|&keyframe| keyframe <= position).last() {
        Some(keyframe) => RunStart::Keyframe(index.entries[keyframe].pts),
        None => RunStart::Demuxer,
    }
}

fn video(media: &MediaMetadata) -> &VideoHeader {
    media.streams[0].video.as_ref().unwrap()
}

fn wanted(slot: u64, header: &VideoHeader, target: Target, dtype: Dtype) -> WantedPicture {
    let offset = slot * SLOT_BYTES;
    let destination = Destination {
        arena: ARENA,
        pixels_offset: offset,
        pts_offset: offset + TIMES_OFFSET,
        duration_offset: offset + TIMES_OFFSET + 8,
        height: header.height,
        width: header.width,
        dtype,
        look: LookIndex(0),
    };
    WantedPicture { id: WantedId(slot), target, destination }
}

fn first(header: &VideoHeader) -> WantedPicture {
    wanted(0, header, Target::AtOrAfter(0), Dtype::Uint8)
}

/// Frames in an order that goes forward and backward, near and far.
fn assert_random_access_equals_ffmpeg(path: &Path) {
    let (mut broker, media) = Broker::open(path);
    let header = video(&media).clone();
    let index = broker.scan();
    let truth = frames(path, &header, "rgb24", 3);
    assert_eq!(index.entries.len(), truth.len(), "{}", path.display());
    let count = truth.len();
    for position in (0..24).map(|step| (step * step * 7 + step * 3) % count) {
        let frame = broker.frame(&index, position, first(&header));
        assert!(frame == truth[position], "frame {position} of {}", path.display());
    }
}

#[test]
fn random_access_equals_ffmpeg_for_each_codec() {
    let folder = TempDir::new().unwrap();
    let hevc = ["-c:v", "libx265", "-x265-params", "log-level=none:keyint=20:open-gop=1"];
    let ten_bits = [&hevc[..], &["-pix_fmt", "yuv420p10le"]].concat();
    let open_gop = ["-c:v", "libx264", "-x264-params", "keyint=20:min-keyint=20:open-gop=1:scenecut=0"];
    let clips: [(&str, &str, &[&str]); 8] = [
        ("h264.mp4", "testsrc2=s=160x96:d=3", H264),
        ("h264-open.mkv", "testsrc2=s=160x96:d=3", &open_gop),
        ("h264-odd.mp4", "testsrc2=s=162x98:d=3", H264),
        ("hevc.mp4", "testsrc2=s=160x96:d=3", &hevc),
        ("hevc-10.mp4", "testsrc2=s=160x96:d=3", &ten_bits),
        ("vp9.webm", "testsrc2=s=161x97:d=2", &["-c:v", "libvpx-vp9", "-deadline", "realtime", "-g", "15"]),
        ("av1.mp4", "testsrc2=s=160x96:d=1", &["-c:v", "libaom-av1", "-cpu-used", "8", "-g", "10"]),
        ("mpeg4.mp4", "testsrc2=s=160x96:d=2", &["-c:v", "mpeg4", "-bf", "2", "-g", "12"]),
    ];
    for (name, source, encoder) in clips {
        assert_random_access_equals_ffmpeg(&clip(&folder, name, source, encoder));
    }
}

#[test]
fn demuxers_that_overshoot_are_caught() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=3", H264);
    assert_random_access_equals_ffmpeg(&remux(&path, "clip.ts", &[]));
    let refresh = ["-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=20"];
    assert_random_access_equals_ffmpeg(&clip(&folder, "refresh.mp4", "testsrc2=s=160x96:d=2", &refresh));
}

#[test]
fn where_seeks_overshoot_decoding_begins_at_the_same_keyframes() {
    let folder = TempDir::new().unwrap();
    let short_gops = ["-c:v", "libx264", "-bf", "2", "-g", "4"];
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:r=25:d=6", &short_gops);
    let pictures_decoded = [path.clone(), remux(&path, "clip.ts", &[])].map(|path| {
        let (mut broker, media) = Broker::open(&path);
        let header = video(&media).clone();
        let index = broker.scan();
        let truth = frames(&path, &header, "rgb24", 3);
        for position in (0..150).step_by(8).rev() {
            assert!(broker.frame(&index, position, first(&header)) == truth[position], "frame {position}");
        }
        broker.report.pictures_decoded
    });
    assert_eq!(pictures_decoded[0], pictures_decoded[1]);
}

/// From the last keyframe of an open GOP the decoder does not recover before the stream is over.
#[test]
fn last_frames_of_an_open_gop_are_reached_from_further_back() {
    let folder = TempDir::new().unwrap();
    // MPEG-TS is sought by decoding times: the point one second before leads to the same keyframe.
    let kinds = [("mp4", "bframes=7:ref=8:keyint=16", 97..102), ("ts", "bframes=8:ref=3:keyint=25", 59..63)];
    for (format, keyframes, counts) in kinds {
        let open_gop = format!("open-gop=1:scenecut=0:b-adapt=0:{keyframes}");
        for count in counts {
            let source = format!("testsrc2=s=160x96:r=25,trim=end_frame={count}");
            let encoder = ["-c:v", "libx264", "-x264-params", &open_gop];
            let path = clip(&folder, &format!("{count}.{format}"), &source, &encoder);
            let truth = frames(&path, video(&Broker::open(&path).1), "rgb24", 3);
            for position in [count - 1, count - 2, count - 6] {
                let (mut broker, media) = Broker::open(&path);
                let index = broker.scan();
                // Once with a new decoder for each that is kept, and then with one of those.
                for time in 0..5 {
                    let frame = broker.frame(&index, position, first(video(&media)));
                    assert!(frame == truth[position], "frame {position} of {count}.{format}, time {time}");
                }
            }
        }
    }
}

#[test]
fn picture_that_never_comes_is_given_up_although_the_way_takes_many_turns() {
    let folder = TempDir::new().unwrap();
    let encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-g", "1000"];
    let path = clip(&folder, "whole.mp4", "testsrc2=s=640x360:r=25:d=16", &encoder);
    let mut bytes = std::fs::read(&path).unwrap();
    let [samples, tables] =
        [b"mdat", b"moov"].map(|name| bytes.windows(4).rposition(|four| four == name).unwrap() - 4);
    // Each unit has its length before it.
    let (mut last, mut next) = (0, samples + 8);
    while next < tables {
        let length = u32::from_be_bytes(bytes[next..next + 4].try_into().unwrap()) as usize;
        (last, next) = (next + 4, next + 4 + length);
    }
    assert_eq!((next, bytes[last] & 31), (tables, 1), "a slice is the last unit");
    const END_OF_SEQUENCE: u8 = 10;
    bytes[last] = END_OF_SEQUENCE;
    std::fs::write(&path, bytes).unwrap();
    let (mut broker, media) = Broker::open(&path);
    let index = broker.scan();
    let header = video(&media).clone();
    let position = index.entries.len() - 1;
    for _ in 0..2 {
        let lost = wanted(0, &header, Target::AtOrAfter(index.entries[position].pts), Dtype::Uint8);
        let (failures, turns) = broker.decode(start_of(&index, position), &[lost]);
        assert_eq!(failures.len(), 1, "after {turns} turns");
        assert!(matches!(&failures[0].1, EngineError::Media(_)), "{failures:?}");
    }
}

#[test]
fn target_that_needs_turns_after_a_missed_landing_is_reached() {
    let folder = TempDir::new().unwrap();
    let refresh = ["-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=40"];
    let path = clip(&folder, "refresh.mp4", "testsrc2=s=640x360:d=4", &refresh);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let wanted = wanted(0, &header, Target::PlayedAt(3.5), Dtype::Uint8);
    assert_eq!(broker.decode(RunStart::Demuxer, &[wanted]).0, []);
    assert_eq!(broker.seconds(wanted.destination.pts_offset), 3.48);
}

#[test]
fn rotated_frames_equal_ffmpeg() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    // The tool would turn the picture before it converts, which moves chroma; so it is made to convert first.
    let turns = [
        ("90", "format=rgb24,transpose=cclock"),
        ("180", "format=rgb24,hflip,vflip"),
        ("270", "format=rgb24,transpose=clock"),
    ];
    for (degrees, filter) in turns {
        let turned =
            remux(&path, &format!("{degrees}.mp4"), &["-metadata:s:v", &format!("rotate={degrees}")]);
        let (mut broker, media) = Broker::open(&turned);
        let header = video(&media).clone();
        let index = broker.scan();
        let truth = ffmpeg(&[
            "-noautorotate",
            "-i",
            turned.to_str().unwrap(),
            "-vf",
            filter,
            "-frames:v",
            "1",
            "-f",
            "rawvideo",
            "-",
        ]);
        assert!(broker.frame(&index, 0, first(&header)) == truth, "{degrees} degrees");
    }
}

#[test]
fn float_frames_are_sixteen_bits_over_the_maximum() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let frame = broker.frame(&index, 3, wanted(0, &header, Target::AtOrAfter(0), Dtype::Float32));
    let truth = &frames(&path, &header, "rgb48le", 6)[3];
    let truth: Vec<u8> = truth
        .as_chunks::<2>()
        .0
        .iter()
        .flat_map(|value| (f32::from(u16::from_le_bytes(*value)) / 65535.0).to_le_bytes())
        .collect();
    assert!(frame == truth);
}

#[test]
fn run_over_all_frames_is_resumed_until_it_is_done() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=640x360:d=2", &["-c:v", "libx264", "-g", "100"]);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let all: Vec<WantedPicture> = (0..index.entries.len())
        .map(|position| {
            wanted(position as u64, &header, Target::AtOrAfter(index.entries[position].pts), Dtype::Uint8)
        })
        .collect();
    let (failures, turns) = broker.decode(start_of(&index, 0), &all);
    assert_eq!(failures, []);
    assert!(turns > 1, "fifty frames take more than one turn");
    let truth = frames(&path, &header, "rgb24", 3);
    for (wanted, truth) in all.iter().zip(truth) {
        assert!(broker.pixels(wanted) == truth, "frame {}", wanted.id.0);
    }
}

#[test]
fn extension_is_served_by_the_run_or_left_over() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=640x360:d=2", &["-c:v", "libx264", "-g", "100"]);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let index = broker.scan();
    let at = |position: usize| {
        wanted(position as u64, &header, Target::AtOrAfter(index.entries[position].pts), Dtype::Uint8)
    };
    let job = broker.next_job();
    let start = start_of(&index, 0);
    let (wanted, looks) = (vec![at(40)], vec![vec![]]);
    let run = Run { source: SOURCE, stream: STREAM, start, wanted, looks, thread_count: 0 };
    broker.send(&EngineRequest::Decode { job, run }, None);
    broker.send(&EngineRequest::Extend { job, wanted: vec![at(0), at(45)], looks: vec![vec![]] }, None);
    let (mut finished, failed) = broker.run_ended();
    assert_eq!(failed, []);
    let left: Vec<WantedPicture> =
        [0, 40, 45].map(at).into_iter().filter(|wanted| !finished.contains(&wanted.id)).collect();
    assert_eq!(broker.decode(start, &left).0, []);
    finished.extend(left.iter().map(|wanted| wanted.id));
    finished.sort_unstable();
    assert_eq!(finished, [0, 40, 45].map(WantedId));
    let truth = frames(&path, &header, "rgb24", 3);
    for position in [0, 40, 45] {
        assert!(broker.pixels(&at(position)) == truth[position], "frame {position}");
    }
}

#[test]
fn frame_from_the_cache_equals_the_decoded_one() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let mut broker = Broker::new(16 << 20);
    broker.add_source(&path);
    let header = video(&broker.probe().unwrap()).clone();
    let index = broker.scan();
    // Decoded; from the native picture; from the frame that was kept of it.
    let first = first(&header);
    let looks = [(); 3].map(|()| broker.frame(&index, 7, first));
    assert!(looks[0] == looks[1] && looks[1] == looks[2]);
}

#[test]
fn times_are_those_of_the_picture_that_is_played() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:r=10:d=3", H264);
    let (mut broker, media) = Broker::open(&path);
    let wanted = wanted(0, video(&media), Target::PlayedAt(1.25), Dtype::Uint8);
    assert_eq!(broker.decode(RunStart::Demuxer, &[wanted]).0, []);
    let offset = wanted.destination.pts_offset;
    assert_eq!((broker.seconds(offset), broker.seconds(offset + 8)), (1.2, 0.1));
}

#[test]
fn time_past_the_end_fails_alone() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let (mut broker, media) = Broker::open(&path);
    let header = video(&media).clone();
    let both =
        [0.5, 99.0].map(|seconds| wanted(seconds as u64, &header, Target::PlayedAt(seconds), Dtype::Uint8));
    let (failures, _) = broker.decode(RunStart::Demuxer, &both);
    let failed: Vec<WantedId> = failures.iter().map(|(id, _)| *id).collect();
    assert_eq!(failed, [WantedId(99)]);
}

#[test]
fn destination_of_another_size_is_a_media_error() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let (mut broker, media) = Broker::open(&path);
    let mut wanted = first(video(&media));
    wanted.destination.height += 2;
    let (failures, _) = broker.decode(RunStart::Keyframe(0), &[wanted]);
    assert!(matches!(failures[..], [(WantedId(0), EngineError::Media(_))]), "{failures:?}");
}

#[test]
fn destination_in_an_unknown_arena_is_internal() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let (mut broker, media) = Broker::open(&path);
    let mut wanted = first(video(&media));
    wanted.destination.arena = ArenaKey(77);
    let (failures, _) = broker.decode(RunStart::Keyframe(0), &[wanted]);
    assert!(matches!(failures[..], [(WantedId(0), EngineError::Internal(_))]), "{failures:?}");
}

#[test]
fn file_that_changes_after_it_was_opened_brings_no_frame() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let (mut broker, media) = Broker::open(&path);
    File::options().append(true).open(&path).unwrap().set_len(200_000).unwrap();
    let (failures, _) = broker.decode(RunStart::Keyframe(0), &[first(video(&media))]);
    assert_eq!(failures, [(WantedId(0), EngineError::SourceChanged)]);
}

#[test]
fn file_without_media_is_a_media_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "nothing to see").unwrap();
    let mut broker = Broker::new(0);
    broker.add_source(&path);
    assert!(matches!(broker.probe(), Err(EngineError::Media(_))));
}

#[test]
fn playlist_opens_no_other_file() {
    let folder = TempDir::new().unwrap();
    let target = clip(&folder, "clip.mp4", "testsrc2=s=160x96:d=1", H264);
    let path = folder.path().join("list.ffconcat");
    std::fs::write(&path, format!("ffconcat version 1.0\nfile '{}'\n", target.display())).unwrap();
    let mut broker = Broker::new(0);
    broker.add_source(&path);
    assert!(matches!(broker.probe(), Err(EngineError::Media(_))));
}
