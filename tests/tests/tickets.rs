//! Frames that are handed from one process to another: who may have them, until when, and what is left when any of
//! them dies.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use reeld_client::status::Status;
use reeld_client::{Client, Error, Frames, OpenOptions, Ticket, Video};
use reeld_protocol::message::{self, Reply, Request};
use reeld_protocol::{ErrorCode, LeaseId};
use reeld_tests::{ByHand, Daemon, Reference, Worker, as_user, clip, eventually};

const CLIP: &str = "h264_bframes.mp4";
const AUDIT: (&str, &str) = ("REELD_TEST_AUDIT", "1");
const INDICES: [i64; 2] = [3, 17];

fn daemon(options: &[&str]) -> Daemon {
    Daemon::with_environment(options, &[AUDIT])
}

fn open(client: &Client) -> Video {
    client.open(clip(CLIP), OpenOptions::default()).unwrap()
}

fn reference() -> Reference {
    Reference::new(&clip(CLIP), 320, 180)
}

fn is_right(frames: &Frames) -> bool {
    frames[..] == reference().frames(INDICES)[..]
}

fn from_hex(digits: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// A process that has handed its frames on and still holds them, and the ticket. `session`: on whose behalf.
fn issuer(daemon: &Daemon, session: u32) -> (Worker, Ticket) {
    let path = clip(CLIP);
    let arguments = [path.to_str().unwrap(), &session.to_string()];
    let mut worker = Worker::start("hand-on", &daemon.socket(), &arguments);
    let ticket = Ticket::from_bytes(&from_hex(&worker.line())).unwrap();
    (worker, ticket)
}

fn redeem(client: &Client, ticket: &Ticket) -> Result<Frames, Error> {
    client.redeem(ticket)?.wait()
}

#[track_caller]
fn assert_lost(client: &Client, ticket: &Ticket) {
    match redeem(client, ticket) {
        Err(Error::FramesLost(message)) => assert!(message.contains("redeemed already"), "{message}"),
        other => panic!("{other:?}"),
    }
}

fn until_alone(client: &Client) -> Status {
    eventually("the others are gone", || {
        let status = client.status().unwrap();
        (status.client_count == 1).then_some(status)
    })
}

fn until_nothing_is_left(client: &Client) -> Status {
    eventually("nothing is left", || {
        let status = client.status().unwrap();
        let left = [status.lease_count, status.tickets_outstanding, status.detached_bytes];
        (left == [0; 3]).then_some(status)
    })
}

#[test]
fn frames_of_a_living_process_are_the_same_memory_in_both() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let (issuer, ticket) = issuer(&daemon, 0);
    let mut frames = redeem(&client, &ticket).unwrap();
    assert!(is_right(&frames) && !frames.is_copied());
    assert_eq!(frames.part(0).unwrap().pts_seconds().len(), INDICES.len());
    assert_eq!(client.status().unwrap().lease_count, 2);
    frames.pixels_mut(0).unwrap()[0] = 255;
    issuer.finish();
    drop(frames);
    let totals = until_nothing_is_left(&client).totals;
    assert_eq!((totals.tickets_issued, totals.tickets_redeemed, totals.tickets_expired), (1, 1, 0));
    assert_eq!(totals.bytes_copied_out, 0);
}

#[test]
fn ticket_is_redeemed_once() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let (_issuer, ticket) = issuer(&daemon, 0);
    let frames = redeem(&client, &ticket).unwrap();
    assert_lost(&client, &ticket);
    assert_lost(&daemon.client(), &ticket);
    assert!(is_right(&frames));
}

#[test]
fn ticket_outlives_its_killed_issuer_while_the_session_lives() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let (mut issuer, ticket) = issuer(&daemon, std::process::id());
    issuer.kill();
    let status = until_alone(&client);
    assert_eq!((status.tickets_outstanding, status.lease_count), (1, 0));
    assert!(status.detached_bytes > 0 && status.users[0].detached_bytes > 0);
    let frames = redeem(&client, &ticket).unwrap();
    assert!(is_right(&frames));
    // What is free in the memory of a dead client is nobody's.
    let video = open(&client);
    for index in 0..50 {
        video.frame_at(index).unwrap();
    }
    assert!(is_right(&frames));
    drop(frames);
    until_nothing_is_left(&client);
}

#[test]
fn ticket_outlives_its_session_while_the_issuer_lives_and_expires_with_the_last() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let mut session = Worker::spawn(std::process::Command::new("cat").arg("-"));
    let (mut first, taken) = issuer(&daemon, session.pid());
    let (mut second, lost) = issuer(&daemon, session.pid());
    session.kill();
    assert!(is_right(&redeem(&client, &taken).unwrap()));
    first.kill();
    second.kill();
    let status = until_nothing_is_left(&client);
    assert_eq!(status.totals.tickets_expired, 1);
    assert_lost(&client, &lost);
}

#[test]
fn ticket_expires_when_issuer_and_then_session_are_killed() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let mut session = Worker::spawn(std::process::Command::new("cat").arg("-"));
    let (mut issuer, ticket) = issuer(&daemon, session.pid());
    let fd_count = daemon.fd_count();
    issuer.kill();
    assert_eq!(until_alone(&client).tickets_outstanding, 1);
    session.kill();
    until_nothing_is_left(&client);
    assert_lost(&client, &ticket);
    eventually("the session is not watched any more", || (daemon.fd_count() < fd_count).then_some(()));
}

#[test]
fn ticket_without_a_session_goes_with_its_issuer() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let (mut issuer, ticket) = issuer(&daemon, 0);
    issuer.kill();
    until_nothing_is_left(&client);
    assert_lost(&client, &ticket);
}

#[test]
fn ticket_of_a_daemon_that_was_restarted_says_so() {
    let mut daemon = daemon(&[]);
    let client = daemon.client();
    let frames = open(&client).frames_at(&INDICES).unwrap();
    let ticket = frames.ticket().unwrap();
    daemon.kill();
    daemon.start_again();
    match redeem(&daemon.client(), &ticket) {
        Err(Error::FramesLost(message)) => assert!(message.contains("restarted"), "{message}"),
        other => panic!("{other:?}"),
    }
    // They are still here, and can only be copied.
    assert!(is_right(&frames));
    assert!(matches!(frames.ticket(), Err(Error::DaemonUnavailable { .. })));
}

#[test]
fn slot_that_a_dead_redeemer_had_is_never_used_again() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let video = open(&client);
    let frames = video.frames_at(&INDICES).unwrap();
    let bytes = frames.ticket().unwrap().to_bytes().unwrap();
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    reference().write(&daemon.folder().join("reference.rgb"));
    let reference = daemon.folder().join("reference.rgb");
    let arguments = [&digits, reference.to_str().unwrap()];
    let mut redeemer = Worker::start("take-and-fork", &daemon.socket(), &arguments);
    assert_eq!(redeemer.line(), "holding");
    drop(frames);
    redeemer.kill();
    until_alone(&client);
    for index in 0..200 {
        video.frame_at(index % 50).unwrap();
    }
    // The child of the dead process has it still mapped.
    redeemer.let_go();
    assert_eq!(redeemer.line(), "unharmed");
    until_nothing_is_left(&client);
}

#[test]
fn more_than_half_of_the_quota_is_not_handed_on() {
    let daemon = daemon(&["--client-memory-mib", "2"]);
    let client = daemon.client();
    let video = open(&client);
    let mut tickets = Vec::new();
    // Two frames take 85 pages; six times that is half of it.
    for _ in 0..3 {
        tickets.push(video.frames_at(&INDICES).unwrap().ticket().unwrap());
    }
    let frames = video.frames_at(&INDICES).unwrap();
    match frames.ticket() {
        Err(Error::LimitReached(message)) => assert!(message.contains("client_memory_mib"), "{message}"),
        other => panic!("{other:?}"),
    }
    // The other half serves its own requests.
    assert!(video.frame_at(9).is_ok());
    let taken = redeem(&daemon.client(), &tickets.remove(0));
    drop(taken);
    eventually("what came back may be handed on", || frames.ticket().ok());
}

#[test]
fn redeemer_that_keeps_much_copies_and_the_memory_goes_back() {
    let daemon = daemon(&["--client-memory-mib", "2"]);
    let (issuers, redeemer) = ([daemon.client(), daemon.client()], daemon.client());
    let videos = issuers.each_ref().map(open);
    let mut kept = Vec::new();
    for video in videos.iter().cycle().take(12) {
        let ticket = video.frames_at(&INDICES).unwrap().ticket().unwrap();
        kept.push(redeem(&redeemer, &ticket).unwrap());
        eventually("the daemon knows what was given back", || {
            let status = redeemer.status().unwrap();
            (status.lease_count <= 3).then_some(())
        });
    }
    assert!(kept.iter().all(is_right));
    assert_eq!(kept.iter().filter(|frames| frames.is_copied()).count(), 9);
    let status = eventually("the copies are reported", || {
        let status = redeemer.status().unwrap();
        (status.totals.results_copied_out == 9).then_some(status)
    });
    assert!(status.totals.bytes_copied_out >= 9 * 2 * 320 * 180 * 3);
    let reported: u64 = status.clients.iter().map(|client| client.results_copied_out).sum();
    assert_eq!(reported, 9);
}

#[test]
fn memory_of_others_can_be_handed_on_again() {
    let daemon = daemon(&[]);
    let clients = [daemon.client(), daemon.client(), daemon.client()];
    let frames = open(&clients[0]).frames_at(&INDICES).unwrap();
    let once = redeem(&clients[1], &frames.ticket().unwrap()).unwrap();
    drop(frames);
    let twice = redeem(&clients[2], &once.ticket().unwrap()).unwrap();
    drop(once);
    assert!(is_right(&twice));
    drop(twice);
    until_nothing_is_left(&clients[0]);
}

#[test]
fn frames_come_back_to_the_connection_that_handed_them_on() {
    let daemon = daemon(&[]);
    let client = daemon.client();
    let frames = open(&client).frames_at(&INDICES).unwrap();
    let again = redeem(&client, &frames.ticket().unwrap()).unwrap();
    assert_eq!(frames.addresses(), again.addresses());
    drop(frames);
    assert!(is_right(&again));
    drop(again);
    until_nothing_is_left(&client);
}

/// A client that has one lease.
fn holder(daemon: &Daemon, uid: u32) -> (ByHand, LeaseId) {
    let mut hand = as_user(uid, || ByHand::connect(&daemon.socket()));
    hand.open(vec![std::fs::File::open(clip(CLIP)).unwrap().into()]);
    let Reply::SourceOpened(opened) = hand.reply().1 else { panic!("not opened") };
    hand.frames(opened.source, vec![0], Vec::new());
    let Reply::Frames(frames) = hand.reply().1 else { panic!("no frames") };
    (hand, frames.lease)
}

fn ticket_for(hand: &mut ByHand, lease: LeaseId) -> message::Ticket {
    hand.request(&Request::IssueTicket(lease), Vec::new());
    match hand.reply().1 {
        Reply::TicketIssued(ticket) => ticket,
        reply => panic!("{reply:?}"),
    }
}

#[test]
fn another_user_cannot_redeem_and_does_not_use_it_up() {
    let daemon = daemon(&["--socket-mode", "0666"]);
    let (mut hand, lease) = holder(&daemon, 61_001);
    let ticket = ticket_for(&mut hand, lease);
    // Only root can be another user; for anyone else this is a ticket that never was.
    let (stranger, guess) = if rustix::process::geteuid().is_root() {
        (61_002, ticket)
    } else {
        (61_001, message::Ticket([1; 32]))
    };
    let mut other = as_user(stranger, || ByHand::connect(&daemon.socket()));
    other.request(&Request::RedeemTicket(guess), Vec::new());
    assert_eq!(other.error(), ErrorCode::FramesLost);
    let mut own = as_user(61_001, || ByHand::connect(&daemon.socket()));
    own.request(&Request::RedeemTicket(ticket), Vec::new());
    assert!(matches!(own.reply().1, Reply::Frames(_)));
}

#[test]
fn lease_of_another_client_has_no_ticket() {
    let daemon = daemon(&[]);
    let (_holder, lease) = holder(&daemon, 0);
    let (mut thief, own) = holder(&daemon, 0);
    thief.request(&Request::IssueTicket(lease), Vec::new());
    assert_eq!(thief.error(), ErrorCode::InvalidRequest);
    ticket_for(&mut thief, own);
}

#[test]
fn flood_of_tickets_ends_at_a_limit_and_leaves_nothing() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let (mut hand, lease) = holder(&daemon, 0);
    let (mut issued, mut refused) = (0, 0);
    for _ in 0..100_000 / 50 {
        for _ in 0..50 {
            hand.request(&Request::IssueTicket(lease), Vec::new());
        }
        for _ in 0..50 {
            match hand.reply().1 {
                Reply::TicketIssued(_) => issued += 1,
                Reply::Error(error) => {
                    assert_eq!(error.code, ErrorCode::LimitReached);
                    refused += 1;
                }
                reply => panic!("{reply:?}"),
            }
        }
    }
    assert_eq!((issued, refused), (4096, 100_000 - 4096));
    assert_eq!(client.status().unwrap().tickets_outstanding, 4096);
    drop(hand);
    assert_eq!(until_nothing_is_left(&client).totals.tickets_expired, 4096);
}

#[test]
fn flood_of_guesses_finds_nothing() {
    let daemon = Daemon::start();
    let (_issuer, _ticket) = issuer(&daemon, 0);
    let mut hand = ByHand::connect(&daemon.socket());
    let mut random = reeld_tests::Random::new(1);
    for _ in 0..20_000 / 50 {
        for _ in 0..50 {
            let guess = std::array::from_fn(|_| random.below(256) as u8);
            hand.request(&Request::RedeemTicket(message::Ticket(guess)), Vec::new());
        }
        for _ in 0..50 {
            assert_eq!(hand.error(), ErrorCode::FramesLost);
        }
    }
    assert_eq!(daemon.status().tickets_outstanding, 1);
}
