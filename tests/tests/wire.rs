//! A peer that breaks the protocol is sent away, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use reeld_client::{OpenOptions, Video};
use reeld_protocol::message::kind;
use reeld_protocol::{Header, Hello};
use reeld_tests::{Daemon, clip};

/// A connection by hand. A read that never ends fails the test instead of holding it up.
fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn message(kind: u16, request_id: u64, body: &[u8]) -> Vec<u8> {
    let header = Header { body_bytes: body.len() as u32, kind, fd_count: 0, flags: 0, request_id };
    [&header.to_bytes(), body].concat()
}

fn hello(major: u16) -> Vec<u8> {
    let hello = Hello { major, minor_min: 0, minor_max: 0, features: 0, name: "test".into() };
    message(kind::HELLO, 0, &hello.to_bytes())
}

fn read_message(stream: &mut UnixStream) -> (Header, Vec<u8>) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    let header = Header::from_bytes(&header).unwrap();
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body).unwrap();
    (header, body)
}

fn welcomed(daemon: &Daemon) -> UnixStream {
    let mut stream = connect(daemon);
    stream.write_all(&hello(reeld_protocol::VERSION_MAJOR)).unwrap();
    assert_eq!(read_message(&mut stream).0.kind, kind::WELCOME);
    stream
}

fn bystander(daemon: &Daemon) -> Video {
    daemon.client().open(clip("h264_bframes.mp4"), OpenOptions::default()).unwrap()
}

/// Sends bytes and waits for the daemon to close the connection.
fn assert_sent_away(mut stream: UnixStream, bytes: &[u8]) {
    // The daemon may close while the bytes are still going out.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut Vec::new());
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn peers_that_send_garbage_are_sent_away_and_others_go_on() {
    let daemon = Daemon::start();
    let video = bystander(&daemon);
    let oversized = [&u32::MAX.to_le_bytes()[..], &[0; 12]].concat();
    let missing_fd = {
        let mut bytes = message(kind::OPEN_SOURCE, 1, &[0; 5]);
        bytes[6] = 1;
        bytes
    };
    for bytes in
        [oversized, missing_fd, message(kind::GET_FRAMES, 1, &[0xFF; 40]), message(kind::HELLO, 0, b"again")]
    {
        let mut stream = welcomed(&daemon);
        // Whatever becomes of this peer, it gets no more than an error.
        let _ = stream.write_all(&bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(video.frame_at(1).unwrap().frame_count(), 1);
    }
    for bytes in [vec![0; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec(), message(kind::STATUS, 1, &[])] {
        assert_sent_away(connect(&daemon), &bytes);
        assert_eq!(video.frame_at(1).unwrap().frame_count(), 1);
    }
}

#[test]
fn other_major_version_is_refused_with_a_sentence() {
    let daemon = Daemon::start();
    let mut stream = connect(&daemon);
    stream.write_all(&hello(reeld_protocol::VERSION_MAJOR + 1)).unwrap();
    let (header, body) = read_message(&mut stream);
    assert_eq!(header.kind, kind::REFUSAL);
    let refusal = reeld_protocol::Refusal::from_bytes(&body).unwrap();
    assert!(refusal.reason.contains(&reeld_protocol::VERSION_MAJOR.to_string()), "{}", refusal.reason);
}

#[test]
fn unknown_kind_of_request_is_unsupported_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut stream = welcomed(&daemon);
    stream.write_all(&message(60_000, 5, b"from the future")).unwrap();
    let (header, body) = read_message(&mut stream);
    assert_eq!((header.kind, header.request_id), (kind::ERROR, 5));
    let error: reeld_protocol::WireError = reeld_protocol::codec::decode(&body).unwrap();
    assert_eq!(error.code, reeld_protocol::ErrorCode::Unsupported);
    stream.write_all(&message(kind::STATUS, 6, &[])).unwrap();
    assert_eq!(read_message(&mut stream).0.kind, kind::STATUS_REPORT);
}

#[test]
fn message_in_single_bytes_is_understood() {
    let daemon = Daemon::start();
    let mut stream = welcomed(&daemon);
    for byte in message(kind::STATUS, 6, &[]) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_message(&mut stream).0.kind, kind::STATUS_REPORT);
}
