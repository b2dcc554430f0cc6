//! The link against a peer that answers by hand. What only a real daemon can show is in `tests/`.

use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use reeld_protocol::error::ErrorCode;
use reeld_protocol::message::{Dtype, FramesReply, GetFrames, Part, Reply, Wanted};
use reeld_protocol::{LeaseId, Notice};
use reeld_tests::{Random, eventually};

use super::*;
use crate::call::Call;
use crate::client::Client;
use crate::connection::Connection;
use crate::errand::Errand;
use crate::frames::Frames;
use crate::peer::{FRAME_BYTES, Peer, SLOT_BYTES, Said, ask, frames_reply};
use crate::pending::Pending;

const LARGE_QUOTA: u64 = 1 << 30;

fn frames(link: &Arc<Link>, key: CallKey) -> Result<Frames, Error> {
    match link.wait(key, None).unwrap()? {
        Answer::Frames(frames) => Ok(frames),
        other => panic!("{other:?}"),
    }
}

fn release(leases: &[u64]) -> Notice {
    Notice::Release(leases.iter().map(|lease| LeaseId(*lease)).collect())
}

/// A connection over which `count` results with the leases 0, 1, … have come.
fn with_results(quota_bytes: u64, count: u64) -> (Arc<Link>, Peer, Vec<Frames>) {
    let (link, mut peer) = Peer::connected(quota_bytes);
    peer.grant_arena(64 * SLOT_BYTES);
    let mut results = Vec::new();
    for lease in 0..count {
        let key = ask(&link);
        let request = peer.hear_request();
        peer.send_frames(request, lease, lease as u8);
        results.push(frames(&link, key).unwrap());
    }
    (link, peer, results)
}

#[test]
fn frames_lie_in_the_arena() {
    let (_link, peer, results) = with_results(LARGE_QUOTA, 2);
    assert_eq!(&results[1][..], [1; FRAME_BYTES as usize]);
    assert!(!results[1].is_copied());
    let addresses = results[1].arena_addresses().unwrap();
    assert!(addresses.contains(&(results[1].as_ptr() as usize)));
    assert_eq!(results[0].arena_addresses().unwrap(), addresses);
    // What the daemon's side of the arena says, the client's side says too.
    // SAFETY: the slot lies in a live mapping, and nobody reads it at this moment.
    unsafe { peer.arena.as_ref().unwrap().slice(SLOT_BYTES, 1).unwrap().write(77) };
    assert_eq!(results[1][0], 77);
}

#[test]
fn dropped_result_is_released_with_the_next_request() {
    let (link, mut peer, results) = with_results(LARGE_QUOTA, 1);
    drop(results);
    ask(&link);
    assert_eq!(peer.hear_notice(), release(&[0]));
    peer.hear_request();
    assert_eq!(link.ledger().statistics().leases_held, 0);
}

#[test]
fn dropped_result_is_released_without_any_request() {
    let (_link, mut peer, results) = with_results(LARGE_QUOTA, 1);
    drop(results);
    assert_eq!(peer.hear_notice(), release(&[0]));
}

#[test]
fn clone_keeps_the_lease() {
    let (link, mut peer, mut results) = with_results(LARGE_QUOTA, 1);
    let clone = results[0].clone();
    results.clear();
    ask(&link);
    peer.hear_request();
    drop(clone);
    assert_eq!(peer.hear_notice(), release(&[0]));
}

#[test]
fn results_above_half_of_the_quota_are_copied_and_released_at_once() {
    let (link, mut peer, results) = with_results(4 * SLOT_BYTES, 2);
    let key = ask(&link);
    let request = peer.hear_request();
    peer.send_frames(request, 2, 9);
    let copied = frames(&link, key).unwrap();
    assert!(copied.is_copied() && !results[1].is_copied());
    assert_eq!(copied[0], 9);
    assert_eq!(peer.hear_notice(), release(&[2]));
    assert_eq!(peer.hear_notice(), Notice::Copied { results: 1, bytes: SLOT_BYTES });
    let statistics = link.ledger().statistics();
    assert_eq!((statistics.frames_copied_out, statistics.leases_held), (1, 2));
}

#[test]
fn replies_reach_the_threads_that_wait_for_them_in_any_order() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let link = Arc::clone(&link);
                scope.spawn(move || {
                    let key = ask(&link);
                    (key, frames(&link, key).unwrap()[0])
                })
            })
            .collect();
        let mut requests: Vec<_> = threads.iter().map(|_| peer.hear_request()).collect();
        requests.reverse();
        for request in requests {
            peer.send_frames(request, request, request as u8);
        }
        for thread in threads {
            let (key, value) = thread.join().unwrap();
            assert_eq!(u64::from(value), key);
        }
    });
}

#[test]
fn threads_and_futures_hand_the_socket_on_to_each_other() {
    const REQUESTS_EACH: u64 = 300;
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let link = Arc::clone(&link);
            scope.spawn(move || {
                for _ in 0..REQUESTS_EACH {
                    let frames = match thread % 3 {
                        0 => frames(&link, ask(&link)).unwrap(),
                        1 => reeld_tests::block_on(pending(&link)).unwrap(),
                        _ => {
                            let pending = pending(&link);
                            let _ = pending.is_done();
                            pending.wait().unwrap()
                        }
                    };
                    assert_eq!(frames.len() as u64, FRAME_BYTES);
                }
            });
        }
        answer_in_random_order(&mut peer, 6 * REQUESTS_EACH);
    });
}

/// Answers so many requests, each at some time after it came.
fn answer_in_random_order(peer: &mut Peer, request_count: u64) {
    let mut random = Random::new(4);
    let mut open = Vec::new();
    let mut answered = 0;
    while answered < request_count {
        if open.is_empty() || (random.below(3) > 0 && peer.can_hear()) {
            match peer.hear() {
                Said::Request(request, _) => open.push(request),
                Said::Notice(_) => {}
            }
        } else {
            let request = open.swap_remove(random.below(open.len() as u64) as usize);
            peer.send_frames(request, request % 64, 1);
            answered += 1;
        }
    }
}

#[test]
fn request_without_room_is_sent_again_after_a_release() {
    let (link, mut peer, results) = with_results(LARGE_QUOTA, 1);
    let key = ask(&link);
    let request = peer.hear_request();
    drop(results);
    peer.send_error(request, ErrorCode::NoSlots, true);
    let waiting = {
        let link = Arc::clone(&link);
        std::thread::spawn(move || frames(&link, key).unwrap()[0])
    };
    assert_eq!(peer.hear_notice(), release(&[0]));
    let again = peer.hear_request();
    assert_ne!(again, request);
    peer.send_frames(again, 1, 5);
    assert_eq!(waiting.join().unwrap(), 5);
}

#[test]
fn request_without_room_fails_while_all_leases_are_kept() {
    let (link, mut peer, results) = with_results(LARGE_QUOTA, 1);
    let key = ask(&link);
    let request = peer.hear_request();
    peer.send_error(request, ErrorCode::NoSlots, true);
    assert!(matches!(frames(&link, key), Err(Error::NoSlots(_))));
    drop(results);
}

#[test]
fn request_above_the_quota_fails_whatever_is_released() {
    let (link, mut peer, results) = with_results(LARGE_QUOTA, 1);
    let key = ask(&link);
    let request = peer.hear_request();
    drop(results);
    peer.send_error(request, ErrorCode::NoSlots, false);
    assert!(matches!(frames(&link, key), Err(Error::NoSlots(_))));
}

#[test]
fn request_without_room_waits_for_others_that_may_bring_some() {
    let (link, mut peer) = Peer::connected(4 * SLOT_BYTES);
    peer.grant_arena(64 * SLOT_BYTES);
    let keys = [ask(&link), ask(&link), ask(&link), ask(&link)];
    let requests = keys.map(|_| peer.hear_request());
    peer.send_error(requests[3], ErrorCode::NoSlots, true);
    peer.send_frames(requests[0], 0, 0);
    peer.send_frames(requests[1], 1, 1);
    peer.send_frames(requests[2], 2, 2);
    let waiting = {
        let link = Arc::clone(&link);
        std::thread::spawn(move || frames(&link, keys[3]).unwrap()[0])
    };
    assert_eq!(peer.hear_notice(), release(&[2]));
    assert!(matches!(peer.hear_notice(), Notice::Copied { results: 1, .. }));
    let again = peer.hear_request();
    peer.send_frames(again, 3, 3);
    assert_eq!(waiting.join().unwrap(), 3);
}

#[test]
fn results_that_nobody_has_asked_for_are_copied_before_a_request_fails() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    let (early, late) = (ask(&link), ask(&link));
    let requests = [peer.hear_request(), peer.hear_request()];
    peer.send_frames(requests[0], 0, 1);
    peer.send_error(requests[1], ErrorCode::NoSlots, true);
    let waiting = {
        let link = Arc::clone(&link);
        std::thread::spawn(move || frames(&link, late).unwrap()[0])
    };
    assert_eq!(peer.hear_notice(), release(&[0]));
    assert!(matches!(peer.hear_notice(), Notice::Copied { results: 1, .. }));
    let again = peer.hear_request();
    peer.send_frames(again, 1, 2);
    assert_eq!(waiting.join().unwrap(), 2);
    let early = frames(&link, early).unwrap();
    assert!(early.is_copied());
    assert_eq!(early[0], 1);
}

#[test]
fn daemon_that_goes_away_fails_requests_and_leaves_frames_readable() {
    let (link, peer, results) = with_results(LARGE_QUOTA, 2);
    let key = ask(&link);
    drop(peer);
    assert!(matches!(frames(&link, key), Err(Error::DaemonUnavailable { .. })));
    assert_eq!(&results[1][..], [1; FRAME_BYTES as usize]);
    assert!(link.is_closed());
}

fn broken_by(reply: &Reply) -> Error {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    let key = ask(&link);
    let request = peer.hear_request();
    peer.send(reply, request, Vec::new());
    frames(&link, key).unwrap_err()
}

#[test]
fn results_that_cannot_be_are_protocol_errors() {
    let good = frames_reply(0);
    let with_part = |change: fn(&mut reeld_protocol::message::PartLayout)| {
        let mut reply = frames_reply(0);
        change(&mut reply.parts[0]);
        reply
    };
    let bad = [
        FramesReply { slot_offset: 64 * SLOT_BYTES, ..good.clone() },
        FramesReply { slot_offset: u64::MAX, ..good.clone() },
        FramesReply { slot_offset: 4, ..good.clone() },
        FramesReply { slot_bytes: FRAME_BYTES, ..good.clone() },
        FramesReply { arena: reeld_protocol::ArenaId(7), ..good.clone() },
        FramesReply { parts: Vec::new(), ..good.clone() },
        FramesReply { parts: [good.parts.clone(), good.parts.clone()].concat(), ..good },
        with_part(|part| part.frame_count = u64::MAX),
        with_part(|part| part.dtype = reeld_protocol::message::Dtype::Float32),
        with_part(|part| part.pts_offset = 3),
    ];
    for reply in bad {
        let error = broken_by(&Reply::Frames(reply.clone()));
        assert!(matches!(error, Error::Protocol(_)), "{reply:?} gave {error:?}");
    }
    assert!(matches!(broken_by(&Reply::Status(Box::default())), Error::Protocol(_)));
}

#[test]
fn answer_to_no_request_is_a_protocol_error() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    let key = ask(&link);
    peer.send_error(99, ErrorCode::Internal, false);
    assert!(matches!(frames(&link, key), Err(Error::Protocol(_))));
}

#[test]
fn random_messages_never_harm_this_side() {
    let mut random = Random::new(3);
    for _ in 0..2000 {
        let (link, mut peer) = Peer::connected(LARGE_QUOTA);
        peer.grant_arena(4 * SLOT_BYTES);
        let key = ask(&link);
        let kind = [64, 65, 66, 67, 96, 97, 32][random.below(7) as usize];
        let body: Vec<u8> = (0..random.below(40)).map(|_| random.below(9) as u8).collect();
        peer.send_raw(kind, random.below(2), &body);
        drop(peer);
        // Whatever it was, the call is over; a result that happens to be possible is one.
        let outcome = frames(&link, key);
        assert!(outcome.is_err() || outcome.is_ok_and(|frames| frames.part_count() == 1));
    }
}

#[test]
fn arena_of_unsealed_memory_is_a_protocol_error() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    let key = ask(&link);
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    peer.send(&Notice::ArenaGranted { arena: reeld_protocol::ArenaId(1), bytes: 4096 }, 0, vec![fd]);
    assert!(matches!(frames(&link, key), Err(Error::Protocol(_))));
}

fn pending(link: &Arc<Link>) -> Pending {
    let connection = Arc::new(Connection::new(Arc::clone(link)));
    let errand = Errand::sent(Client::unconnected(), Arc::clone(&connection), ask(link), None);
    let pending = Pending::new(Call::of(errand));
    // The connection would close at its drop; the tests close the peer.
    std::mem::forget(connection);
    pending
}

#[test]
fn dropped_request_is_cancelled_and_its_result_given_back() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    drop(pending(&link));
    let request = peer.hear_request();
    assert_eq!(peer.hear_notice(), Notice::Cancel(request));
    peer.send_frames(request, 0, 0);
    assert_eq!(peer.hear_notice(), release(&[0]));
}

#[test]
fn cancelled_request_whose_connection_is_lost_is_not_made_again() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    let pending = pending(&link);
    let request = peer.hear_request();
    pending.cancel();
    assert_eq!(peer.hear_notice(), Notice::Cancel(request));
    drop(peer);
    assert!(matches!(pending.wait(), Err(Error::Cancelled(_))));
}

#[test]
fn deadline_of_a_daemon_that_says_nothing_is_kept_on_this_side() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    let connection = Arc::new(Connection::new(Arc::clone(&link)));
    let overdue = |key| {
        let deadline = Instant::now() + Duration::from_millis(1);
        let errand = Errand::sent(Client::unconnected(), Arc::clone(&connection), key, Some(deadline));
        Pending::new(Call::of(errand))
    };
    let (waited, awaited) = (overdue(ask(&link)), overdue(ask(&link)));
    assert!(matches!(waited.wait(), Err(Error::Deadline(_))));
    assert!(matches!(reeld_tests::block_on(awaited), Err(Error::Deadline(_))));
    let requests = [peer.hear_request(), peer.hear_request()];
    assert_eq!(requests.map(|_| peer.hear_notice()), requests.map(Notice::Cancel));
}

#[test]
fn request_without_room_is_sent_again_with_what_is_left_of_its_time() {
    let (link, mut peer, results) = with_results(LARGE_QUOTA, 1);
    let part = Part {
        source: SourceId(1),
        wanted: Wanted::PlayedAt(0.0),
        dtype: Dtype::Uint8,
        transforms: Vec::new(),
    };
    let timeout = Duration::from_secs(1000);
    let wish = GetFrames { parts: vec![part], priority: 0, timeout_millis: Some(1_000_000) };
    let expected = Expected::Frames(vec![Dtype::Uint8]);
    let began = Instant::now();
    let Ok(key) = link.submit(&Request::GetFrames(wish), Vec::new(), expected, Some(began + timeout)) else {
        panic!("the link is closed");
    };
    let request = peer.hear_request();
    eventually("time passes", || (began.elapsed() > Duration::from_millis(5)).then_some(()));
    drop(results);
    peer.send_error(request, ErrorCode::NoSlots, true);
    let waiting = std::thread::spawn(move || frames(&link, key).unwrap()[0]);
    assert_eq!(peer.hear_notice(), release(&[0]));
    let Said::Request(again, Request::GetFrames(wish)) = peer.hear() else { panic!("expected a request") };
    let left = wish.timeout_millis.unwrap();
    assert!((1..=999_995).contains(&left), "{left}");
    peer.send_frames(again, 1, 5);
    assert_eq!(waiting.join().unwrap(), 5);
}

#[test]
fn leases_of_a_lost_connection_are_given_back_to_nobody() {
    let (_old, old_peer, results) = with_results(LARGE_QUOTA, 3);
    drop(old_peer);
    let (new, mut new_peer) = Peer::connected(LARGE_QUOTA);
    drop(results);
    let key = ask(&new);
    new_peer.grant_arena(64 * SLOT_BYTES);
    // The first words on the new connection are the request.
    let request = new_peer.hear_request();
    new_peer.send_frames(request, 0, 1);
    assert_eq!(frames(&new, key).unwrap()[0], 1);
}

#[test]
fn result_is_given_once() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    let pending = pending(&link);
    assert!(!pending.is_done());
    assert!(pending.wait_timeout(Duration::ZERO).unwrap().is_none());
    let request = peer.hear_request();
    peer.send_frames(request, 0, 0);
    assert!(pending.is_done());
    assert!(pending.wait_timeout(Duration::ZERO).unwrap().is_some());
    assert!(matches!(pending.wait(), Err(Error::InvalidRequest(_))));
}

/// Wakes the thread that polls.
struct Unpark(std::thread::Thread, AtomicU32);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.unpark();
    }
}

#[test]
fn future_is_woken_without_anybody_waiting() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    peer.grant_arena(64 * SLOT_BYTES);
    let mut pending = pin!(pending(&link));
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicU32::new(0)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut context = Context::from_waker(&waker);
    assert!(pending.as_mut().poll(&mut context).is_pending());
    let request = peer.hear_request();
    peer.send_frames(request, 0, 8);
    while unpark.1.load(Ordering::Relaxed) == 0 {
        std::thread::park();
    }
    match pending.as_mut().poll(&mut context) {
        Poll::Ready(Ok(frames)) => assert_eq!(frames[0], 8),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_that_the_socket_does_not_take_wait_and_go_out_in_order() {
    let (link, mut peer) = Peer::connected(LARGE_QUOTA);
    shrink_buffers(&peer.socket);
    let keys: Vec<_> = (0..2000).map(|_| ask(&link)).collect();
    let waiting = {
        let (link, last) = (Arc::clone(&link), keys[1999]);
        std::thread::spawn(move || frames(&link, last).unwrap_err())
    };
    let heard: Vec<_> = keys.iter().map(|_| peer.hear_request()).collect();
    assert_eq!(heard, keys);
    peer.send_error(keys[1999], ErrorCode::Deadline, false);
    assert!(matches!(waiting.join().unwrap(), Error::Deadline(_)));
}

fn shrink_buffers(socket: &UnixStream) {
    rustix::net::sockopt::set_socket_recv_buffer_size(socket, 4096).unwrap();
}
