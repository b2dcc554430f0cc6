//! A process that uses the daemon for a test: `reeld-test-worker TASK SOCKET ARGUMENTS…`. It fails by
//! panicking.
//!
//! What must come of it is checked by the test that started it.

#![expect(clippy::expect_used, reason = "a worker reports a failure by panicking")]

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use reeld_client::{Client, Error, Frames, OpenOptions, Ticket, Video};
use reeld_protocol::message::Reply;
use reeld_tests::{ByHand, Random, Reference};

const WIDTH: usize = 320;
const HEIGHT: usize = 180;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["read", socket, video, reference, seed] => read(&client(socket), video, reference, number(seed)),
        ["read-each", socket, size, seed, ref files @ ..] => {
            read_each(&client(socket), size, number(seed), files);
        }
        ["hold", socket, video] => hold(&client(socket), video),
        ["hold-and-ask", socket, video, slow] => hold_and_ask(&client(socket), video, slow),
        ["read-on", socket, video, reference, seed] => read_on(socket, video, reference, number(seed)),
        ["hold-by-hand", socket, video] => hold_by_hand(socket, video),
        ["hand-on", socket, video, session] => hand_on(&client(socket), video, number(session)),
        ["take-and-fork", socket, ticket, reference] => take_and_fork(&client(socket), ticket, reference),
        ["orphan", socket, video, reference] => orphan(&client(socket), video, reference),
        ["fork", socket, video, reference] => fork(&client(socket), video, reference),
        ["fork-before-use", socket, video, reference] => fork_before_use(socket, video, reference),
        ["shared", video] => shared(video),
        ["rounds", socket, video, reference, seed] => {
            rounds(&client(socket), video, reference, number(seed));
        }
        ["stay"] => stay(),
        _ => panic!("no such task: {arguments:?}"),
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn client(socket: &str) -> Client {
    Client::builder().socket(socket).connect().expect("the daemon answers")
}

fn open(client: &Client, video: &str) -> Video {
    client.open(video, OpenOptions::default()).expect("the video can be opened")
}

fn check(frames: &Frames, reference: &Reference, indices: &[i64]) {
    assert!(frames[..] == reference.frames(indices.iter().copied())[..], "other pixels at {indices:?}");
}

/// Random frames of one video, some of them kept for a while.
fn read(client: &Client, video: &str, reference: &str, seed: u64) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let video = open(client, video);
    let mut random = Random::new(seed);
    let mut kept = Vec::new();
    for _ in 0..60 {
        let indices: Vec<i64> =
            (0..=random.below(4)).map(|_| random.below(reference.frame_count() as u64) as i64).collect();
        let frames = video.frames_at(&indices).expect("frames");
        check(&frames, &reference, &indices);
        kept.push((frames, indices));
        kept.drain(..kept.len().saturating_sub(8));
    }
    for (frames, indices) in &kept {
        check(frames, &reference, indices);
    }
}

/// Random frames of many videos, given as pairs of a video and its reference.
fn read_each(client: &Client, size: &str, seed: u64, files: &[&str]) {
    let (width, height) = size.split_once('x').expect("WIDTHxHEIGHT");
    let (width, height) = (number(width) as usize, number(height) as usize);
    let open_pair =
        |pair: &[&str]| (open(client, pair[0]), Reference::read(Path::new(pair[1]), width, height));
    let videos: Vec<_> = files.chunks_exact(2).map(open_pair).collect();
    let mut random = Random::new(seed);
    for _ in 0..100 {
        let (video, reference) = &videos[random.below(videos.len() as u64) as usize];
        let index = random.below(reference.frame_count() as u64) as i64;
        check(&video.frame_at(index).expect("a frame"), reference, &[index]);
    }
}

/// Prints a ticket for a result, in hexadecimal digits, and holds the result until its standard input ends. The
/// session is a process, or 0 for none.
fn hand_on(client: &Client, video: &str, session: u64) {
    if session > 0 {
        Ticket::name_session(session as u32).expect("a process");
    }
    let frames = open(client, video).frames_at(&[3, 17]).expect("frames");
    let bytes = frames.ticket().and_then(|ticket| ticket.to_bytes()).expect("a ticket");
    println!("{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Redeems a ticket for frames 3 and 17; a child reads them when its parent is long dead: at the end of its
/// standard input.
fn take_and_fork(client: &Client, digits: &str, reference: &str) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits");
    let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    let ticket = Ticket::from_bytes(&bytes).expect("a ticket");
    let frames = client.redeem(&ticket).and_then(reeld_client::Pending::wait).expect("frames");
    start_child(|| {
        println!("holding");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        check(&frames, &reference, &[3, 17]);
        println!("unharmed");
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Holds a few results until its standard input ends.
fn hold(client: &Client, video: &str) {
    let video = open(client, video);
    let _held: Vec<_> = (0..4).map(|index| video.frame_at(index).expect("a frame")).collect();
    println!("holding");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Holds a result and has requests on their way until its standard input ends.
fn hold_and_ask(client: &Client, video: &str, slow: &str) {
    let (video, slow) = (open(client, video), open(client, slow));
    let ask = |index| {
        let wanted = reeld_client::Wanted::Indices(vec![index]);
        slow.submit(wanted, reeld_client::RequestOptions::default()).expect("a request")
    };
    let _pending: Vec<_> = (-8..0).map(ask).collect();
    let _held = video.frame_at(0).expect("a frame");
    println!("holding");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Random frames until its standard input ends, whatever becomes of the daemon. Prints the process id of each
/// daemon that delivered one, and at the end how many there were.
fn read_on(socket: &str, video: &str, reference: &str, seed: u64) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let client = Client::builder().socket(socket).connect().expect("an answer");
    let video = client.open(video, OpenOptions::default()).expect("an answer");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let (mut random, mut frame_count, mut daemon) = (Random::new(seed), 0, 0);
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let index = random.below(reference.frame_count() as u64) as i64;
            check(&video.frame_at(index).expect("an answer"), &reference, &[index]);
            frame_count += 1;
            let pid = client.status().expect("an answer").pid;
            if pid != daemon {
                daemon = pid;
                println!("daemon {pid}");
            }
        }
        println!("{frame_count} frames");
    });
}

/// Holds a result over a connection that a child keeps open until its standard input ends.
fn hold_by_hand(socket: &str, video: &str) {
    let mut hand = ByHand::connect(Path::new(socket));
    hand.open(vec![std::fs::File::open(video).expect("a video").into()]);
    let (_, Reply::SourceOpened(opened)) = hand.reply() else { panic!("not opened") };
    hand.frames(opened.source, vec![0, 1], Vec::new());
    assert!(matches!(hand.reply(), (_, Reply::Frames(_))));
    start_child(|| {
        println!("holding");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A child reads what it inherited when its parent is long dead: at the end of its standard input.
fn orphan(client: &Client, video: &str, reference: &str) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let video = open(client, video);
    let held: Vec<_> = (0..4).map(|index| video.frame_at(index).expect("a frame")).collect();
    start_child(|| {
        println!("holding");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        for (index, frames) in held.iter().enumerate() {
            check(frames, &reference, &[index as i64]);
        }
        println!("unharmed");
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Uses the process-wide client, which finds or starts a daemon by itself.
fn shared(video: &str) {
    let video = Video::open(video).expect("the video can be opened");
    assert_eq!(video.frame_at(0).expect("a frame").frame_count(), 1);
    println!("{}", video.client().status().expect("a status").pid);
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// For each line of standard input some frames, all of them checked, some of them held for the next rounds.
fn rounds(client: &Client, video: &str, reference: &str, seed: u64) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let video = open(client, video);
    let mut random = Random::new(seed);
    let mut held: Vec<(Frames, i64)> = Vec::new();
    println!("open");
    for line in std::io::stdin().lines() {
        line.expect("a line");
        for _ in 0..100 {
            let index = random.below(reference.frame_count() as u64) as i64;
            let frames = video.frame_at(index).expect("a frame");
            check(&frames, &reference, &[index]);
            held.push((frames, index));
            held.drain(..held.len().saturating_sub(6));
        }
        for (frames, index) in &held {
            check(frames, &reference, &[*index]);
        }
        println!("right");
    }
}

/// Finds a daemon by itself, and asks it again for each line of standard input.
fn stay() {
    let builder = Client::builder().reconnect_for(std::time::Duration::from_millis(200));
    let client = builder.connect().expect("a daemon");
    println!("{}", client.status().expect("a status").pid);
    for line in std::io::stdin().lines() {
        line.expect("a line");
        match client.status() {
            Ok(status) => println!("{}", status.pid),
            Err(error) => println!("{}", error.name()),
        }
    }
}

/// Runs `child` in a forked process and waits for its success.
fn in_child(child: impl FnOnce()) {
    let pid = start_child(child);
    await_child(pid);
}

fn start_child(child: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child only runs code that has to work after a fork: that is what is tested.
    match unsafe { libc::fork() } {
        0 => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the child without running what the parent has registered.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        -1 => panic!("fork failed"),
        pid => pid,
    }
}

fn await_child(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the forked child failed");
}

/// What a forked child may do with what its parent had, and what the parent keeps.
fn fork(client: &Client, video: &str, reference: &str) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let video = open(client, video);
    let held: Vec<_> = (0..3).map(|index| video.frame_at(index).expect("a frame")).collect();
    let pending = video
        .submit(reeld_client::Wanted::Indices(vec![9]), reeld_client::RequestOptions::default())
        .expect("a request");
    for _ in 0..3 {
        in_child(|| {
            for (index, frames) in held.iter().enumerate() {
                check(frames, &reference, &[index as i64]);
            }
            assert!(matches!(pending.wait_timeout(std::time::Duration::MAX), Err(Error::Cancelled(_))));
            check(&video.frame_at(30).expect("a frame in the child"), &reference, &[30]);
            let grandchild =
                || check(&video.frame_at(31).expect("a frame in the grandchild"), &reference, &[31]);
            in_child(grandchild);
        });
    }
    check(&pending.wait().expect("the parent's own request"), &reference, &[9]);
    hold_back_while_children_live(client, &video, &reference, held);
}

/// Leases that a child inherited are not reused while it lives.
fn hold_back_while_children_live(client: &Client, video: &Video, reference: &Reference, held: Vec<Frames>) {
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let child = start_child(|| {
        // Then a parent that fails ends the wait too.
        // SAFETY: in the child, where nobody drops the owner of this descriptor.
        unsafe { libc::close(writer.as_raw_fd()) };
        assert_eq!(rustix::io::read(&reader, &mut [0]), Ok(1));
        for (index, frames) in held.iter().enumerate() {
            check(frames, reference, &[index as i64]);
        }
    });
    drop(held);
    // Enough requests to reuse every slot that is free.
    for index in 0..200 {
        check(&video.frame_at(index % 50).expect("a frame"), reference, &[index % 50]);
    }
    assert_eq!(client.statistics().leases_deferred, 3);
    rustix::io::write(&writer, b"x").expect("the child listens");
    await_child(child);
    reeld_tests::eventually("deferred leases go back", || {
        video.frame_at(0).expect("a frame");
        (client.statistics().leases_deferred == 0).then_some(())
    });
}

/// A client that is used in children only, as a loader of data does that opens files before it forks.
fn fork_before_use(socket: &str, video: &str, reference: &str) {
    let reference = Reference::read(Path::new(reference), WIDTH, HEIGHT);
    let client = client(socket);
    let video = open(&client, video);
    // Threads that use the connection at the moment of the fork hold its locks again and again.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    video.frame_at(1).expect("a frame in the parent");
                }
            });
        }
        for _ in 0..40 {
            in_child(|| {
                for index in [3, 40] {
                    check(&video.frame_at(index).expect("a frame in the child"), &reference, &[index]);
                }
            });
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
