//! Peers that lie, dawdle or flood: each costs itself its request or its connection. A well-behaved client works
//! beside every one of them and gets its frames bit for bit; afterwards the daemon holds what it held before.
//!
//! A peer is a line in a table: what it does, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::{File, OpenOptions as FileOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use reeld_client::{Client, OpenOptions, Video};
use reeld_protocol::codec::decode;
use reeld_protocol::mapping::{self, MappedFrame};
use reeld_protocol::message::{
    Dtype, GetFrames, MemoryRange, OpenSource, Part, SeekMode, Ticket, Wanted, kind,
};
use reeld_protocol::{
    ArenaId, BODY_BYTES_MAX, ErrorCode, FDS_MAX, LeaseId, Notice, Refusal, Reply, Request, SealedMemfd,
    SourceId, Transform, VERSION_MAJOR, VERSION_MINOR, WireError,
};
use reeld_tests::{Daemon, Peer, Random, Reference, bytes_of, clip, eventually, open_source, raw_message};
use rustix::fs::{MemfdFlags, Mode, OFlags};

const CLIP: &str = "h264_bframes.mp4";
const SLOW: &str = "slow.mp4";

/// Memory that a peer may cost the daemon for good. Buffers and the allocator's own waste are far below it, what
/// a peer could send in a second far above.
const GROWTH_MAX_KIB: u64 = 64 << 10;

/// A daemon, and a client that behaves.
struct Scene {
    daemon: Daemon,
    client: Client,
    video: Video,
    reference: Reference,
    fd_count: usize,
}

impl Scene {
    fn new() -> Scene {
        // One engine, so that no second one is started while somebody counts.
        let daemon = Daemon::with(&["--engine-count-max", "1"]);
        let client = daemon.client();
        let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
        let reference = Reference::new(&clip(CLIP), 320, 180);
        let scene = Scene { daemon, client, video, reference, fd_count: 0 };
        scene.work(0);
        Scene { fd_count: scene.daemon.fd_count(), ..scene }
    }

    /// One frame for the client that behaves.
    fn work(&self, round: i64) {
        let index = round * 7 % 50;
        assert!(self.video.frame_at(index).unwrap()[..] == *self.reference.frame(index), "frame {index}");
    }

    /// Lets a peer do its worst while the client works, and checks that nothing of it is left.
    fn beside<T>(&self, peer: impl FnOnce() -> T) -> T {
        let is_over = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0.. {
                    self.work(round);
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(peer));
            is_over.store(true, Ordering::Relaxed);
            result
        });
        self.work(1);
        self.await_rest();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Waits until the daemon holds what it held before any peer came.
    fn await_rest(&self) {
        let mut seen = String::new();
        eventually("the account is as before", || {
            let status = self.client.status().unwrap();
            let held = [
                status.lease_count,
                status.filling_count,
                status.quarantined_count,
                status.queued_run_count,
                status.request_count,
            ];
            let fd_count = self.daemon.fd_count();
            let now =
                format!("{} clients, {held:?}, {fd_count} fds, not {}", status.client_count, self.fd_count);
            if now != seen {
                eprintln!("{now}");
                seen = now;
            }
            (status.client_count == 1 && held == [0; 5] && fd_count == self.fd_count).then_some(())
        });
    }

    fn peer(&self) -> Peer {
        Peer::welcomed(&self.daemon)
    }
}

/// One peer of a table.
type Act = fn(&mut Peer);

fn get_frames(parts: Vec<Part>) -> Request {
    Request::GetFrames(GetFrames { parts, priority: 0, timeout_millis: None })
}

fn part(source: SourceId, wanted: Wanted) -> Part {
    Part { source, wanted, dtype: Dtype::Uint8, transforms: Vec::new() }
}

fn ask_transformed(peer: &mut Peer, transforms: &[Transform]) {
    let source = peer.open(1, &clip(CLIP));
    let part = Part { transforms: transforms.to_vec(), ..part(source, Wanted::Indices(vec![0])) };
    peer.ask(7, &get_frames(vec![part]));
}

fn frames_of(source: SourceId, wanted: Wanted) -> Request {
    get_frames(vec![part(source, wanted)])
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn own_process() -> OwnedFd {
    let own = rustix::process::getpid();
    rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap()
}

fn name_session(peer: &mut Peer, fds: &[OwnedFd]) {
    let bytes = raw_message(kind::SESSION, 0, fds.len() as u8, &[]);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    peer.send_with(&bytes, &fds);
}

fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(256) as u8).collect()
}

fn header_with_body_bytes(body_bytes: u32) -> Vec<u8> {
    let mut bytes = raw_message(kind::STATUS, 1, 0, &[]);
    bytes[..4].copy_from_slice(&body_bytes.to_le_bytes());
    bytes
}

/// Peers that did not say hello as they should.
const STRANGERS: &[(&str, Act)] = &[
    ("random bytes", |peer| peer.send(&random_bytes(1, 5000))),
    ("zeros", |peer| peer.send(&[0; 4096])),
    ("another protocol", |peer| peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    ("a request before Hello", |peer| peer.send(&bytes_of(&Request::Status, 1))),
    ("a notice before Hello", |peer| peer.send(&bytes_of(&Notice::Cancel(1), 0))),
    ("another major version", |peer| peer.send(&Peer::hello(VERSION_MAJOR + 1, 0))),
    ("a later minor version", |peer| peer.send(&Peer::hello(VERSION_MAJOR, VERSION_MINOR + 1))),
    ("a Hello without magic", |peer| peer.send(&raw_message(kind::HELLO, 0, 0, &[1; 40]))),
    ("half a Hello as a whole message", |peer| {
        let hello = Peer::hello(VERSION_MAJOR, VERSION_MINOR);
        peer.send(&raw_message(kind::HELLO, 0, 0, &hello[16..hello.len() - 1]));
    }),
    ("a Hello that wants an answer as a request", |peer| {
        let hello = Peer::hello(VERSION_MAJOR, VERSION_MINOR);
        peer.send(&raw_message(kind::HELLO, 7, 0, &hello[16..]));
    }),
];

#[test]
fn stranger_is_sent_away() {
    let scene = Scene::new();
    for (what, act) in STRANGERS {
        eprintln!("{what}");
        scene.beside(|| {
            let mut peer = Peer::connect(&scene.daemon);
            act(&mut peer);
            for frame in peer.last_words() {
                let refusal = Refusal::from_bytes(&frame.body).unwrap();
                assert!(refusal.reason.contains("install the same version"), "{}", refusal.reason);
            }
        });
    }
}

/// Peers that said hello and then break a rule after which no message can be told from the next, or that say what
/// is not theirs to say.
const LAWBREAKERS: &[(&str, Act)] = &[
    ("random bytes", |peer| peer.send(&random_bytes(2, 5000))),
    ("a length of 4 GiB", |peer| peer.send(&header_with_body_bytes(u32::MAX))),
    ("a length one over the limit", |peer| peer.send(&header_with_body_bytes(BODY_BYTES_MAX as u32 + 1))),
    ("more descriptors announced than allowed", |peer| peer.send(&raw_message(kind::STATUS, 1, 17, &[]))),
    ("descriptors announced that do not come", |peer| peer.send(&open_source(1, 1, false))),
    ("more descriptors announced than come", |peer| {
        peer.send_with(&open_source(1, 2, false), &[null().as_fd()]);
    }),
    ("as many descriptors as the kernel takes", |peer| {
        let null = null();
        peer.send_with(&open_source(1, 16, false), &[null.as_fd(); 253]);
    }),
    ("descriptors with every byte of a message", |peer| {
        let null = null();
        for byte in raw_message(60_000, 1, 1, &[0; 100]) {
            peer.send_with(&[byte], &[null.as_fd(); FDS_MAX]);
        }
    }),
    ("another Hello", |peer| peer.send(&Peer::hello(VERSION_MAJOR, VERSION_MINOR))),
    ("a request without an id", |peer| peer.ask(0, &Request::Status)),
    ("a reply without an id", |peer| peer.send(&raw_message(kind::FRAMES, 0, 0, &[]))),
    ("a session that is a file", |peer| name_session(peer, &[null()])),
    ("a session that is a socket", |peer| name_session(peer, &[UnixStream::pair().unwrap().0.into()])),
    ("a session of nobody", |peer| name_session(peer, &[])),
    ("a session of two processes", |peer| name_session(peer, &[own_process(), own_process()])),
    ("two sessions", |peer| {
        name_session(peer, &[own_process()]);
        name_session(peer, &[own_process()]);
    }),
    ("an arena granted", |peer| {
        peer.send(&bytes_of(&Notice::ArenaGranted { arena: ArenaId(0), bytes: 4096 }, 0));
    }),
    ("an arena revoked", |peer| peer.send(&bytes_of(&Notice::ArenaRevoked(ArenaId(0)), 0))),
    ("a notice that cannot be read", |peer| peer.send(&raw_message(kind::RELEASE, 0, 0, &[0xFF; 30]))),
    ("a notice that is longer than it says", |peer| peer.send(&raw_message(kind::CANCEL, 0, 0, &[1, 2]))),
    ("a list longer than its message", |peer| {
        peer.send(&raw_message(kind::RELEASE, 0, 0, &[253, 255, 255, 255, 255, 255, 255, 255, 127]));
    }),
];

#[test]
fn lawbreaker_is_sent_away() {
    let scene = Scene::new();
    for (what, act) in LAWBREAKERS {
        eprintln!("{what}");
        scene.beside(|| {
            let mut peer = scene.peer();
            act(&mut peer);
            assert!(peer.last_words().is_empty());
        });
    }
}

/// Sends a file to be opened.
fn offer(peer: &mut Peer, fd: impl AsFd, is_memory: bool) {
    peer.send_with(&open_source(7, 1, is_memory), &[fd.as_fd()]);
}

fn offer_path(peer: &mut Peer, path: &str, flags: OFlags) {
    offer(peer, rustix::fs::open(path, flags, Mode::empty()).unwrap(), false);
}

fn memfd(content: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&fd, content).unwrap();
    fd
}

fn ask_with(peer: &mut Peer, request: &Request, fds: &[BorrowedFd<'_>]) {
    let mut bytes = bytes_of(request, 7);
    bytes[6] = fds.len() as u8;
    peer.send_with(&bytes, fds);
}

fn mapped() -> Request {
    Request::OpenSource(OpenSource {
        label: "hostile".into(),
        stream: None,
        seek_mode: SeekMode::Mapped,
        is_memory: false,
        thread_count: 0,
    })
}

/// Sends a clip to be opened with what shall be a mapping of it.
fn offer_mapped(peer: &mut Peer, mapping: impl AsFd) {
    let file = File::open(clip(CLIP)).unwrap();
    ask_with(peer, &mapped(), &[file.as_fd(), mapping.as_fd()]);
}

/// As [`offer_mapped`]: a mapping that is so much memory, and sealed.
fn offer_mapping(peer: &mut Peer, count: u64, frames: &[[u64; 3]]) {
    let frames = frames.iter().flatten().flat_map(|word| word.to_le_bytes());
    let bytes: Vec<u8> = b"REELDMP\x01".iter().copied().chain(count.to_le_bytes()).chain(frames).collect();
    offer_mapped(peer, SealedMemfd::new("hostile", &bytes).unwrap().into_fd());
}

/// Asks for one stretch of a memory file with two values in it.
fn ask_in_memory(peer: &mut Peer, offset_bytes: u64, count: u64) {
    let source = peer.open(1, &clip(CLIP));
    let memory = SealedMemfd::new("hostile", &[0; 16]).unwrap().into_fd();
    let wanted = Wanted::IndicesInMemory(MemoryRange { offset_bytes, count });
    ask_with(peer, &frames_of(source, wanted), &[memory.as_fd()]);
}

/// Asks for frames of a source that is open.
fn ask_of_clip(peer: &mut Peer, wanted: Wanted) {
    let source = peer.open(1, &clip(CLIP));
    peer.ask(7, &frames_of(source, wanted));
}

/// Requests with the id 7, and the errors that answer them. The connection goes on.
const REFUSED: &[(&str, ErrorCode, Act)] = &[
    ("an unknown kind", ErrorCode::Unsupported, |peer| peer.send(&raw_message(60_000, 7, 0, b"later"))),
    ("a reply as a request", ErrorCode::Unsupported, |peer| peer.send(&raw_message(kind::FRAMES, 7, 0, &[]))),
    ("a ticket for a lease that is not held", ErrorCode::InvalidRequest, |peer| {
        peer.ask(7, &Request::IssueTicket(LeaseId(1)));
    }),
    ("a guessed ticket", ErrorCode::FramesLost, |peer| {
        peer.ask(7, &Request::RedeemTicket(Ticket([0; 32])));
    }),
    ("half a ticket", ErrorCode::InvalidRequest, |peer| {
        peer.send(&raw_message(kind::REDEEM_TICKET, 7, 0, &[0; 16]));
    }),
    ("a notice as a request", ErrorCode::Unsupported, |peer| peer.send(&bytes_of(&Notice::Cancel(1), 7))),
    ("a Hello as a request", ErrorCode::Unsupported, |peer| peer.send(&raw_message(kind::HELLO, 7, 0, &[]))),
    ("a body of garbage", ErrorCode::InvalidRequest, |peer| {
        peer.send(&raw_message(kind::GET_FRAMES, 7, 0, &random_bytes(3, 400)));
    }),
    ("an empty body", ErrorCode::InvalidRequest, |peer| peer.send(&raw_message(kind::GET_FRAMES, 7, 0, &[]))),
    ("a body with a surplus byte", ErrorCode::InvalidRequest, |peer| {
        peer.send(&raw_message(kind::STATUS, 7, 0, &[0]));
    }),
    ("no file", ErrorCode::InvalidRequest, |peer| peer.send(&open_source(7, 0, false))),
    ("two files", ErrorCode::InvalidRequest, |peer| {
        peer.send_with(&open_source(7, 2, false), &[null().as_fd(); 2]);
    }),
    ("a mapping that does not come", ErrorCode::InvalidRequest, |peer| {
        ask_with(peer, &mapped(), &[null().as_fd()]);
    }),
    ("a mapping that is a device", ErrorCode::InvalidRequest, |peer| offer_mapped(peer, null())),
    ("a mapping that can still change", ErrorCode::InvalidRequest, |peer| {
        offer_mapped(peer, memfd(&[0; 40]));
    }),
    ("a mapping without a byte", ErrorCode::InvalidRequest, |peer| {
        offer_mapped(peer, SealedMemfd::new("hostile", b"").unwrap().into_fd());
    }),
    ("a mapping of garbage", ErrorCode::InvalidRequest, |peer| {
        offer_mapped(peer, SealedMemfd::new("hostile", &random_bytes(5, 4096)).unwrap().into_fd());
    }),
    ("a mapping without frames", ErrorCode::InvalidRequest, |peer| offer_mapping(peer, 0, &[])),
    ("a mapping that is shorter than it says", ErrorCode::InvalidRequest, |peer| {
        offer_mapping(peer, 2, &[[0, 1, 1]]);
    }),
    ("a mapping that is longer than it says", ErrorCode::InvalidRequest, |peer| {
        offer_mapping(peer, 1, &[[0, 1, 1], [1, 1, 0]]);
    }),
    ("a mapping of the most frames that a number can say", ErrorCode::InvalidRequest, |peer| {
        offer_mapping(peer, u64::MAX, &[[0, 1, 1]]);
    }),
    ("a mapping that is not sorted", ErrorCode::InvalidRequest, |peer| {
        offer_mapping(peer, 2, &[[5, 1, 1], [4, 1, 0]]);
    }),
    ("a mapping with unknown flags", ErrorCode::InvalidRequest, |peer| {
        offer_mapping(peer, 1, &[[0, 1, 2]]);
    }),
    ("a mapping of a file that is none", ErrorCode::Media, |peer| {
        let mapping = mapping::to_bytes(&[MappedFrame { pts: 0, duration: 1, is_key: true }]).unwrap();
        let mapping = SealedMemfd::new("hostile", &mapping).unwrap().into_fd();
        ask_with(peer, &mapped(), &[null().as_fd(), mapping.as_fd()]);
    }),
    ("a file opened as a path", ErrorCode::InvalidRequest, |peer| {
        offer_path(peer, clip(CLIP).to_str().unwrap(), OFlags::PATH);
    }),
    ("a file opened for writing only", ErrorCode::InvalidRequest, |peer| {
        offer(peer, FileOptions::new().write(true).open(clip(CLIP)).unwrap(), false);
    }),
    ("a directory", ErrorCode::Media, |peer| offer_path(peer, "/", OFlags::RDONLY)),
    ("a directory as a path", ErrorCode::InvalidRequest, |peer| offer_path(peer, "/", OFlags::PATH)),
    ("an endless device", ErrorCode::Media, |peer| offer_path(peer, "/dev/zero", OFlags::RDONLY)),
    ("an empty device", ErrorCode::Media, |peer| offer_path(peer, "/dev/null", OFlags::RDONLY)),
    ("a file without a type of its own", ErrorCode::Media, |peer| {
        offer(peer, rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap(), false);
    }),
    ("a process", ErrorCode::Media, |peer| {
        let own = rustix::process::getpid();
        offer(peer, rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap(), false);
    }),
    ("a file of the kernel's", ErrorCode::Media, |peer| offer_path(peer, "/proc/self/mem", OFlags::RDONLY)),
    ("a pipe", ErrorCode::Media, |peer| offer(peer, rustix::pipe::pipe().unwrap().0, false)),
    ("a socket", ErrorCode::Media, |peer| offer(peer, UnixStream::pair().unwrap().0, false)),
    ("its own connection", ErrorCode::Media, |peer| {
        let own = peer.stream();
        offer(peer, own, false);
    }),
    ("an empty file", ErrorCode::Media, |peer| offer(peer, tempfile(b""), false)),
    ("a file of garbage", ErrorCode::Media, |peer| offer(peer, tempfile(&random_bytes(4, 100_000)), false)),
    ("a clip that was cut off", ErrorCode::Media, |peer| {
        offer(peer, tempfile(&std::fs::read(clip(CLIP)).unwrap()[..200]), false);
    }),
    ("memory that is not sealed", ErrorCode::InvalidRequest, |peer| offer(peer, memfd(&[1; 100]), true)),
    ("memory that is empty", ErrorCode::Media, |peer| {
        offer(peer, SealedMemfd::new("hostile", &[]).unwrap().into_fd(), true);
    }),
    ("a file that is no memory", ErrorCode::InvalidRequest, |peer| offer(peer, tempfile(&[1; 100]), true)),
    ("memory that is no list, as one", ErrorCode::InvalidRequest, |peer| {
        let wanted = Wanted::IndicesInMemory(MemoryRange { offset_bytes: 0, count: 2 });
        let request = get_frames(vec![part(SourceId(1), wanted)]);
        ask_with(peer, &request, &[memfd(&[0; 16]).as_fd()]);
    }),
    ("a device as a list", ErrorCode::InvalidRequest, |peer| {
        ask_with(peer, &get_frames(vec![]), &[null().as_fd()]);
    }),
    ("its own connection as a list", ErrorCode::InvalidRequest, |peer| {
        let own = peer.stream();
        ask_with(peer, &get_frames(vec![]), &[own.as_fd()]);
    }),
    ("sixteen lists", ErrorCode::InvalidRequest, |peer| {
        let memory = SealedMemfd::new("hostile", &[0; 16]).unwrap().into_fd();
        ask_with(peer, &get_frames(vec![]), &[memory.as_fd(); FDS_MAX]);
    }),
    ("a list that is not there", ErrorCode::InvalidRequest, |peer| {
        ask_of_clip(peer, Wanted::IndicesInMemory(MemoryRange { offset_bytes: 0, count: 1 }));
    }),
    ("a list behind the memory's end", ErrorCode::InvalidRequest, |peer| ask_in_memory(peer, 8, 2)),
    ("a list at the end of all numbers", ErrorCode::InvalidRequest, |peer| ask_in_memory(peer, u64::MAX, 2)),
    ("a list of 2^63 values", ErrorCode::InvalidRequest, |peer| ask_in_memory(peer, 0, 1 << 63)),
    ("no parts", ErrorCode::InvalidRequest, |peer| peer.ask(7, &get_frames(vec![]))),
    ("1,025 parts", ErrorCode::InvalidRequest, |peer| {
        let source = peer.open(1, &clip(CLIP));
        peer.ask(7, &get_frames(vec![part(source, Wanted::Indices(vec![])); 1025]));
    }),
    ("a source that was never opened", ErrorCode::InvalidRequest, |peer| {
        peer.ask(7, &frames_of(SourceId(u64::MAX), Wanted::Indices(vec![0])));
    }),
    ("the source of another client", ErrorCode::InvalidRequest, |peer| {
        // Sources count from 1 in each connection, and the client that behaves has one.
        peer.ask(7, &frames_of(SourceId(1), Wanted::Indices(vec![0])));
    }),
    ("a source that was closed", ErrorCode::InvalidRequest, |peer| {
        let source = peer.open(1, &clip(CLIP));
        peer.send(&bytes_of(&Notice::CloseSource(source), 0));
        peer.ask(7, &frames_of(source, Wanted::Indices(vec![0])));
    }),
    ("nine transforms", ErrorCode::InvalidRequest, |peer| {
        ask_transformed(peer, &[Transform::CenterCrop { height: 1, width: 1 }; 9]);
    }),
    ("frames of nothing", ErrorCode::InvalidRequest, |peer| {
        ask_transformed(peer, &[Transform::Resize { height: 0, width: 64 }]);
    }),
    ("frames of 2^64 pixels", ErrorCode::InvalidRequest, |peer| {
        ask_transformed(peer, &[Transform::Resize { height: u32::MAX, width: u32::MAX }]);
    }),
    ("a crop at the end of all numbers", ErrorCode::InvalidRequest, |peer| {
        ask_transformed(peer, &[Transform::Crop { top: u32::MAX, left: u32::MAX, height: 1, width: 1 }]);
    }),
    ("a crop of what is not enough any more", ErrorCode::InvalidRequest, |peer| {
        let small = Transform::Resize { height: 4, width: 4 };
        ask_transformed(peer, &[small, Transform::CenterCrop { height: 5, width: 4 }]);
    }),
    ("an index at the end of all numbers", ErrorCode::IndexOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::Indices(vec![i64::MAX]));
    }),
    ("an index before all numbers", ErrorCode::IndexOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::Indices(vec![i64::MIN]));
    }),
    ("a range of all numbers", ErrorCode::InvalidRequest, |peer| {
        ask_of_clip(peer, Wanted::IndexRange { start: 0, stop: u64::MAX, step: 1 });
    }),
    ("a range that is too wide in large steps", ErrorCode::IndexOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::IndexRange { start: 0, stop: u64::MAX, step: u64::MAX });
    }),
    ("a range in steps of 0", ErrorCode::InvalidRequest, |peer| {
        ask_of_clip(peer, Wanted::IndexRange { start: 0, stop: 5, step: 0 });
    }),
    ("a range backwards", ErrorCode::InvalidRequest, |peer| {
        ask_of_clip(peer, Wanted::IndexRange { start: u64::MAX, stop: 0, step: 1 });
    }),
    ("a time that is no number", ErrorCode::TimeOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::PlayedAt(f64::NAN));
    }),
    ("a time without end", ErrorCode::TimeOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::PlayedAt(f64::INFINITY));
    }),
    ("times of which one is no number", ErrorCode::TimeOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::PlayedAtEach(vec![0.0, f64::NAN, 1.0]));
    }),
    ("a time range without a begin", ErrorCode::TimeOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::PlayedInRange { start: f64::NEG_INFINITY, stop: 1.0 });
    }),
    ("a time range that is no range", ErrorCode::TimeOutOfRange, |peer| {
        ask_of_clip(peer, Wanted::PlayedInRange { start: f64::NAN, stop: f64::NAN });
    }),
    ("a result above the quota", ErrorCode::NoSlots, |peer| {
        let source = peer.open(1, &clip(CLIP));
        peer.ask(7, &frames_of(source, Wanted::Indices(vec![0; 30_000])));
    }),
];

fn tempfile(content: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("reeld-hostile-{:?}", std::thread::current().id()));
    std::fs::write(&path, content).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

#[test]
fn impossible_request_costs_that_request_alone() {
    let scene = Scene::new();
    for (what, code, act) in REFUSED {
        eprintln!("{what}");
        scene.beside(|| {
            let mut peer = scene.peer();
            act(&mut peer);
            let Some(Reply::Error(error)) = peer.reply_to(7) else { panic!("{what}: not refused") };
            assert_eq!(error.code, *code, "{what}: {error}");
            assert!(matches!(peer.call(8, &Request::Status), Some(Reply::Status(_))), "{what}");
        });
    }
}

fn ask_of_clip_with(peer: &mut Peer, priority: i8, timeout_millis: Option<u64>) {
    let source = peer.open(1, &clip(CLIP));
    let parts = vec![part(source, Wanted::Indices(vec![3, -1]))];
    peer.ask(7, &Request::GetFrames(GetFrames { parts, priority, timeout_millis }));
    assert!(peer.reply_to(7).is_some());
}

/// What is odd, but harms nobody: the connection goes on.
const BORNE: &[(&str, Act)] = &[
    ("descriptors where none belong", |peer| {
        let null = null();
        peer.send_with(&raw_message(kind::STATUS, 7, 3, &[]), &[null.as_fd(); 3]);
        assert!(matches!(peer.reply_to(7), Some(Reply::Status(_))));
    }),
    ("descriptors with a notice", |peer| {
        let mut bytes = bytes_of(&Notice::Cancel(1), 0);
        bytes[6] = 2;
        peer.send_with(&bytes, &[null().as_fd(); 2]);
    }),
    ("its own connection, with a notice", |peer| {
        let (own, mut bytes) = (peer.stream(), bytes_of(&Notice::Cancel(1), 0));
        bytes[6] = 1;
        peer.send_with(&bytes, &[own.as_fd()]);
    }),
    ("more descriptors than announced", |peer| {
        let null = null();
        peer.send_with(&raw_message(kind::STATUS, 7, 0, &[]), &[null.as_fd(); FDS_MAX]);
        assert!(matches!(peer.reply_to(7), Some(Reply::Status(_))));
    }),
    ("a descriptor that comes with the second byte", |peer| {
        let (file, bytes) = (File::open(clip(CLIP)).unwrap(), open_source(7, 1, false));
        peer.send(&bytes[..1]);
        peer.send_with(&bytes[1..], &[file.as_fd()]);
        assert!(matches!(peer.reply_to(7), Some(Reply::SourceOpened(_))));
    }),
    ("the descriptors of two messages with the first", |peer| {
        let file = File::open(clip(CLIP)).unwrap();
        peer.send_with(&[open_source(7, 1, false), open_source(8, 1, false)].concat(), &[file.as_fd(); 2]);
        let replies = [peer.reply_to(7), peer.reply_to(8)];
        assert!(replies.iter().all(|reply| matches!(reply, Some(Reply::SourceOpened(_)))));
    }),
    ("a notice of a later version", |peer| peer.send(&raw_message(60_000, 0, 0, b"from the future"))),
    ("requests cancelled that never were", |peer| {
        for id in [0, 1, u64::MAX] {
            peer.send(&bytes_of(&Notice::Cancel(id), 0));
        }
    }),
    ("leases given back that were never granted", |peer| {
        // Among these numbers are those of the client that behaves.
        let all: Vec<LeaseId> = (0..20_000).chain([u64::MAX]).map(LeaseId).collect();
        peer.send(&bytes_of(&Notice::Release(all), 0));
    }),
    ("a lease given back twice", |peer| {
        ask_of_clip(peer, Wanted::Indices(vec![0]));
        let Some(Reply::Frames(frames)) = peer.reply_to(7) else { panic!("no frames") };
        peer.send(&bytes_of(&Notice::Release(vec![frames.lease, frames.lease]), 0));
        peer.send(&bytes_of(&Notice::Release(vec![frames.lease]), 0));
    }),
    ("leases guessed while their slots are filled", |peer| {
        ask_of_clip(peer, Wanted::Indices(vec![49]));
        let all: Vec<LeaseId> = (0..20_000).map(LeaseId).collect();
        peer.send(&bytes_of(&Notice::Release(all), 0));
        let reply = peer.reply_to(7);
        assert!(matches!(reply, Some(Reply::Frames(_))), "{reply:?}");
    }),
    ("sources closed that were never opened, or twice", |peer| {
        let source = peer.open(1, &clip(CLIP));
        for source in [source, source, SourceId(0), SourceId(u64::MAX)] {
            peer.send(&bytes_of(&Notice::CloseSource(source), 0));
        }
    }),
    ("a source closed with requests in flight", |peer| {
        let source = peer.open(1, &clip(CLIP));
        peer.ask(7, &frames_of(source, Wanted::IndexRange { start: 0, stop: 50, step: 1 }));
        peer.send(&bytes_of(&Notice::CloseSource(source), 0));
        let reply = peer.reply_to(7);
        assert!(matches!(reply, Some(Reply::Frames(_))), "{reply:?}");
    }),
    ("a request id that is in use", |peer| {
        let source = peer.open(1, &clip(SLOW));
        peer.ask(7, &frames_of(source, Wanted::Indices(vec![-1])));
        peer.ask(7, &frames_of(source, Wanted::Indices(vec![0])));
        let refused = peer.reply_to(7);
        assert!(matches!(refused, Some(Reply::Error(_))), "{refused:?}");
        peer.send(&bytes_of(&Notice::Cancel(7), 0));
        let cancelled = peer.reply_to(7);
        assert!(matches!(cancelled, Some(Reply::Error(_))), "{cancelled:?}");
        peer.send(&bytes_of(&Notice::CloseSource(source), 0));
    }),
    ("a request cancelled twice", |peer| {
        let source = peer.open(1, &clip(SLOW));
        peer.ask(7, &frames_of(source, Wanted::Indices(vec![-1])));
        peer.send(&bytes_of(&Notice::Cancel(7), 0));
        peer.send(&bytes_of(&Notice::Cancel(7), 0));
        let Some(Reply::Error(error)) = peer.reply_to(7) else { panic!("not cancelled") };
        assert_eq!(error.code, ErrorCode::Cancelled);
        peer.send(&bytes_of(&Notice::CloseSource(source), 0));
    }),
    ("a part of no frames", |peer| {
        ask_of_clip(peer, Wanted::Indices(vec![]));
        let Some(Reply::Frames(frames)) = peer.reply_to(7) else { panic!("no frames") };
        assert_eq!(frames.parts[0].frame_count, 0);
    }),
    ("a timeout of 0", |peer| ask_of_clip_with(peer, 0, Some(0))),
    ("a timeout at the end of all time", |peer| ask_of_clip_with(peer, 0, Some(u64::MAX))),
    ("a timeout of half of all time", |peer| ask_of_clip_with(peer, 0, Some(u64::MAX / 2))),
    ("the lowest priority", |peer| ask_of_clip_with(peer, i8::MIN, None)),
    ("the highest priority", |peer| ask_of_clip_with(peer, i8::MAX, None)),
    ("ids at the end of all numbers", |peer| {
        assert!(matches!(peer.call(u64::MAX, &Request::Status), Some(Reply::Status(_))));
    }),
];

#[test]
fn oddity_is_borne_and_leaves_nothing() {
    let scene = Scene::new();
    // The file of the requests that take long stays known to the catalog after its last client.
    let slow = scene.client.open(clip(SLOW), OpenOptions::default()).unwrap();
    let scene = Scene { fd_count: scene.daemon.fd_count(), ..scene };
    for (what, act) in BORNE {
        eprintln!("{what}");
        scene.beside(|| {
            let mut peer = scene.peer();
            act(&mut peer);
            assert!(matches!(peer.call(99, &Request::Status), Some(Reply::Status(_))), "{what}");
        });
    }
    drop(slow);
}

#[test]
fn lease_of_another_client_cannot_be_given_back() {
    let scene = Scene::new();
    let held = scene.video.frame_at(9).unwrap();
    let mut peer = scene.peer();
    let all: Vec<LeaseId> = (0..10_000).map(LeaseId).collect();
    peer.send(&bytes_of(&Notice::Release(all), 0));
    assert!(matches!(peer.call(1, &Request::Status), Some(Reply::Status(_))));
    let status = scene.client.status().unwrap();
    assert_eq!((status.lease_count, status.totals.stray_releases), (1, 10_000));
    scene.work(3);
    assert!(held[..] == *scene.reference.frame(9));
}

#[test]
fn file_that_is_truncated_while_it_is_decoded_costs_its_requests() {
    let scene = Scene::new();
    scene.beside(|| {
        let path = scene.daemon.folder().join("shrinking.mp4");
        std::fs::copy(clip(SLOW), &path).unwrap();
        let mut peer = scene.peer();
        let source = peer.open(1, &path);
        peer.ask(7, &frames_of(source, Wanted::Indices(vec![-1])));
        eventually("the engine is at it", || {
            let engines = scene.client.status().unwrap().engines;
            engines.iter().any(|engine| engine.is_busy).then_some(())
        });
        FileOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
        let Some(Reply::Error(error)) = peer.reply_to(7) else { panic!("frames of a file that is gone") };
        assert!(matches!(error.code, ErrorCode::SourceChanged | ErrorCode::Media), "{error}");
        assert!(matches!(peer.call(8, &Request::Status), Some(Reply::Status(_))));
    });
}

#[test]
fn memory_that_is_lent_as_a_file_and_shrinks_costs_its_requests() {
    let scene = Scene::new();
    scene.beside(|| {
        let memory = memfd(&std::fs::read(clip(CLIP)).unwrap());
        let mut peer = scene.peer();
        peer.send_with(&open_source(1, 1, false), &[memory.as_fd()]);
        let Some(Reply::SourceOpened(opened)) = peer.reply_to(1) else { panic!("not opened") };
        rustix::fs::ftruncate(&memory, 100).unwrap();
        let reply = peer.call(7, &frames_of(opened.source, Wanted::Indices(vec![-1])));
        assert!(matches!(reply, Some(Reply::Error(_))), "{reply:?}");
    });
}

#[test]
fn client_that_vanishes_with_requests_in_flight_leaves_nothing() {
    let scene = Scene::new();
    let slow = scene.client.open(clip(SLOW), OpenOptions::default()).unwrap();
    let scene = Scene { fd_count: scene.daemon.fd_count(), ..scene };
    scene.beside(|| {
        let mut peer = scene.peer();
        let source = peer.open(1, &clip(SLOW));
        // More than the daemon reads before it has answered some.
        for id in 2..200 {
            peer.ask(id, &frames_of(source, Wanted::Indices(vec![-1])));
        }
    });
    drop(slow);
}

#[test]
fn half_closed_connection_is_over() {
    let scene = Scene::new();
    let slow = scene.client.open(clip(SLOW), OpenOptions::default()).unwrap();
    let scene = Scene { fd_count: scene.daemon.fd_count(), ..scene };
    scene.beside(|| {
        let mut peer = scene.peer();
        let source = peer.open(1, &clip(SLOW));
        peer.ask(2, &Request::Status);
        peer.ask(3, &frames_of(source, Wanted::Indices(vec![-1])));
        peer.stop_sending();
        let answered: Vec<u64> =
            peer.last_words().iter().map(|frame| frame.header.request_id).filter(|id| *id != 0).collect();
        assert_eq!(answered, [2], "what was answered before arrives, the rest never does");
    });
    drop(slow);
}

#[test]
fn peer_that_says_nothing_or_half_a_message_is_let_go_in_time() {
    let scene = Scene::new();
    scene.beside(|| {
        let silent = Peer::connect(&scene.daemon);
        let mut half_a_hello = Peer::connect(&scene.daemon);
        half_a_hello.send(&Peer::hello(VERSION_MAJOR, VERSION_MINOR)[..20]);
        let mut half_a_header = scene.peer();
        half_a_header.send(&bytes_of(&Request::Status, 1)[..7]);
        let mut half_a_body = scene.peer();
        half_a_body.send(&raw_message(kind::RELEASE, 0, 0, &[0; 30_000])[..15_000]);
        let mut half_with_files = scene.peer();
        half_with_files.send_with(&open_source(1, 16, false)[..17], &[null().as_fd(); FDS_MAX]);
        for mut peer in [silent, half_a_hello, half_a_header, half_a_body, half_with_files] {
            assert!(peer.last_words().is_empty());
        }
    });
}

#[test]
fn connection_that_is_left_in_its_own_half_message_is_let_go() {
    let scene = Scene::new();
    scene.beside(|| {
        let mut peer = scene.peer();
        let own = peer.stream();
        peer.send_with(&open_source(1, 1, false)[..17], &[own.as_fd()]);
        // From here on only the daemon itself keeps the other end open.
    });
}

/// Sends the same bytes again and again until the daemon has had enough. Returns how often they went through.
fn flood(mut stream: &UnixStream, bytes: &[u8], count: usize) -> usize {
    (0..count).take_while(|_| stream.write_all(bytes).is_ok()).count()
}

#[test]
fn peer_that_never_reads_its_replies_is_sent_away() {
    let scene = Scene::new();
    let before_kib = scene.daemon.resident_kib();
    scene.beside(|| {
        let peer = scene.peer();
        let sent = flood(&peer.stream(), &bytes_of(&Request::Status, 1), 1_000_000);
        assert!(sent < 1_000_000, "the daemon took all {sent} requests and kept their replies");
    });
    assert!(scene.daemon.resident_kib() < before_kib + GROWTH_MAX_KIB);
}

#[test]
fn million_requests_of_one_peer_are_answered_and_leave_nothing() {
    let scene = Scene::new();
    let before_kib = scene.daemon.resident_kib();
    const BATCH: usize = 1000;
    scene.beside(|| {
        let mut peer = scene.peer();
        let request = frames_of(SourceId(99), Wanted::Indices(vec![0]));
        let batch = bytes_of(&request, 5).repeat(BATCH);
        // Far more than the daemon reads at once; a peer that left more replies lie would be sent away for that.
        for _ in 0..1_000_000 / BATCH {
            peer.send(&batch);
            for _ in 0..BATCH {
                let frame = peer.next_message().unwrap();
                assert_eq!((frame.header.kind, frame.header.request_id), (kind::ERROR, 5));
                assert_eq!(decode::<WireError>(&frame.body).unwrap().code, ErrorCode::InvalidRequest);
            }
        }
    });
    assert!(scene.daemon.resident_kib() < before_kib + GROWTH_MAX_KIB);
}

#[test]
fn million_notices_of_one_peer_leave_nothing() {
    let scene = Scene::new();
    let before_kib = scene.daemon.resident_kib();
    scene.beside(|| {
        let mut peer = scene.peer();
        let batch =
            [bytes_of(&Notice::Cancel(5), 0), bytes_of(&Notice::Release(vec![LeaseId(5)]), 0)].concat();
        assert_eq!(flood(&peer.stream(), &batch.repeat(1000), 500), 500);
        assert!(matches!(peer.call(1, &Request::Status), Some(Reply::Status(_))));
    });
    assert!(scene.daemon.resident_kib() < before_kib + GROWTH_MAX_KIB);
}

#[test]
fn flood_of_connections_leaves_nothing() {
    let scene = Scene::new();
    let before_kib = scene.daemon.resident_kib();
    scene.beside(|| {
        for number in 0..2000 {
            let mut peer = Peer::connect(&scene.daemon);
            if number % 2 == 0 {
                peer.send(&Peer::hello(VERSION_MAJOR, VERSION_MINOR));
            }
        }
        let many: Vec<Peer> = (0..300).map(|_| Peer::connect(&scene.daemon)).collect();
        drop(many);
    });
    assert!(scene.daemon.resident_kib() < before_kib + GROWTH_MAX_KIB);
}
