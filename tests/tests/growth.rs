//! A daemon that has served 100,000 requests of clients that came and went holds what it held after 20,000:
//! the same descriptors, no lease, and no more memory.
//!
//! That single deaths leave nothing behind is tested in `crashes` and `processes`.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use reeld_client::status::Status;
use reeld_client::{Client, Error, OpenOptions, RequestOptions, Video, Wanted};
use reeld_tests::{Daemon, Random, Worker, clip, eventually, twenty_clips};

const VISIT_REQUESTS: u64 = 100;
const FIRST_VISITS: u64 = 200;
const ALL_VISITS: u64 = 1050;
const THREADS: u64 = 4;

/// Requests that a client has on their way at once.
const WINDOW: u64 = 10;

/// What allocators keep, and buffers that have seen their largest message.
const BROKER_GROWTH_MAX: u64 = 8 << 20;

/// An engine's pictures fill their cache in the first part; decoders that are kept come and go with the
/// files of the moment, some MB each.
const ENGINE_GROWTH_MAX: u64 = 48 << 20;

/// What a daemon at rest holds.
#[derive(Debug)]
struct Holdings {
    descriptors: BTreeMap<String, u64>,
    broker_bytes: u64,
    engine_bytes_max: u64,
}

#[test]
fn hundred_thousand_requests_leave_what_twenty_thousand_left() {
    let daemon =
        Daemon::with(&["--engine-count-max", "2", "--engine-cache-mib", "16", "--client-memory-mib", "16"]);
    let clips = twenty_clips();
    clip("slow.mp4");
    serve(&daemon, &clips, 0..FIRST_VISITS);
    let before = holdings(&daemon, &clips);
    serve(&daemon, &clips, FIRST_VISITS..ALL_VISITS);
    let after = holdings(&daemon, &clips);
    println!("after {} requests: {before:#?}", FIRST_VISITS * VISIT_REQUESTS);
    println!("after {} requests: {after:#?}", ALL_VISITS * VISIT_REQUESTS);
    assert_eq!(after.descriptors, before.descriptors);
    assert!(after.broker_bytes <= before.broker_bytes + BROKER_GROWTH_MAX);
    assert!(after.engine_bytes_max <= before.engine_bytes_max + ENGINE_GROWTH_MAX);
}

/// Lets clients come and go, several at a time.
fn serve(daemon: &Daemon, clips: &[PathBuf; 20], visits: std::ops::Range<u64>) {
    let next = AtomicU64::new(visits.start);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= visits.end {
                        return;
                    }
                    visit(daemon, clips, number);
                }
            });
        }
    });
}

/// One client: 100 requests on a new connection. Of 20 clients one does nothing but wrong, one brings its video
/// as bytes, and one is another process that is killed.
fn visit(daemon: &Daemon, clips: &[PathBuf; 20], number: u64) {
    let mut random = Random::new(number);
    let path = &clips[random.below(20) as usize];
    match number % 20 {
        7 => be_killed(daemon, path),
        11 => do_wrong(&daemon.client(), path),
        13 => {
            let client = daemon.client();
            let video = client.open(fs::read(path).unwrap(), OpenOptions::default()).unwrap();
            ask(&video, &mut random);
        }
        _ => {
            let client = daemon.client();
            ask(&client.open(path, OpenOptions::default()).unwrap(), &mut random);
        }
    }
}

/// 100 requests, ten at a time; some are cancelled, and some dropped.
fn ask(video: &Video, random: &mut Random) {
    for _ in 0..VISIT_REQUESTS / WINDOW {
        let request = |_| {
            let wanted = Wanted::Indices(vec![random.below(30) as i64, random.below(30) as i64]);
            video.submit(wanted, RequestOptions::default()).unwrap()
        };
        let pending: Vec<_> = (0..WINDOW).map(request).collect();
        for (position, pending) in pending.into_iter().enumerate() {
            match position {
                3 => pending.cancel(),
                5 => {
                    pending.cancel();
                    let outcome = pending.wait();
                    assert!(matches!(outcome, Ok(_) | Err(Error::Cancelled(_))), "{outcome:?}");
                }
                _ => assert_eq!(pending.wait().unwrap().frame_count(), 2),
            }
        }
    }
}

/// Requests and files that are refused.
fn do_wrong(client: &Client, path: &Path) {
    let video = client.open(path, OpenOptions::default()).unwrap();
    for _ in 0..VISIT_REQUESTS / 2 {
        assert!(matches!(video.frame_at(30), Err(Error::FrameIndex(_))));
        let too_large = video.frames_at(&[0; 1000]);
        assert!(matches!(too_large, Err(Error::NoSlots(_))), "{too_large:?}");
    }
    let broken = client.open(b"no video".to_vec(), OpenOptions::default());
    assert!(matches!(broken, Err(Error::Media(_))));
}

/// A process that holds a result and waits for others when it dies.
fn be_killed(daemon: &Daemon, path: &Path) {
    let arguments = [path.to_str().unwrap(), &clip("slow.mp4").display().to_string()];
    let mut worker = Worker::start("hold-and-ask", &daemon.socket(), &arguments);
    assert_eq!(worker.line(), "holding");
    worker.kill();
}

/// What is held when nobody holds anything, the same files are known and engines have nothing to do.
fn holdings(daemon: &Daemon, clips: &[PathBuf; 20]) -> Holdings {
    let client = daemon.client();
    // Files that nobody has open are kept for a minute: this is what makes the first ones young again.
    for path in clips.iter().chain([&clip("slow.mp4")]) {
        client.open(path, OpenOptions::default()).unwrap();
    }
    drop(client);
    let client = daemon.client();
    let status = eventually("a daemon at rest", || {
        let status = client.status().unwrap();
        is_at_rest(&status).then_some(status)
    });
    let engines: Vec<u32> = status.engines.iter().map(|engine| engine.pid).collect();
    eventually("no memory of clients in any process", || {
        client.status().unwrap();
        let count: u64 = engines.iter().chain([&status.pid]).map(|&pid| memfd_count(pid)).sum();
        (count == 0).then_some(())
    });
    let mut descriptors = descriptors(status.pid);
    let engine_count = engines.len() as u64;
    *descriptors.get_mut("socket:").unwrap() -= engine_count;
    *descriptors.get_mut("anon_inode:[pidfd]").unwrap() -= engine_count;
    Holdings {
        descriptors,
        broker_bytes: resident_bytes(status.pid),
        engine_bytes_max: engines.into_iter().map(resident_bytes).max().unwrap(),
    }
}

fn is_at_rest(status: &Status) -> bool {
    let left = [
        status.lease_count,
        status.filling_count,
        status.quarantined_count,
        status.arena_bytes,
        status.queued_run_count,
        status.request_count,
    ];
    let is_busy = status.engines.iter().any(|engine| engine.is_busy);
    // Twenty clips and the slow one; bytes and what is no video are forgotten at once.
    status.client_count == 1 && left == [0; 6] && status.source_count == 21 && !is_busy
}

/// What a process has open, by kind; sockets and pipes without their numbers.
fn descriptors(pid: u32) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // It may be closed meanwhile.
        let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
        let target = target.display().to_string();
        let kind = match target.split_once(":[") {
            Some((kind, number)) if number.starts_with(|c: char| c.is_ascii_digit()) => format!("{kind}:"),
            Some(_) | None => target,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn memfd_count(pid: u32) -> u64 {
    descriptors(pid).iter().filter(|(kind, _)| kind.starts_with("/memfd:")).map(|(_, count)| count).sum()
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}
