//! Hints: what is decoded ahead is served without decoding, and never before what somebody waits for.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use reeld_client::status::{Activity, Status};
use reeld_client::{Client, Dtype, Error, OpenOptions, RequestOptions, Transform, Video, Wanted};
use reeld_protocol::message::{MemoryRange, Prefetch};
use reeld_protocol::{Notice, Reply, Request, SourceId};
use reeld_tests::{Daemon, Peer, Reference, bytes_of, clip, eventually, twenty_clips};
use rustix::process::{Pid, Signal, kill_process};

const CLIP: &str = "h264_bframes.mp4";
const WIDTH: usize = 320;
const HEIGHT: usize = 180;
const FRAME_COUNT: u64 = 50;
const AUDIT: (&str, &str) = ("REELD_TEST_AUDIT", "1");

fn daemon(options: &[&str]) -> Daemon {
    Daemon::with_environment(options, &[AUDIT, ("REELD_LOG", "reeld=debug")])
}

fn one_engine() -> Daemon {
    daemon(&["--engine-count-max", "1"])
}

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

/// Waits until nothing is left to be decoded ahead of `count` frames that were hinted at.
fn until_prefetched(client: &Client, count: u64) -> Status {
    eventually("all hints are followed", || {
        let status = client.status().unwrap();
        let is_busy = status.engines.iter().any(|engine| engine.is_busy);
        let is_done = status.totals.hints_accepted + status.totals.hints_dropped >= count;
        (is_done && status.hints_waiting == 0 && !is_busy).then_some(status)
    })
}

#[test]
fn prefetched_frames_are_served_without_decoding_whoever_asks_for_them() {
    for options in [&["--engine-count-max", "1"], &["--engine-count-max", "3"]] {
        let daemon = daemon(options);
        let client = daemon.client();
        let video = open(&client, CLIP);
        video.prefetch(Wanted::Indices(vec![3, 30, -1, 3])).unwrap();
        video.prefetch(Wanted::IndexRange { start: 8, stop: 14, step: 2 }).unwrap();
        video.prefetch(Wanted::PlayedAtEach(vec![0.81, 1.0])).unwrap();
        let before = until_prefetched(&client, 9);
        assert_eq!((before.totals.pictures_prefetched, before.totals.hints_dropped), (8, 0));

        let other = daemon.client();
        let options = OpenOptions { dtype: Dtype::Float32.into(), ..OpenOptions::default() };
        let same = other.open(clip(CLIP), options).unwrap();
        let small = same.transformed(&[Transform::Resize { height: 32, width: 48 }]).unwrap();
        let frames = video.frames_at(&[-1, 3, 30]).unwrap();
        let reference = Reference::new(&clip(CLIP), WIDTH, HEIGHT);
        assert!(frames[..] == reference.frames([-1, 3, 30])[..], "other pixels than ffmpeg's");
        assert_eq!(small.frames_at(&[8, 10, 12]).unwrap().frame_count(), 3);
        assert_eq!(video.frames_played_at(&[0.8, 1.0]).unwrap().frame_count(), 2);
        let after = client.status().unwrap();
        assert_eq!(after.totals.pictures_decoded, before.totals.pictures_decoded);
        assert_eq!((after.totals.prefetch_hits, after.totals.cache_hits), (8, 8));
    }
}

#[test]
fn frames_of_approximate_mode_may_be_prefetched() {
    let daemon = one_engine();
    let client = daemon.client();
    let options = OpenOptions { seek_mode: reeld_client::SeekMode::Approximate, ..OpenOptions::default() };
    let video = client.open(clip(CLIP), options).unwrap();
    video.prefetch(Wanted::Indices(vec![3, 30])).unwrap();
    assert_eq!(until_prefetched(&client, 2).totals.pictures_prefetched, 2);
    let reference = Reference::new(&clip(CLIP), WIDTH, HEIGHT);
    assert!(video.frames_at(&[3, 30]).unwrap()[..] == reference.frames([3, 30])[..]);
}

/// An engine that has been stopped in the middle of what it decodes ahead.
fn stopped_at_hints(client: &Client) -> Pid {
    eventually("an engine decodes ahead and is stopped at it", || {
        let engine = client
            .status()
            .unwrap()
            .engines
            .into_iter()
            .find(|engine| engine.activity == Activity::Decoding)?;
        let pid = Pid::from_raw(engine.pid as i32)?;
        kill_process(pid, Signal::STOP).unwrap();
        // It may have been between two turns.
        let status = client.status().unwrap();
        if status.hints_waiting > 0 && status.engines[0].is_busy {
            return Some(pid);
        }
        kill_process(pid, Signal::CONT).unwrap();
        None
    })
}

#[test]
fn engine_puts_down_what_nobody_waits_for_before_anything_else() {
    let daemon = one_engine();
    let (hinting, asking) = (daemon.client(), daemon.client());
    let (slow, video) = (open(&hinting, "slow.mp4"), open(&asking, CLIP));
    slow.prefetch(Wanted::IndexRange { start: 385, stop: 400, step: 1 }).unwrap();
    let engine = stopped_at_hints(&hinting);
    let pending = video.submit(Wanted::Indices(vec![7]), RequestOptions::new().priority(i8::MIN)).unwrap();
    daemon.await_log(&["request queued"]);
    kill_process(engine, Signal::CONT).unwrap();
    let frames = pending.wait().unwrap();
    assert!(frames[..] == *Reference::new(&clip(CLIP), WIDTH, HEIGHT).frame(7));
    // In the order of the log: from when it waited to when it was answered, nothing was decoded ahead.
    let log = daemon.log();
    let waited = log.split("request queued").nth(1).unwrap().split("request finished").next().unwrap();
    assert!(waited.contains("request runs") && !waited.contains("hinted run"), "{waited}");
    // And afterwards it goes on.
    let status = until_prefetched(&hinting, 15);
    assert_eq!((status.totals.pictures_prefetched, status.totals.engine_crashes), (15, 0));
}

#[test]
fn request_for_what_is_being_prefetched_joins_that() {
    let daemon = one_engine();
    let (hinting, asking) = (daemon.client(), daemon.client());
    let (slow, same) = (open(&hinting, "slow.mp4"), open(&asking, "slow.mp4"));
    slow.prefetch(Wanted::IndexRange { start: 390, stop: 400, step: 1 }).unwrap();
    let engine = stopped_at_hints(&hinting);
    let pending = same.submit(Wanted::Indices(vec![395]), RequestOptions::default()).unwrap();
    eventually("it joins", || (asking.status().unwrap().totals.joined == 1).then_some(()));
    kill_process(engine, Signal::CONT).unwrap();
    let frames = pending.wait().unwrap();
    let plain = Daemon::with(&["--engine-cache-mib", "0"]);
    let reference = open(&plain.client(), "slow.mp4").frame_at(395).unwrap();
    assert!(frames[..] == reference[..]);
    // All hints but the one that was asked for are followed, too.
    let totals = until_prefetched(&hinting, 10).totals;
    assert!(totals.pictures_prefetched >= 9 && totals.frames_delivered == 1, "{totals:?}");
}

#[test]
fn frames_on_the_way_of_a_request_are_not_decoded_once_more_for_a_hint() {
    let pictures_decoded = [false, true].map(|is_hinted| {
        let daemon = one_engine();
        let client = daemon.client();
        let video = open(&client, CLIP);
        let engine = Pid::from_raw(client.status().unwrap().engines[0].pid as i32).unwrap();
        kill_process(engine, Signal::STOP).unwrap();
        // While this one is done, the others wait.
        let first = video.submit(Wanted::Indices(vec![0]), RequestOptions::default()).unwrap();
        if is_hinted {
            video.prefetch(Wanted::IndexRange { start: 30, stop: 38, step: 1 }).unwrap();
        }
        let last = video.submit(Wanted::Indices(vec![40]), RequestOptions::default()).unwrap();
        eventually("both are queued", || (daemon.log().matches("request queued").count() == 2).then_some(()));
        kill_process(engine, Signal::CONT).unwrap();
        drop((first.wait().unwrap(), last.wait().unwrap()));
        let status = until_prefetched(&client, if is_hinted { 8 } else { 0 });
        let frames = video.frames_at(&[30, 33, 37]).unwrap();
        assert!(frames[..] == Reference::new(&clip(CLIP), WIDTH, HEIGHT).frames([30, 33, 37])[..]);
        if is_hinted {
            let after = client.status().unwrap().totals;
            assert_eq!((after.pictures_prefetched, after.prefetch_hits), (8, 3));
            assert_eq!(after.pictures_decoded, status.totals.pictures_decoded);
        }
        status.totals.pictures_decoded
    });
    // Of the eight, those that nothing refers to are left out where nobody wants them.
    assert!(pictures_decoded[1] <= pictures_decoded[0] + 8, "{pictures_decoded:?}");
}

#[test]
fn flood_of_hints_holds_up_nobody_and_stays_within_its_bounds() {
    let daemon = daemon(&["--engine-count-max", "2", "--engine-cache-mib", "8"]);
    let clips = twenty_clips();
    let flooding: Vec<Video> = {
        let client = daemon.client();
        clips.iter().map(|clip| client.open(clip, OpenOptions::default()).unwrap()).collect()
    };
    let flood = std::thread::spawn(move || {
        for round in 0..200 {
            for video in &flooding {
                video.prefetch(Wanted::Indices(vec![round % 30, 29 - round % 30])).unwrap();
                video.prefetch(Wanted::IndexRange { start: 0, stop: 30, step: 1 }).unwrap();
            }
        }
        flooding
    });
    let client = daemon.client();
    let video = open(&client, CLIP);
    let reference = Reference::new(&clip(CLIP), WIDTH, HEIGHT);
    for index in (0..FRAME_COUNT as i64).rev() {
        assert!(video.frame_at(index).unwrap()[..] == *reference.frame(index));
    }
    let flooding = flood.join().unwrap();
    // Its last hints came before this answer.
    let status = flooding[0].client().status().unwrap();
    assert_eq!(status.totals.hints_accepted + status.totals.hints_dropped, 200 * 20 * 32);
    assert!(status.totals.hints_dropped > 0 && status.cache_bytes <= 2 * (8 << 20));
    assert_eq!(status.totals.requests_failed, 0);
    drop((flooding, video, client));
    let status = daemon.await_rest();
    assert_eq!(status.hints_waiting, 0);
}

#[test]
fn hints_beyond_a_share_of_the_caches_are_dropped_and_counted() {
    let daemon = daemon(&["--engine-count-max", "1", "--engine-cache-mib", "8"]);
    let client = daemon.client();
    let video = open(&client, CLIP);
    // A quarter of 8 MiB is room for 18 pictures of twice as many bytes as pixels.
    video.prefetch(Wanted::IndexRange { start: 0, stop: 50, step: 1 }).unwrap();
    let status = until_prefetched(&client, 50);
    assert_eq!((status.totals.hints_accepted, status.totals.hints_dropped), (18, 32));
    assert_eq!(status.totals.pictures_prefetched, 18);
    // What was asked for makes room.
    drop(video.frames_in_range(0..10).unwrap());
    video.prefetch(Wanted::IndexRange { start: 18, stop: 50, step: 1 }).unwrap();
    let status = until_prefetched(&client, 82);
    assert_eq!((status.totals.hints_accepted, status.totals.prefetch_hits), (28, 10));

    let nothing_kept = Daemon::with(&["--engine-cache-mib", "0"]);
    let client = nothing_kept.client();
    open(&client, CLIP).prefetch(Wanted::Indices(vec![1, 2])).unwrap();
    let totals = client.status().unwrap().totals;
    assert_eq!((totals.hints_accepted, totals.hints_dropped), (0, 2));
}

#[test]
fn hints_of_a_client_that_is_gone_are_forgotten() {
    let daemon = one_engine();
    let (hinting, watching) = (daemon.client(), daemon.client());
    let slow = open(&hinting, "slow.mp4");
    slow.prefetch(Wanted::IndexRange { start: 385, stop: 400, step: 1 }).unwrap();
    let engine = stopped_at_hints(&watching);
    drop((slow, hinting));
    eventually("they are forgotten", || (watching.status().unwrap().hints_waiting == 0).then_some(()));
    kill_process(engine, Signal::CONT).unwrap();
    let status = until_prefetched(&watching, 15);
    assert!(status.totals.pictures_prefetched < 15);
}

#[test]
fn engine_that_dies_of_a_hint_costs_the_hint_alone() {
    let daemon = one_engine();
    let client = daemon.client();
    let (slow, video) = (open(&client, "slow.mp4"), open(&client, CLIP));
    slow.prefetch(Wanted::IndexRange { start: 385, stop: 400, step: 1 }).unwrap();
    let engine = stopped_at_hints(&client);
    kill_process(engine, Signal::KILL).unwrap();
    eventually("they are dropped", || (client.status().unwrap().hints_waiting == 0).then_some(()));
    assert!(video.frame_at(7).unwrap()[..] == *Reference::new(&clip(CLIP), WIDTH, HEIGHT).frame(7));
}

#[test]
fn frame_that_there_is_not_is_the_error_that_asking_for_it_is() {
    let daemon = one_engine();
    let client = daemon.client();
    let video = open(&client, CLIP);
    for indices in [vec![0, 50], vec![-51], vec![i64::MAX], vec![i64::MIN]] {
        let hinted = video.prefetch(Wanted::Indices(indices.clone())).unwrap_err();
        let asked = video.frames_at(&indices).unwrap_err();
        assert!(matches!(hinted, Error::FrameIndex(_)));
        assert_eq!(hinted.to_string(), asked.to_string());
    }
    for (wanted, asked) in [
        (Wanted::IndexRange { start: 0, stop: 51, step: 1 }, video.frames_in_range(0..51)),
        (Wanted::IndexRange { start: 0, stop: 5, step: 0 }, video.frames_in_range((0, 5, 0))),
        (Wanted::PlayedAt(2.0), video.frame_played_at(2.0)),
        (Wanted::PlayedAtEach(vec![0.0, f64::NAN]), video.frames_played_at(&[0.0, f64::NAN])),
    ] {
        assert_eq!(video.prefetch(wanted).unwrap_err().to_string(), asked.unwrap_err().to_string());
    }
    assert_eq!(client.status().unwrap().totals.hints_accepted, 0);
}

#[test]
fn hints_that_no_client_of_ours_gives_are_dropped() {
    let daemon = one_engine();
    let mut peer = Peer::welcomed(&daemon);
    let source = peer.open(1, &clip(CLIP));
    let memory = MemoryRange { offset_bytes: 0, count: 1000 };
    for hint in [
        Prefetch { source: SourceId(99), wanted: Wanted::Indices(vec![0]) },
        Prefetch { source, wanted: Wanted::Indices(vec![0, 50]) },
        Prefetch { source, wanted: Wanted::Indices(vec![3; 60_000]) },
        Prefetch { source, wanted: Wanted::IndexRange { start: 0, stop: u64::MAX, step: u64::MAX } },
        Prefetch { source, wanted: Wanted::IndicesInMemory(memory) },
        Prefetch { source, wanted: Wanted::PlayedAtEachInMemory(memory) },
        Prefetch { source, wanted: Wanted::PlayedInRange { start: 5.0, stop: 1.0 } },
    ] {
        peer.send(&bytes_of(&Notice::Prefetch(hint), 0));
    }
    let Some(Reply::Status(status)) = peer.call(2, &Request::Status) else {
        panic!("the connection goes on")
    };
    assert!(status.totals.hints_accepted <= (64 << 20) / (WIDTH * HEIGHT * 2) as u64);
    assert!(status.totals.hints_dropped > 50_000);
    drop(peer);
    daemon.await_rest();
}

#[test]
fn hint_without_a_daemon_is_forgotten() {
    let mut daemon = one_engine();
    let client = daemon.client();
    let video = open(&client, CLIP);
    daemon.kill();
    video.prefetch(Wanted::Indices(vec![1])).unwrap();
    video.prefetch(Wanted::Indices(vec![2])).unwrap();
    daemon.start_again();
    assert_eq!(video.frame_at(1).unwrap().frame_count(), 1);
    video.prefetch(Wanted::Indices(vec![2])).unwrap();
    assert_eq!(until_prefetched(&client, 1).totals.pictures_prefetched, 1);
}
