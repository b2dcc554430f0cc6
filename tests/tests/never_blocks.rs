//! A file system that does not answer costs its user, and nobody else: not another client, not the status, not
//! the daemon's end.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::Permissions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use reeld_client::{Client, OpenOptions, Video};
use reeld_protocol::{ErrorCode, LeaseId, Notice, Request};
use reeld_tests::{ByHand, Daemon, Reference, StandIn, Worker, as_user, clip, eventually};

const CLIP: &str = "h264_bframes.mp4";
const OPENS: &str = "width_32.mp4";

/// Users, where the tests may have several. Else all are the same one, and share a line.
const HOSTILE: [u32; 3] = [20_001, 20_002, 20_003];
const GOOD: u32 = 20_009;

fn daemon(environment: &[(&str, &str)]) -> Daemon {
    let switches = [("REELD_TEST_AUDIT", "1"), ("REELD_TEST_PATIENCE_MILLIS", "500")];
    let daemon = Daemon::with_environment(&["--socket-mode", "0666"], &[environment, &switches].concat());
    // Others have to get to the socket.
    std::fs::set_permissions(daemon.folder(), Permissions::from_mode(0o755)).unwrap();
    daemon
}

fn has_users() -> bool {
    rustix::process::geteuid().is_root()
}

/// The client that must not notice anything, and its video.
struct Bystander {
    client: Client,
    video: Video,
    reference: Reference,
}

impl Bystander {
    fn of(daemon: &Daemon) -> Bystander {
        let client = as_user(GOOD, || daemon.client());
        let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
        let reference = Reference::new(&clip(CLIP), 320, 180);
        Bystander { client, video, reference }
    }

    /// Frames of an open file, all kinds of requests, and a file that is opened anew.
    fn use_it_all(&self, round: i64) {
        for step in 0..10 {
            let index = (round * 7 + step * 3) % 50;
            assert!(self.video.frame_at(index).unwrap()[..] == *self.reference.frame(index));
        }
        if has_users() {
            let other = self.client.open(clip(OPENS), OpenOptions::default()).unwrap();
            assert_eq!(other.frame_at(round % 5).unwrap().frame_count(), 1);
        }
        assert!(self.client.status().unwrap().client_count >= 1);
    }

    fn stuck(&self) -> u64 {
        self.client.status().unwrap().stuck_helper_count
    }
}

/// Every way in which a descriptor can reach the daemon, with none of which it may hang.
fn send_everywhere(hand: &mut ByHand, mut file: impl FnMut() -> OwnedFd) {
    hand.open(vec![file()]);
    hand.open(vec![file(), file()]);
    hand.frames(reeld_protocol::SourceId(1), vec![0], vec![file()]);
    hand.request(&Request::Status, vec![file()]);
    hand.send(&Notice::Release(vec![LeaseId(77)]), 0, vec![file()]);
    hand.send(&Notice::Cancel(12), 0, vec![file()]);
}

#[test]
fn closing_that_hangs_holds_up_nobody() {
    let stand_in = StandIn::new();
    let environment = stand_in.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut daemon = daemon(&environment);
    let bystander = Bystander::of(&daemon);
    let begin = Instant::now();
    let file = || stand_in.open_hanging("close", &clip(CLIP));
    let mut hands: Vec<ByHand> = HOSTILE
        .into_iter()
        .map(|uid| {
            let mut hand = as_user(uid, || ByHand::connect(&daemon.socket()));
            send_everywhere(&mut hand, file);
            hand
        })
        .collect();
    eventually("calls hang", || (bystander.stuck() >= 4).then_some(()));
    bystander.use_it_all(1);
    // Descriptors that no message claims; more than any message may have; and some that nobody will read.
    let many = std::mem::ManuallyDrop::new((0..100).map(|_| file()).collect::<Vec<OwnedFd>>());
    hands[0].send_bytes(&[0], &[many[0].as_fd()]);
    hands[1].send_bytes(&[0], &many.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    for _ in 0..100 {
        hands[2].open(vec![file()]);
    }
    drop(hands);
    bystander.use_it_all(2);
    let status = eventually("the hostile clients are gone", || {
        let status = bystander.client.status().unwrap();
        (status.client_count == 1).then_some(status)
    });
    assert!(u128::from(status.longest_turn_micros) < begin.elapsed().as_micros(), "{status:?}");
    assert_eq!(status.filling_count, 0);
    bystander.use_it_all(3);
    stand_in.let_go();
    eventually("all calls have come back", || (bystander.stuck() == 0).then_some(()));
    terminate(&mut daemon);
}

#[test]
fn file_whose_examination_hangs_is_an_error_soon_and_its_user_gets_clear_ones_at_once() {
    let stand_in = StandIn::new();
    let environment = stand_in.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut daemon = daemon(&environment);
    let bystander = Bystander::of(&daemon);
    let path = stand_in.hanging("stat", &clip(CLIP));
    let file = || stand_in.open_hanging("stat", &clip(CLIP));
    let mut hands = HOSTILE.map(|uid| as_user(uid, || ByHand::connect(&daemon.socket())));
    for hand in &mut hands {
        for _ in 0..20 {
            hand.open(vec![file()]);
        }
    }
    let begin = Instant::now();
    for hand in &mut hands {
        for _ in 0..20 {
            assert_eq!(hand.error(), ErrorCode::Media);
        }
        // By now the user's line is silent: no more calls are made for it.
        hand.open(vec![file()]);
        assert_eq!(hand.error(), ErrorCode::LimitReached);
    }
    bystander.use_it_all(1);
    let status = bystander.client.status().unwrap();
    assert!(status.stuck_helper_count >= 8, "{status:?}");
    assert!(u128::from(status.longest_turn_micros) < begin.elapsed().as_micros(), "{status:?}");
    // A client of such a user can be killed as any other.
    let mut worker = Worker::start("hold", &daemon.socket(), &[clip(CLIP).to_str().unwrap()]);
    if has_users() {
        assert_eq!(worker.line(), "holding");
    }
    worker.kill();
    eventually("its account is clear", || {
        let status = bystander.client.status().unwrap();
        (status.client_count == 4 && status.lease_count == 0).then_some(())
    });
    stand_in.let_go();
    eventually("all calls have come back", || (bystander.stuck() == 0).then_some(()));
    let client = as_user(HOSTILE[0], || daemon.client());
    let video = client.open(path, OpenOptions::default()).unwrap();
    assert!(video.frame_at(4).unwrap()[..] == *bystander.reference.frame(4));
    terminate(&mut daemon);
}

#[test]
fn daemon_ends_though_calls_hang() {
    let stand_in = StandIn::new();
    let environment = stand_in.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut daemon = daemon(&environment);
    let bystander = Bystander::of(&daemon);
    let mut hand = as_user(HOSTILE[0], || ByHand::connect(&daemon.socket()));
    for call in ["stat", "close"] {
        send_everywhere(&mut hand, || stand_in.open_hanging(call, &clip(CLIP)));
    }
    eventually("calls hang", || (bystander.stuck() >= 2).then_some(()));
    terminate(&mut daemon);
}

fn send_term(daemon: &Daemon) {
    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

fn terminate(daemon: &mut Daemon) {
    send_term(daemon);
    eventually("the daemon has ended", || (!daemon.is_running()).then_some(()));
    assert!(!daemon.socket().exists());
}
