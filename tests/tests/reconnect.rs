//! Daemons that go away under their clients: requests wait for the next one and are made again, and fail with
//! a sentence where there is none in time.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reeld_client::{AsyncVideo, Client, Error, OpenOptions, Pending, RequestOptions, Video, Wanted};
use reeld_protocol::error::{ErrorCode, WireError};
use reeld_protocol::message::{Message, Reply, kind};
use reeld_protocol::{
    FrameReader, Outbox, Received, Refusal, RefusalCause, VERSION_MAJOR, VERSION_MINOR, Welcome,
};
use reeld_tests::{Daemon, Reference, Worker, block_on, clip, eventually, reelctl};
use rustix::net::{RecvFlags, SendFlags};

const CLIP: &str = "h264_bframes.mp4";
/// Longer than any test lasts.
const FOR_EVER: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(200);

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

fn reference() -> Reference {
    Reference::new(&clip(CLIP), 320, 180)
}

/// Something that takes long enough to be interrupted, and is not in a cache the second time.
fn slow_daemon() -> Daemon {
    Daemon::with(&["--engine-cache-mib", "0"])
}

fn ask(video: &Video, index: i64) -> Pending {
    video.submit(Wanted::Indices(vec![index]), RequestOptions::default()).unwrap()
}

/// Waits until an engine works on something.
fn await_work(daemon: &Daemon) {
    let client = daemon.client();
    eventually("an engine is busy", || {
        client.status().unwrap().engines.iter().any(|engine| engine.is_busy).then_some(())
    });
}

#[test]
fn request_under_way_when_the_daemon_is_killed_brings_the_same_frames() {
    let mut daemon = slow_daemon();
    let video = open(&daemon.client_for(FOR_EVER), "slow.mp4");
    let before = video.frames_at(&[300, 30]).unwrap();
    let pending = video.submit(Wanted::Indices(vec![300, 30]), RequestOptions::default()).unwrap();
    await_work(&daemon);
    daemon.kill();
    daemon.start_again();
    let after = pending.wait().unwrap();
    assert!(before[..] == after[..]);
    assert_eq!(before.part(0).unwrap().pts_seconds(), after.part(0).unwrap().pts_seconds());
}

#[test]
fn request_under_way_when_the_daemon_is_stopped_brings_its_frames() {
    let mut daemon = slow_daemon();
    let video = open(&daemon.client_for(FOR_EVER), "slow.mp4");
    let before = video.frame_at(300).unwrap();
    let pending = ask(&video, 300);
    await_work(&daemon);
    daemon.stop();
    daemon.start_again();
    assert!(before[..] == pending.wait().unwrap()[..]);
}

#[test]
fn daemon_that_does_not_come_back_is_unavailable_after_the_set_time() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(SHORT);
    let (video, slow) = (open(&client, CLIP), open(&client, "slow.mp4"));
    let held = video.frame_at(12).unwrap();
    let pending = ask(&slow, -1);
    let lost = Instant::now();
    daemon.kill();
    let error = pending.wait().unwrap_err();
    assert!(lost.elapsed() >= SHORT);
    assert!(matches!(error, Error::DaemonUnavailable { .. }), "{error:?}");
    let socket = daemon.socket();
    assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
    assert!(matches!(client.status().unwrap_err(), Error::DaemonUnavailable { .. }));
    let opened = client.open(clip(CLIP), OpenOptions::default());
    assert!(matches!(opened.unwrap_err(), Error::DaemonUnavailable { .. }));
    assert!(held[..] == *reference().frame(12));
    // Whoever asks again finds a daemon that has come back since.
    daemon.start_again();
    assert!(video.frame_at(13).unwrap()[..] == *reference().frame(13));
    assert!(held[..] == *reference().frame(12));
}

#[test]
fn call_that_finds_nobody_waits_for_the_next_daemon() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(FOR_EVER);
    let video = open(&client, CLIP);
    let reference = reference();
    let held = video.frame_at(1).unwrap();
    daemon.kill();
    fs::remove_file(daemon.socket()).unwrap();
    std::thread::scope(|scope| {
        let calls = [
            scope.spawn(|| assert!(video.frame_at(3).unwrap()[..] == *reference.frame(3))),
            scope.spawn(|| assert!(open(&client, CLIP).frame_at(4).unwrap()[..] == *reference.frame(4))),
            scope.spawn(|| assert!(client.status().unwrap().pid > 0)),
            scope.spawn(|| assert!(client.daemon_versions().unwrap().0.starts_with("reeld"))),
            scope.spawn(|| {
                let video = AsyncVideo::from(video.clone());
                assert!(block_on(video.frames_at(&[5])).unwrap()[..] == *reference.frame(5));
            }),
        ];
        daemon.start_again();
        calls.into_iter().for_each(|call| call.join().unwrap());
    });
    assert!(held[..] == *reference.frame(1));
    drop(held);
    // One connection for all, and what an earlier daemon had leased is given back to nobody.
    let status = client.status().unwrap();
    assert_eq!((status.client_count, status.totals.stray_releases), (1, 0));
}

#[test]
fn handles_and_futures_from_before_the_loss_bring_their_frames() {
    let mut daemon = slow_daemon();
    let client = daemon.client_for(FOR_EVER);
    let (slow, video) = (open(&client, "slow.mp4"), open(&client, CLIP));
    let reference = reference();
    // Behind this one, others wait.
    let blocker = ask(&slow, 200);
    let handles: Vec<_> = (0..30).map(|index| ask(&video, index)).collect();
    let both = [(&slow, Wanted::Indices(vec![0])), (&video, Wanted::PlayedAt(0.5))];
    let both = client.submit(&both, RequestOptions::default()).unwrap();
    let future = ask(&video, 40);
    await_work(&daemon);
    daemon.kill();
    daemon.start_again();
    assert!(block_on(future).unwrap()[..] == *reference.frame(40));
    for (index, handle) in handles.into_iter().enumerate() {
        assert!(handle.wait().unwrap()[..] == *reference.frame(index as i64));
    }
    assert!(both.wait().unwrap().part(1).unwrap().pixels() == reference.frame(12));
    assert_eq!(blocker.wait().unwrap().frame_count(), 1);
}

#[test]
fn handle_that_is_only_asked_whether_it_is_done_is_made_again_too() {
    let mut daemon = slow_daemon();
    let slow = open(&daemon.client_for(FOR_EVER), "slow.mp4");
    let pending = ask(&slow, 30);
    daemon.kill();
    daemon.start_again();
    eventually("the frames are there", || pending.is_done().then_some(()));
    assert_eq!(pending.wait_timeout(Duration::ZERO).unwrap().unwrap().frame_count(), 1);
}

#[test]
fn deadline_passes_while_the_daemon_is_away() {
    let mut daemon = Daemon::start();
    let video = open(&daemon.client_for(FOR_EVER), "slow.mp4");
    let timeout = Duration::from_millis(300);
    let timed = || video.submit(Wanted::Indices(vec![-1]), RequestOptions::new().timeout(timeout)).unwrap();
    let began = Instant::now();
    let (sent, awaited) = (timed(), timed());
    daemon.kill();
    assert!(matches!(sent.wait(), Err(Error::Deadline(_))));
    assert!(began.elapsed() >= timeout);
    assert!(matches!(block_on(awaited), Err(Error::Deadline(_))));
    // Also where there was no daemon from the beginning.
    assert!(matches!(timed().wait(), Err(Error::Deadline(_))));
    assert!(matches!(block_on(timed()), Err(Error::Deadline(_))));
}

#[test]
fn deadline_of_a_daemon_that_hangs_passes() {
    let daemon = Daemon::start();
    let video = open(&daemon.client(), CLIP);
    daemon.freeze();
    let options = RequestOptions::new().timeout(Duration::from_millis(50));
    let timed = || video.submit(Wanted::Indices(vec![0]), options).unwrap();
    assert!(matches!(timed().wait(), Err(Error::Deadline(_))));
    assert!(matches!(block_on(timed()), Err(Error::Deadline(_))));
    daemon.thaw();
    assert!(video.frame_at(7).unwrap()[..] == *reference().frame(7));
}

#[test]
fn requests_are_cancelled_and_dropped_while_the_daemon_is_away() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(FOR_EVER);
    let video = open(&client, CLIP);
    daemon.kill();
    let (cancelled, dropped) = (ask(&video, 1), ask(&video, 2));
    assert!(!cancelled.is_done() && cancelled.wait_timeout(Duration::ZERO).unwrap().is_none());
    cancelled.cancel();
    assert!(matches!(cancelled.wait(), Err(Error::Cancelled(_))));
    drop(dropped);
    daemon.start_again();
    assert!(video.frame_at(3).unwrap()[..] == *reference().frame(3));
    drop((video, client));
    daemon.await_rest();
}

#[test]
fn file_whose_bytes_alone_changed_meanwhile_is_source_changed() {
    let mut daemon = Daemon::start();
    let path = daemon.folder().join("changing.mp4");
    fs::copy(clip(CLIP), &path).unwrap();
    let video = daemon.client_for(FOR_EVER).open(&path, OpenOptions::default()).unwrap();
    daemon.kill();
    // The same frames at the same times; the headers stay.
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    daemon.start_again();
    for _ in 0..2 {
        let error = video.frame_at(3).unwrap_err();
        assert!(matches!(error, Error::SourceChanged(_)), "{error:?}");
    }
}

/// Takes a connection as a daemon would, by hand.
fn greet(listener: &UnixListener, answer: impl Fn(&mut Outbox)) -> (UnixStream, FrameReader) {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = FrameReader::new();
    hear(&stream, &mut reader);
    let mut outbox = Outbox::new();
    answer(&mut outbox);
    outbox.send(&stream, SendFlags::empty()).unwrap();
    (stream, reader)
}

/// The request id of the next message.
fn hear(stream: &UnixStream, reader: &mut FrameReader) -> u64 {
    loop {
        if let Some(frame) = reader.next_frame().unwrap() {
            return frame.header.request_id;
        }
        assert_eq!(reader.receive(stream, RecvFlags::empty()).unwrap(), Received::Bytes);
    }
}

fn welcome(outbox: &mut Outbox) {
    let welcome = Welcome {
        major: VERSION_MAJOR,
        minor: VERSION_MINOR,
        features: 0,
        instance: 1,
        quota_bytes: 1 << 30,
        requests_max: 64,
        daemon: "by hand".into(),
        ffmpeg: String::new(),
    };
    outbox.push_raw(kind::WELCOME, 0, &welcome.to_bytes(), Vec::new());
}

#[test]
fn daemon_of_another_version_is_an_error_at_once() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(FOR_EVER);
    daemon.kill();
    fs::remove_file(daemon.socket()).unwrap();
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    std::thread::scope(|scope| {
        let status = scope.spawn(|| client.status().unwrap_err());
        let reason = "install the same version of reeld on both sides".to_owned();
        let refusal = Refusal { major: VERSION_MAJOR + 1, minor: 0, reason, cause: RefusalCause::Version };
        let _ended = greet(&listener, |outbox| {
            outbox.push_raw(kind::REFUSAL, 0, &refusal.to_bytes(), Vec::new());
        });
        let error = status.join().unwrap();
        assert!(error.to_string().contains("the same version"), "{error}");
    });
}

#[test]
fn daemon_that_is_stopping_is_left_for_the_next_one() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(FOR_EVER);
    let video = open(&client, CLIP);
    daemon.kill();
    fs::remove_file(daemon.socket()).unwrap();
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let pending = ask(&video, 9);
    // It closes connections before it greets, refuses what is asked for, and closes in the middle.
    drop(listener.accept().unwrap());
    for _ in 0..3 {
        let (stream, mut reader) = greet(&listener, welcome);
        let request = hear(&stream, &mut reader);
        let reply = Reply::Error(WireError::new(ErrorCode::ShuttingDown, "the daemon is stopping"));
        let mut outbox = Outbox::new();
        outbox.push_raw(reply.kind(), request, &reply.encode().unwrap(), Vec::new());
        outbox.send(&stream, SendFlags::empty()).unwrap();
    }
    let (stream, mut reader) = greet(&listener, welcome);
    hear(&stream, &mut reader);
    drop(listener);
    drop(stream);
    daemon.start_again();
    assert!(pending.wait().unwrap()[..] == *reference().frame(9));
}

#[test]
fn request_during_which_the_daemon_dies_again_and_again_is_given_up() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(FOR_EVER);
    daemon.kill();
    fs::remove_file(daemon.socket()).unwrap();
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let status = std::thread::spawn(move || client.status().unwrap_err());
    for _ in 0..=16 {
        let (stream, mut reader) = greet(&listener, welcome);
        hear(&stream, &mut reader);
    }
    let error = status.join().unwrap();
    assert!(matches!(error, Error::DaemonUnavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("16 times"), "{error}");
}

#[test]
fn eight_processes_go_on_over_five_restarts() {
    let mut daemon = Daemon::start();
    let (video, socket) = (clip(CLIP), daemon.socket());
    let pixels = daemon.folder().join("reference");
    reference().write(&pixels);
    let seeds: Vec<String> = (0..8).map(|seed| seed.to_string()).collect();
    let start = |seed: &String| {
        Worker::start("rounds", &socket, &[video.to_str().unwrap(), pixels.to_str().unwrap(), seed])
    };
    let mut workers: Vec<_> = seeds.iter().map(start).collect();
    for worker in &mut workers {
        assert_eq!(worker.line(), "open");
    }
    for round in 0..5 {
        workers.iter_mut().for_each(|worker| worker.tell("go"));
        let end = if round % 2 == 0 { Daemon::kill } else { Daemon::stop };
        end(&mut daemon);
        daemon.start_again();
        for worker in &mut workers {
            assert_eq!(worker.line(), "right");
        }
    }
    workers.into_iter().for_each(Worker::finish);
    let status = daemon.await_rest();
    assert_eq!(status.totals.stray_releases, 0);
}

#[test]
fn child_of_a_parent_that_died_reads_what_it_inherited() {
    let daemon = Daemon::start();
    let pixels = daemon.folder().join("reference");
    reference().write(&pixels);
    let arguments = [clip(CLIP), pixels];
    let arguments: Vec<_> = arguments.iter().map(|path| path.to_str().unwrap()).collect();
    let mut worker = Worker::start("orphan", &daemon.socket(), &arguments);
    assert_eq!(worker.line(), "forked");
    worker.crash();
    daemon.await_rest();
    // Others use what memory there is.
    let video = open(&daemon.client(), CLIP);
    let _kept: Vec<_> = (20..50).map(|index| video.frame_at(index).unwrap()).collect();
    worker.let_go();
    assert_eq!(worker.line(), "right");
}

/// A process that finds its daemon in this runtime folder.
fn stay(runtime: &Path) -> Worker {
    let worker = Path::new(reelctl().get_program()).with_file_name("reeld-test-worker");
    let mut command = Command::new(&worker);
    command.arg("stay").env("XDG_RUNTIME_DIR", runtime).env("REELD_BINARY", worker.with_file_name("reeld"));
    Worker::spawn(command.env_remove("REELD_SOCKET").env_remove("REELD_NO_AUTOSTART"))
}

#[test]
fn daemon_that_the_user_started_is_not_replaced_by_a_private_one() {
    let mut daemon = Daemon::start();
    // Where a user's own daemon is looked for.
    let folder = daemon.folder().join("reeld");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(daemon.socket(), folder.join("reeld.sock")).unwrap();
    let mut worker = stay(daemon.folder());
    let first = worker.line();
    assert_eq!(first, daemon.status().pid.to_string());
    daemon.kill();
    worker.tell("again");
    assert_eq!(worker.line(), "daemon_unavailable");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    daemon.start_again();
    worker.tell("again");
    assert_eq!(worker.line(), daemon.status().pid.to_string());
    worker.finish();
}

#[test]
fn private_daemon_that_was_killed_is_started_anew() {
    let runtime = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (stay(runtime.path()), stay(runtime.path()));
    let first: i32 = one.line().parse().unwrap();
    assert_eq!(other.line(), first.to_string());
    let first = rustix::process::Pid::from_raw(first).unwrap();
    rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap();
    one.tell("again");
    other.tell("again");
    let second = one.line();
    assert_eq!(other.line(), second);
    assert_ne!(second, first.as_raw_nonzero().to_string());
    one.finish();
    other.finish();
    eventually("the private daemon ends", || {
        (!Path::new(&format!("/proc/{second}/exe")).exists()).then_some(())
    });
}
