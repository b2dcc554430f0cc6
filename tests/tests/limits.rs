//! Each limit: who reaches it is told which it was, and another client, or another user, notices nothing.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::os::unix::fs::FileExt;
use std::process::Output;

use reeld_client::status::{Status, UserStatus};
use reeld_client::{Client, Error, Frames, OpenOptions, Pending, RequestOptions, Video, Wanted};
use reeld_tests::{Daemon, OtherUser, Reference, clip, eventually, twenty_clips};
use rustix::process::{Pid, Signal, kill_process};

/// 125 frames of 640 x 360, 0.66 MiB each.
const LARGE: &str = "ten_quotas.mp4";
const SMALL: &str = "h264_bframes.mp4";
const OPEN_TO_ALL: [&str; 2] = ["--socket-mode", "0666"];

/// Eight frames of `LARGE`: 5.3 MiB in an arena of their own, less than half of this quota.
const EIGHT: std::ops::Range<u64> = 0..8;
const QUOTA_16: [&str; 2] = ["--client-memory-mib", "16"];

fn daemon(options: &[&str]) -> Daemon {
    Daemon::with(&[&OPEN_TO_ALL, options].concat())
}

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

fn connect(daemon: &Daemon) -> Result<Client, Error> {
    // A daemon of one's own must not be started because of a limit: this one could not be.
    Client::builder().socket(daemon.socket()).autostart(true).binary("/no/such/reeld").connect()
}

fn own(status: &Status) -> UserStatus {
    let uid = rustix::process::getuid().as_raw();
    status.users.iter().find(|user| user.uid == uid).cloned().unwrap()
}

/// Clients that hold eight large frames each, one after the other until one is refused.
fn hold_until_refused(daemon: &Daemon) -> (Vec<(Video, Frames)>, Error) {
    let mut held = Vec::new();
    loop {
        let video = open(&daemon.client(), LARGE);
        match video.frames_in_range(EIGHT) {
            Ok(frames) => held.push((video, frames)),
            Err(error) => return (held, error),
        }
        assert!(held.len() < 100, "nobody is refused");
    }
}

#[track_caller]
fn assert_names(error: &Error, name: &str) {
    assert!(error.to_string().contains(name), "{error:?} does not name {name}");
}

#[test]
fn one_user_cannot_fill_the_memory_of_all() {
    let daemon = daemon(&["--memory-mib", "64", QUOTA_16[0], QUOTA_16[1]]);
    let other = OtherUser::of(&daemon);
    let (mut held, error) = hold_until_refused(&daemon);
    assert!(matches!(error, Error::NoSlots(_)), "{error:?}");
    assert_names(&error, "memory_mib");
    assert_names(&error, "64.0 MiB");
    // Three quarters of 64 MiB, in pieces of 5.3.
    assert_eq!(held.len(), 9);
    other.reader().finish();
    held.pop();
    let video = open(&daemon.client(), LARGE);
    eventually("room for another", || video.frames_in_range(EIGHT).ok());
    let reference = Reference::new(&clip(LARGE), 640, 360);
    assert!(held.iter().all(|(_, frames)| frames[..] == reference.frames(0..8)[..]));
    drop((held, video));
    let status = daemon.await_rest();
    assert_eq!(status.memory_bytes_max, 64 << 20);
    let arena_bytes: u64 = status.users.iter().map(|user| user.arena_bytes + user.detached_bytes).sum();
    assert_eq!((arena_bytes, status.detached_bytes), (0, 0));
}

#[test]
fn user_memory_is_shared_by_the_clients_of_a_user() {
    let daemon = daemon(&["--user-memory-mib", "12", QUOTA_16[0], QUOTA_16[1]]);
    let other = OtherUser::of(&daemon);
    let (held, error) = hold_until_refused(&daemon);
    assert_eq!(held.len(), 2);
    assert!(matches!(error, Error::NoSlots(_)), "{error:?}");
    assert_names(&error, "user_memory_mib");
    assert_names(&error, "12.0 MiB");
    // What is left is enough for two single frames.
    let video = open(&daemon.client(), LARGE);
    let frames: Vec<_> = (0..2).map(|index| video.frame_at(index).unwrap()).collect();
    assert_names(&video.frame_at(2).unwrap_err(), "user_memory_mib");
    let user = own(&video.client().status().unwrap());
    assert_eq!(user.memory_bytes_max, 12 << 20);
    assert!(user.arena_bytes <= 12 << 20 && user.arena_bytes > 11 << 20, "{user:?}");
    if other.is_another() {
        other.reader().finish();
    }
    drop((frames, held));
    eventually("room", || video.frames_in_range(EIGHT).ok());
}

#[test]
fn result_that_no_client_of_a_user_may_have_is_refused_for_good() {
    let daemon = daemon(&["--user-memory-mib", "4"]);
    let video = open(&daemon.client(), LARGE);
    let error = video.frames_in_range(EIGHT).unwrap_err();
    assert!(matches!(error, Error::NoSlots(_)), "{error:?}");
    assert_names(&error, "raise user_memory_mib");
    assert_eq!(video.frame_at(1).unwrap().frame_count(), 1);
}

#[test]
fn arenas_in_which_nothing_lies_make_room_for_other_clients() {
    let daemon = daemon(&["--user-memory-mib", "8"]);
    let [one, other] = [(); 2].map(|()| open(&daemon.client(), LARGE));
    for _ in 0..5 {
        // Each leaves an empty arena of 4 or 8 MiB behind.
        for video in [&one, &other] {
            eventually("room", || video.frames_in_range(0..4).ok());
        }
    }
    assert!(own(&daemon.status()).arena_bytes <= 8 << 20);
}

/// Clients with more wishes than memory and turns, all at once: each comes to its end.
#[test]
fn crowded_clients_of_one_user_all_get_their_frames() {
    let daemon = daemon(&["--user-memory-mib", "8", "--client-memory-mib", "8", "--user-requests-max", "1"]);
    let videos: Vec<_> = (0..6).map(|_| open(&daemon.client(), LARGE)).collect();
    let reference = Reference::new(&clip(LARGE), 640, 360);
    std::thread::scope(|scope| {
        for (number, video) in videos.iter().enumerate() {
            let reference = &reference;
            scope.spawn(move || {
                for step in 0..12 {
                    let indices: Vec<i64> =
                        (0..4).map(|i| ((number * 17 + step * 5 + i) % 125) as i64).collect();
                    let frames = eventually("frames", || match video.frames_at(&indices) {
                        Ok(frames) => Some(frames),
                        // Others hold their frames at this moment, and nothing is under way.
                        Err(Error::NoSlots(_)) => None,
                        Err(error) => panic!("{error:?}"),
                    });
                    assert!(frames[..] == reference.frames(indices)[..]);
                }
            });
        }
    });
    drop(videos);
    let status = daemon.await_rest();
    assert_eq!((own(&status).arena_bytes, own(&status).detached_bytes), (0, 0));
}

#[test]
fn memory_of_clients_that_are_gone_is_counted_until_engines_let_go_of_it() {
    let daemon = daemon(&[]);
    let watcher = daemon.client();
    for _ in 0..10 {
        let video = open(&daemon.client(), LARGE);
        let pending: Vec<_> = (0..8).map(|first| submit(&video, first * 8)).collect();
        drop((pending, video));
        let status = watcher.status().unwrap();
        let user = own(&status);
        assert_eq!(user.detached_bytes, status.detached_bytes);
        assert_eq!(user.arena_bytes, status.arena_bytes);
    }
    eventually("nothing is left in the accounts", || {
        let user = own(&watcher.status().unwrap());
        (user.arena_bytes == 0 && user.detached_bytes == 0 && user.client_count == 1).then_some(())
    });
}

fn submit(video: &Video, first: i64) -> Pending {
    video.submit(Wanted::Indices(vec![first, first + 1]), RequestOptions::default()).unwrap()
}

fn status_as(other: &OtherUser, daemon: &Daemon) -> serde_json::Value {
    let Output { status, stdout, stderr } = other
        .command("reelctl")
        .arg("--socket")
        .arg(daemon.socket())
        .args(["--json", "status"])
        .output()
        .unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).unwrap()
}

#[test]
fn requests_beyond_the_clients_and_the_users_limit_are_not_read_until_others_are_answered() {
    let daemon =
        daemon(&["--client-requests-max", "3", "--user-requests-max", "4", "--engine-count-max", "1"]);
    let other = OtherUser::of(&daemon);
    let [one, two] = [(); 2].map(|()| open(&daemon.client(), SMALL));
    let engine = daemon.status().engines[0].pid;
    let engine = Pid::from_raw(engine as i32).unwrap();
    kill_process(engine, Signal::STOP).unwrap();
    let pending: Vec<_> = (0..20).flat_map(|first| [submit(&one, first), submit(&two, first)]).collect();
    if other.is_another() {
        let uid = rustix::process::getuid().as_raw();
        eventually("the user's limit is reached", || {
            let status = status_as(&other, &daemon);
            let counts = |list: &str| -> Vec<u64> {
                let entries = status[list].as_array().unwrap().iter();
                let own = entries.filter(|entry| entry["uid"] == uid);
                own.map(|entry| entry["request_count"].as_u64().unwrap()).collect()
            };
            assert!(counts("clients").iter().all(|count| *count <= 3), "{status}");
            assert!(counts("users")[0] <= 4, "{status}");
            (counts("users") == [4] && counts("clients").iter().sum::<u64>() == 4).then_some(())
        });
    }
    kill_process(engine, Signal::CONT).unwrap();
    let reference = Reference::new(&clip(SMALL), 320, 180);
    for (number, pending) in pending.into_iter().enumerate() {
        let first = number as i64 / 2;
        assert!(pending.wait().unwrap()[..] == reference.frames([first, first + 1])[..]);
    }
}

#[test]
fn sources_are_limited_by_client_and_by_user() {
    let daemon = daemon(&["--client-sources-max", "3", "--user-sources-max", "4"]);
    let other = OtherUser::of(&daemon);
    let paths = twenty_clips();
    let [one, two] = [daemon.client(), daemon.client()];
    let try_open = |client: &Client, number: usize| client.open(&paths[number], OpenOptions::default());
    let mut videos: Vec<_> = (0..3).map(|number| try_open(&one, number).unwrap()).collect();
    let error = try_open(&one, 3).unwrap_err();
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    assert_names(&error, "client_sources_max");
    videos.push(try_open(&two, 3).unwrap());
    let error = try_open(&two, 4).unwrap_err();
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    assert_names(&error, "user_sources_max");
    assert_eq!(own(&one.status().unwrap()).source_count, 4);
    if other.is_another() {
        other.reader().finish();
    }
    videos.remove(0);
    // What is closed is said with the next message.
    one.status().unwrap();
    videos.push(try_open(&two, 4).unwrap());
    // An open that fails does not count.
    drop(videos);
    for _ in 0..10 {
        assert!(two.open(daemon.folder().join("log"), OpenOptions::default()).is_err());
    }
    one.status().unwrap();
    assert_eq!(own(&two.status().unwrap()).source_count, 0);
}

#[test]
fn connections_are_limited_by_user_and_altogether() {
    let daemon = daemon(&["--client-count-max", "3", "--user-client-count-max", "2"]);
    let other = OtherUser::of(&daemon);
    let mut clients = vec![daemon.client(), daemon.client()];
    let error = connect(&daemon).unwrap_err();
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    assert_names(&error, "user_client_count_max");
    if other.is_another() {
        let mut holder = other.holder();
        assert_eq!(holder.line(), "holding");
        let refused =
            other.command("reelctl").arg("--socket").arg(daemon.socket()).arg("status").output().unwrap();
        let sentence = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && sentence.contains("(client_count_max)"), "{sentence}");
        holder.finish();
    }
    assert_eq!(open(&clients[0], SMALL).frame_at(0).unwrap().frame_count(), 1);
    clients.pop();
    eventually("a place for another", || connect(&daemon).ok());
}

/// Connects until the daemon has no descriptor left.
fn exhaust_descriptors(daemon: &Daemon) -> (Vec<Client>, Error) {
    let mut clients = Vec::new();
    loop {
        match connect(daemon) {
            Ok(client) => clients.push(client),
            Err(error) => return (clients, error),
        }
        assert!(clients.len() < 200, "nobody is refused");
    }
}

/// Asks for what takes a descriptor until that is refused: a thread of the daemon may have closed one after the
/// last connection was taken. What is granted is kept.
fn until_refused<T>(mut ask: impl FnMut(usize) -> Result<T, Error>) -> Error {
    let mut granted = Vec::new();
    loop {
        match ask(granted.len()) {
            Ok(value) => granted.push(value),
            Err(error) => return error,
        }
    }
}

#[test]
fn daemon_without_descriptors_says_so_and_goes_on() {
    let daemon = Daemon::through(&["prlimit", "--nofile=48:48"], &["--engine-count-max", "1"]);
    let client = daemon.client();
    let video = open(&client, SMALL);
    let frames = video.frame_at(0).unwrap();
    let (mut crowd, error) = exhaust_descriptors(&daemon);
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    assert_names(&error, "limit of open files");
    // A file that comes with a request is lost on its way: an error of that request.
    let clips = twenty_clips();
    let error = until_refused(|count| client.open(&clips[count], OpenOptions::default()));
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    assert_names(&error, "limit of open files");
    // Memory files cannot be made.
    let error = until_refused(|_| video.frames_in_range(0..40));
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    // Nor can engines be started.
    let engine = Pid::from_raw(client.status().unwrap().engines[0].pid as i32).unwrap();
    assert!(video.frame_at(1).is_ok(), "what needs no descriptor goes on");
    kill_process(engine, Signal::KILL).unwrap();
    eventually("the engine is gone", || client.status().unwrap().engines.is_empty().then_some(()));
    crowd.extend(exhaust_descriptors(&daemon).0);
    let error = video.frame_at(2).unwrap_err();
    assert!(matches!(error, Error::LimitReached(_)), "{error:?}");
    assert_names(&error, "no decoding process can be started");
    drop(crowd);
    let reference = Reference::new(&clip(SMALL), 320, 180);
    let again = eventually("all is well again", || video.frames_in_range(0..40).ok());
    assert!(again[..] == reference.frames(0..40)[..] && frames[..] == *reference.frame(0));
    assert!(client.open(&clips[0], OpenOptions::default()).is_ok());
}

#[test]
fn limits_of_whoever_started_the_daemon_are_kept_or_told() {
    let reference = Reference::new(&clip(SMALL), 320, 180);
    let little_memory = Daemon::through(&["prlimit", "--data=1000000000:1000000000"], &[]);
    let frames = open(&little_memory.client(), SMALL).frame_at(3).unwrap();
    assert!(frames[..] == *reference.frame(3));
    let mut small_files = Daemon::through(&["prlimit", "--fsize=1000000:1000000"], &[]);
    let client = small_files.client();
    let error = open(&client, SMALL).frame_at(3).unwrap_err();
    assert!(error.to_string().contains("File too large"), "{error}");
    assert!(client.status().is_ok() && small_files.is_running());
}

#[test]
fn soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let daemon = Daemon::through(&["prlimit", "--nofile=32:400"], &[]);
    let clients: Vec<_> = (0..100).map(|_| connect(&daemon).unwrap()).collect();
    assert_eq!(clients[99].status().unwrap().client_count, 100);
}

#[test]
fn daemon_on_one_processor_runs_one_engine() {
    let daemon = Daemon::through(&["taskset", "--cpu-list", "0"], &[]);
    let paths = twenty_clips();
    let client = daemon.client();
    let videos: Vec<_> =
        paths.iter().map(|path| client.open(path, OpenOptions::default()).unwrap()).collect();
    let pending: Vec<_> = (0..60).map(|number| submit(&videos[number % 20], number as i64 % 28)).collect();
    for pending in pending {
        assert_eq!(client.status().unwrap().engines.len(), 1);
        pending.wait().unwrap();
    }
}

#[test]
fn idle_engine_makes_way_for_another_user() {
    let daemon = daemon(&["--engine-count-max", "1"]);
    let other = OtherUser::of(&daemon);
    let video = open(&daemon.client(), SMALL);
    video.frame_at(0).unwrap();
    if other.is_another() {
        other.reader().finish();
        eventually("one engine, the other user's", || {
            let engines = video.client().status().unwrap().engines;
            (engines.len() == 1 && engines[0].uid == other.uid()).then_some(())
        });
        assert!(daemon.log().contains("idle engine makes way"), "{}", daemon.log());
    }
    assert_eq!(video.frame_at(1).unwrap().frame_count(), 1);
}

/// A clip in Motion JPEG.
fn ffmpeg(source: &str, options: &[&str], path: &std::path::Path) {
    let made = std::process::Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "mjpeg"])
        .args(options)
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}

/// A clip whose header and pictures claim another size than they have.
fn clip_that_claims(daemon: &Daemon, width: u16, height: u16) -> std::path::PathBuf {
    let path = daemon.folder().join(format!("claims_{width}x{height}.mov"));
    ffmpeg("testsrc=size=64x64:rate=5:duration=1", &[], &path);
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let [width, height] = [width, height].map(u16::to_be_bytes);
    // Start of frame: length 17, 8 bits, then height and width.
    let frames = bytes.windows(5).enumerate().filter(|(_, window)| *window == [0xFF, 0xC0, 0, 17, 8]);
    let mut frame_count = 0;
    for (at, _) in frames {
        file.write_all_at(&[height, width].concat(), at as u64 + 5).unwrap();
        frame_count += 1;
    }
    assert_eq!(frame_count, 5);
    let entry = bytes.windows(4).position(|window| window == b"jpeg").unwrap() as u64;
    file.write_all_at(&[width, height].concat(), entry + 28).unwrap();
    path
}

#[test]
fn file_that_needs_more_memory_than_an_engine_may_use_is_a_media_error_and_the_engine_lives() {
    let daemon = daemon(&["--engine-memory-mib", "96", "--engine-count-max", "1"]);
    let client = daemon.client();
    let video = open(&client, SMALL);
    let engine = client.status().unwrap().engines[0].pid;
    let path = daemon.folder().join("large.mov");
    ffmpeg("color=black:size=6000x6000:rate=5:duration=0.2", &["-pix_fmt", "yuvj444p"], &path);
    let opened = client.open(&path, OpenOptions::default());
    let error = opened.and_then(|large| large.frame_at(0)).unwrap_err();
    assert!(matches!(error, Error::Media(_)), "{error:?}");
    assert_names(&error, "engine_memory_mib");
    let reference = Reference::new(&clip(SMALL), 320, 180);
    assert!(video.frame_at(9).unwrap()[..] == *reference.frame(9));
    let status = client.status().unwrap();
    assert_eq!((status.engines[0].pid, status.totals.engine_crashes), (engine, 0));
}

#[test]
fn header_that_claims_the_largest_pictures_is_an_error_and_all_stays_well() {
    let daemon = daemon(&["--engine-memory-mib", "512"]);
    let client = daemon.client();
    let path = clip_that_claims(&daemon, 32_767, 32_767);
    let opened = client.open(&path, OpenOptions::default());
    let error = opened.and_then(|huge| huge.frame_at(0)).unwrap_err();
    assert!(matches!(error, Error::Media(_) | Error::NoSlots(_)), "{error:?}");
    assert_eq!(open(&client, SMALL).frame_at(0).unwrap().frame_count(), 1);
    assert_eq!(client.status().unwrap().totals.engine_crashes, 0);
}

#[test]
fn engines_have_their_memory_limit_and_die_before_the_broker() {
    let daemon = daemon(&["--engine-memory-mib", "300"]);
    let client = daemon.client();
    open(&client, SMALL);
    let engine = client.status().unwrap().engines[0].pid;
    let limits = std::fs::read_to_string(format!("/proc/{engine}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert!(line.contains(&(300u64 << 20).to_string()), "{line}");
    let score = |pid: u32| -> i32 {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    assert_eq!(score(engine), (score(daemon.pid()) + 500).min(1000));
}
