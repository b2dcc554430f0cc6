//! Clients and engines that die, in ways that do not show at once: what they held comes back, and nobody else
//! sees it used too early.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::time::Duration;

use reeld_client::status::Status;
use reeld_client::{Client, Error, OpenOptions, RequestOptions, Video, Wanted};
use reeld_tests::{Daemon, Reference, StandIn, Worker, clip, eventually};
use rustix::process::{Pid, Signal, kill_process};

const CLIP: &str = "h264_bframes.mp4";
const AUDIT: (&str, &str) = ("REELD_TEST_AUDIT", "1");
const ONE_ENGINE: [&str; 4] = ["--engine-count-max", "1", "--engine-cache-mib", "0"];
const TWO_ENGINES: [&str; 4] = ["--engine-count-max", "2", "--engine-cache-mib", "0"];

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

fn last_of(video: &Video, options: RequestOptions) -> reeld_client::Pending {
    video.submit(Wanted::Indices(vec![-1]), options).unwrap()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn busy_engine(client: &Client) -> u32 {
    eventually("an engine is busy", || {
        let engines = client.status().unwrap().engines;
        engines.iter().find(|engine| engine.is_busy && engine.pid != 0).map(|engine| engine.pid)
    })
}

fn crashes(client: &Client, count: u64) {
    eventually("the engine's end is noticed", || {
        (client.status().unwrap().totals.engine_crashes == count).then_some(())
    });
}

fn until_alone(client: &Client) -> Status {
    eventually("the dead client is noticed", || {
        let status = client.status().unwrap();
        (status.client_count == 1).then_some(status)
    })
}

/// A client that was killed while another process has its socket.
fn killed_with_open_socket(daemon: &Daemon, client: &Client) -> Worker {
    let path = clip(CLIP);
    let mut worker = Worker::start("hold-by-hand", &daemon.socket(), &[path.to_str().unwrap()]);
    assert_eq!(worker.line(), "holding");
    assert_eq!(client.status().unwrap().lease_count, 1);
    worker.kill();
    worker
}

#[test]
fn killed_client_is_noticed_though_its_child_keeps_the_socket() {
    for way in [AUDIT, ("REELD_TEST_DEATH", "pidfd-open")] {
        let daemon = Daemon::with_environment(&[], &[AUDIT, way]);
        let client = daemon.client();
        let _holder = killed_with_open_socket(&daemon, &client);
        let status = until_alone(&client);
        assert_eq!((status.lease_count, status.leased_bytes), (0, 0), "{way:?}");
    }
}

#[test]
fn where_the_socket_has_to_do_the_client_lives_as_long_as_its_socket() {
    let daemon = Daemon::with_environment(&[], &[AUDIT, ("REELD_TEST_DEATH", "hup")]);
    let client = daemon.client();
    let mut holder = killed_with_open_socket(&daemon, &client);
    for _ in 0..50 {
        assert_eq!(client.status().unwrap().lease_count, 1);
    }
    holder.let_go();
    assert_eq!(until_alone(&client).lease_count, 0);
}

#[test]
fn clients_that_come_and_go_leave_no_descriptor() {
    for way in [AUDIT, ("REELD_TEST_DEATH", "pidfd-open"), ("REELD_TEST_DEATH", "hup")] {
        // A second engine would have descriptors of its own.
        let daemon = Daemon::with_environment(&ONE_ENGINE, &[AUDIT, way]);
        let folder = format!("/proc/{}/fd", daemon.pid());
        let count = || std::fs::read_dir(&folder).unwrap().count();
        let client = daemon.client();
        let video = open(&client, CLIP);
        let visit = || {
            let visitor = daemon.client();
            open(&visitor, CLIP).frame_at(3).unwrap();
        };
        visit();
        let before = eventually("one client", || {
            let is_settled = client.status().unwrap().client_count == 1;
            is_settled.then(&count).filter(|&first| first == count())
        });
        for _ in 0..200 {
            visit();
        }
        eventually("no more descriptors than before", || {
            let status = client.status().unwrap();
            // There may be fewer: a helper may still have been closing the first visitor's.
            (status.client_count == 1 && count() <= before).then_some(())
        });
        assert_eq!(video.frame_at(0).unwrap().frame_count(), 1);
    }
}

#[test]
fn orphan_reads_what_it_inherited_whatever_others_ask_for_meanwhile() {
    let daemon = Daemon::with_environment(&[], &[AUDIT]);
    let client = daemon.client();
    let reference = Reference::new(&clip(CLIP), 320, 180);
    let file = daemon.folder().join("reference.rgb");
    reference.write(&file);
    let arguments = [clip(CLIP), file].map(|path| path.to_str().unwrap().to_owned());
    let mut worker = Worker::start("orphan", &daemon.socket(), &arguments.each_ref().map(String::as_str));
    assert_eq!(worker.line(), "holding");
    worker.kill();
    assert_eq!(until_alone(&client).lease_count, 0);
    let video = open(&client, CLIP);
    for index in 0..100 {
        assert!(video.frame_at(index % 50).unwrap()[..] == *reference.frame(index % 50));
    }
    worker.let_go();
    assert_eq!(worker.line(), "unharmed");
}

#[test]
fn client_that_is_killed_with_more_requests_than_it_may_have_leaves_nothing() {
    let daemon = Daemon::with_environment(&ONE_ENGINE, &[AUDIT, ("REELD_TEST_DEATH", "hup")]);
    let client = daemon.client();
    let reference = Reference::new(&clip(CLIP), 320, 180);
    let mut hand = reeld_tests::ByHand::connect(&daemon.socket());
    hand.open(vec![std::fs::File::open(clip("slow.mp4")).unwrap().into()]);
    let reply = hand.reply().1;
    let reeld_protocol::Reply::SourceOpened(opened) = reply else { panic!("{reply:?}") };
    for index in 0..100 {
        hand.frames(opened.source, vec![index], Vec::new());
    }
    drop(hand);
    let status = until_alone(&client);
    assert_eq!((status.request_count, status.filling_count, status.queued_run_count), (0, 0, 0));
    assert!(open(&client, CLIP).frame_at(5).unwrap()[..] == *reference.frame(5));
}

#[test]
fn engine_that_is_stopped_is_replaced_and_its_request_done_elsewhere() {
    let daemon = Daemon::with_environment(&ONE_ENGINE, &[AUDIT, ("REELD_TEST_SILENCE_MILLIS", "3000")]);
    let client = daemon.client();
    let video = open(&client, "slow.mp4");
    let pending = last_of(&video, RequestOptions::default());
    let pid = busy_engine(&client);
    signal(pid, Signal::STOP);
    assert_eq!(pending.wait().unwrap().part(0).unwrap().shape(), [1, 1080, 1920, 3]);
    let status = client.status().unwrap();
    assert_eq!((status.totals.engine_crashes, status.totals.retries), (1, 1));
    assert!(status.engines.iter().all(|engine| engine.pid != pid), "{:?}", status.engines);
}

#[test]
fn deadline_of_a_request_comes_though_its_engine_is_stopped() {
    let daemon = Daemon::with_environment(&ONE_ENGINE, &[AUDIT]);
    let client = daemon.client();
    let video = open(&client, "slow.mp4");
    let options = RequestOptions { timeout: Some(Duration::from_millis(1500)), ..RequestOptions::default() };
    let pending = last_of(&video, options);
    signal(busy_engine(&client), Signal::STOP);
    let error = pending.wait().unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error:?}");
    assert_eq!(client.status().unwrap().quarantined_count, 1);
}

#[test]
fn slot_is_quarantined_until_its_engine_was_reaped() {
    let daemon = Daemon::with_environment(&TWO_ENGINES, &[AUDIT]);
    let client = daemon.client();
    let (slow, video) = (open(&client, "slow.mp4"), open(&client, CLIP));
    let reference = Reference::new(&clip(CLIP), 320, 180);
    let pending = last_of(&slow, RequestOptions::default());
    let pid = busy_engine(&client);
    signal(pid, Signal::STOP);
    drop(pending);
    eventually("the request was given up", || {
        (client.status().unwrap().quarantined_count == 1).then_some(())
    });
    let held: Vec<_> = (0..50).map(|index| video.frame_at(index).unwrap()).collect();
    assert_eq!(client.status().unwrap().quarantined_count, 1);
    // It goes on where it was stopped, writes what nobody wants, and hears of that only then.
    signal(pid, Signal::CONT);
    eventually("the engine has answered", || (client.status().unwrap().quarantined_count == 0).then_some(()));
    for (index, frames) in held.iter().enumerate() {
        assert!(frames[..] == *reference.frame(index as i64), "frame {index}");
    }
    let pending = last_of(&slow, RequestOptions::default());
    let pid = busy_engine(&client);
    signal(pid, Signal::STOP);
    drop(pending);
    eventually("the request was given up", || {
        (client.status().unwrap().quarantined_count == 1).then_some(())
    });
    signal(pid, Signal::KILL);
    let status = eventually("the engine was reaped", || {
        let status = client.status().unwrap();
        (status.quarantined_count == 0).then_some(status)
    });
    assert_eq!(status.totals.engine_crashes, 1);
}

#[test]
fn engines_killed_from_outside_are_not_blamed_on_the_file() {
    let daemon = Daemon::with_environment(&ONE_ENGINE, &[AUDIT]);
    let client = daemon.client();
    let video = open(&client, "slow.mp4");
    let pending = last_of(&video, RequestOptions::default());
    for count in 1..=3 {
        signal(busy_engine(&client), Signal::KILL);
        crashes(&client, count);
    }
    assert_eq!(pending.wait().unwrap().frame_count(), 1);
    assert_eq!(client.status().unwrap().totals.retries, 3);
}

#[test]
fn crash_names_the_file_at_which_it_happened_to_everyone_who_waits_for_it() {
    let daemon = Daemon::with_environment(&ONE_ENGINE, &[AUDIT]);
    let (client, other) = (daemon.client(), daemon.client());
    let (slow, video) = (open(&client, "slow.mp4"), open(&client, CLIP));
    let both = [(&video, Wanted::Indices(vec![1])), (&slow, Wanted::Indices(vec![-1]))];
    // The other file's part is served first: it was asked for before.
    let pending = client.submit(&both, RequestOptions::default()).unwrap();
    let joined = last_of(&open(&other, "slow.mp4"), RequestOptions::default());
    for count in 1..=2 {
        eventually("the engine is at the slow file alone", || {
            let status = client.status().unwrap();
            (status.queued_run_count == 0 && status.request_count == 2).then_some(())
        });
        signal(busy_engine(&client), Signal::ABORT);
        crashes(&client, count);
    }
    for error in [pending.wait().unwrap_err(), joined.wait().unwrap_err()] {
        assert!(matches!(error, Error::DecoderCrashed(_)), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("slow.mp4") && message.contains("SIGABRT"), "{message}");
    }
    assert_eq!(video.frame_at(1).unwrap().frame_count(), 1);
}

#[test]
fn engines_that_cannot_be_started_fail_requests_with_a_sentence_and_are_tried_again() {
    let stand_in = StandIn::new();
    let environment = stand_in.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = Daemon::with_environment(&[], &[&environment[..], &[AUDIT]].concat());
    stand_in.curse_engines();
    let client = daemon.client();
    for _ in 0..2 {
        let error = client.open(clip(CLIP), OpenOptions::default()).unwrap_err();
        assert!(error.to_string().contains("end as soon as they start"), "{error}");
    }
    stand_in.lift_curse();
    assert_eq!(open(&client, CLIP).frame_at(2).unwrap().frame_count(), 1);
}
