//! Everything that reads bytes from another process: frames with their descriptors, the handshake, the messages of
//! both directions, what broker and engine say to each other, the index, mappings.
//!
//! What can be read must come back as it went: encoded again and read again it is the same. That no length prefix
//! makes us reserve memory is held by the limit on allocations that script/fuzz sets.

#![no_main]

use std::fmt::Debug;
use std::io::Write;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use reeld_daemon::link::index::Index;
use reeld_daemon::link::{EngineReply, EngineRequest};
use reeld_protocol::frame::{FrameReader, Received};
use reeld_protocol::handshake::{Hello, Refusal, Welcome};
use reeld_protocol::mapping;
use reeld_protocol::message::{Message, Notice, Reply, Request, kind};
use reeld_protocol::{BODY_BYTES_MAX, HEADER_BYTES, Header};
use rustix::net::RecvFlags;

const KINDS: [u16; 21] = [
    kind::OPEN_SOURCE,
    kind::GET_FRAMES,
    kind::STATUS,
    kind::ISSUE_TICKET,
    kind::REDEEM_TICKET,
    kind::RELEASE,
    kind::CLOSE_SOURCE,
    kind::CANCEL,
    kind::SESSION,
    kind::COPIED,
    kind::ERROR,
    kind::SOURCE_OPENED,
    kind::FRAMES,
    kind::STATUS_REPORT,
    kind::TICKET_ISSUED,
    kind::ARENA_GRANTED,
    kind::ARENA_REVOKED,
    0x8000,
    0x8001,
    0,
    u16::MAX,
];

/// A body that can be read comes back as it went.
fn come_back<M: Message + Debug>(kind: u16, body: &[u8]) {
    let Ok(Some(message)) = M::decode(kind, body) else { return };
    assert_eq!(message.kind(), kind);
    let encoded = match message.encode() {
        Ok(encoded) => encoded,
        // Never longer than what was read, which fitted.
        Err(error) => panic!("{message:?}: {error}"),
    };
    assert!(encoded.len() <= body.len(), "{message:?} has grown");
    let again = M::decode(kind, &encoded).ok().flatten();
    // NaN is not equal to itself: compared are the words.
    assert_eq!(format!("{:?}", again.as_ref()), format!("{:?}", Some(&message)));
}

fn bodies(kind: u16, body: &[u8]) {
    come_back::<Request>(kind, body);
    come_back::<Notice>(kind, body);
    come_back::<Reply>(kind, body);
    come_back::<EngineRequest>(kind, body);
    come_back::<EngineReply>(kind, body);
}

/// A text that is no UTF-8 is read with replacements, and cut where it has grown: so it is the second reading that
/// must come back as it went.
macro_rules! handshake {
    ($message:ty, $body:expr) => {
        if let Ok(once) = <$message>::from_bytes($body) {
            let twice = <$message>::from_bytes(&once.to_bytes()).ok();
            let again = twice.as_ref().and_then(|twice| <$message>::from_bytes(&twice.to_bytes()).ok());
            assert!(twice.is_some() && twice == again);
        }
    };
}

fn handshakes(body: &[u8]) {
    handshake!(Hello, body);
    handshake!(Welcome, body);
    handshake!(Refusal, body);
}

/// The same bytes, in pieces of any length, are the same messages. `cut` decides the pieces.
fn frames(cut: u8, bytes: &[u8]) {
    let read = |piece_bytes: usize| {
        let Ok((mut ours, theirs)) = UnixStream::pair() else { return Vec::new() };
        let mut reader = FrameReader::new();
        let mut seen = Vec::new();
        for piece in bytes.chunks(piece_bytes) {
            if ours.write_all(piece).is_err()
                || !matches!(reader.receive(&theirs, RecvFlags::DONTWAIT), Ok(Received::Bytes))
            {
                return seen;
            }
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => seen.push(format!("{:?} {:?}", frame.header, frame.body)),
                    Ok(None) => break,
                    Err(error) => {
                        seen.push(error.to_string());
                        return seen;
                    }
                }
            }
        }
        seen
    };
    // One read takes no more than a reader has room for.
    let whole = read(HEADER_BYTES + BODY_BYTES_MAX);
    assert_eq!(read(1 + usize::from(cut)), whole);
}

fuzz_target!(|bytes: &[u8]| {
    let [choice, cut, body @ ..] = bytes else { return };
    match choice % 20 {
        0 => frames(*cut, body),
        1 => handshakes(body),
        2 => {
            if let Ok(index) = Index::from_bytes(body) {
                assert_eq!(Index::from_bytes(&index.to_bytes()).ok(), Some(index));
            }
            if let Ok(frames) = mapping::from_bytes(body) {
                assert_eq!(mapping::to_bytes(&frames).ok().as_deref(), Some(body));
            }
        }
        3 => {
            if let Some((header, rest)) = body.split_first_chunk::<HEADER_BYTES>()
                && let Ok(header) = Header::from_bytes(header)
            {
                assert_eq!(Header::from_bytes(&header.to_bytes()).ok(), Some(header));
                bodies(header.kind, rest);
            }
        }
        choice => bodies(KINDS[usize::from(choice - 4)], body),
    }
});
