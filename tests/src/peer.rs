//! [`Peer`]: a connection to the daemon by hand, on which anything can be sent.
//!
//! Only the encoding is the protocol crate's; no rule of the protocol is kept here.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use reeld_protocol::frame::{FrameReader, Received};
use reeld_protocol::message::{Message, OpenSource, SeekMode, kind};
use reeld_protocol::{Frame, Header, Hello, Reply, Request, SourceId, VERSION_MAJOR, VERSION_MINOR};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::daemon::Daemon;

/// A read that never ends fails the test instead of holding it up.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What the kernel takes in one message.
const FDS_PER_CALL_MAX: usize = 253;

/// One end of a connection.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    reader: FrameReader,
}

impl Peer {
    /// A connection on which nothing was said.
    pub fn connect(daemon: &Daemon) -> Peer {
        let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(GIVE_UP)).expect("a limit for reads");
        Peer { stream, reader: FrameReader::new() }
    }

    /// A connection after a proper handshake.
    pub fn welcomed(daemon: &Daemon) -> Peer {
        let mut peer = Peer::connect(daemon);
        peer.send(&Peer::hello(VERSION_MAJOR, VERSION_MINOR));
        let welcome = peer.next_message().expect("an answer to Hello");
        assert_eq!(welcome.header.kind, kind::WELCOME);
        peer
    }

    /// The bytes of a Hello.
    pub fn hello(major: u16, minor_min: u16) -> Vec<u8> {
        let hello = Hello { major, minor_min, minor_max: minor_min, features: 0, name: "test".into() };
        raw_message(kind::HELLO, 0, 0, &hello.to_bytes())
    }

    /// Sends bytes. The daemon may close the connection meanwhile, which shows at the next read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = io::Write::write_all(&mut self.stream, bytes);
    }

    /// Sends bytes and, with the first of them, descriptors.
    pub fn send_with(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_CALL_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
        if let Ok(sent) = sent {
            self.send(&bytes[sent..]);
        }
    }

    /// Sends a request.
    pub fn ask(&mut self, request_id: u64, request: &Request) {
        self.send(&bytes_of(request, request_id));
    }

    /// Sends a request and waits for its reply.
    pub fn call(&mut self, request_id: u64, request: &Request) -> Option<Reply> {
        self.ask(request_id, request);
        self.reply_to(request_id)
    }

    /// Opens a clip as anyone would.
    pub fn open(&mut self, request_id: u64, clip: &Path) -> SourceId {
        let file = std::fs::File::open(clip).expect("the clip can be opened");
        self.send_with(&open_source(request_id, 1, false), &[file.as_fd()]);
        match self.reply_to(request_id) {
            Some(Reply::SourceOpened(opened)) => opened.source,
            other => panic!("not opened: {other:?}"),
        }
    }

    /// The next message; none once the daemon has closed the connection.
    pub fn next_message(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.reader.next_frame().expect("the daemon keeps to the protocol") {
                return Some(frame);
            }
            match self.reader.receive(&self.stream, RecvFlags::empty()) {
                Ok(Received::Bytes) => {}
                Ok(Received::Closed) => return None,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the daemon neither answers nor closes: {error}"),
            }
        }
    }

    /// The reply with this id; others, and notices, are passed over. None once the connection is closed.
    pub fn reply_to(&mut self, request_id: u64) -> Option<Reply> {
        loop {
            let frame = self.next_message()?;
            if frame.header.request_id == request_id {
                let reply = Reply::decode(frame.header.kind, &frame.body).expect("a reply of this version");
                return Some(reply.expect("a reply"));
            }
        }
    }

    /// Waits until the daemon has closed the connection, and returns what it said before.
    pub fn last_words(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next_message()).collect()
    }

    /// Says that nothing more will be sent.
    pub fn stop_sending(&mut self) {
        // The daemon may have closed the connection already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// This end's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The same connection, for another thread.
    pub fn stream(&self) -> UnixStream {
        self.stream.try_clone().expect("a second descriptor")
    }
}

/// The bytes of a message, with any header.
pub fn raw_message(kind: u16, request_id: u64, fd_count: u8, body: &[u8]) -> Vec<u8> {
    let header = Header { body_bytes: body.len() as u32, kind, fd_count, flags: 0, request_id };
    [&header.to_bytes(), body].concat()
}

/// The bytes of a proper message without descriptors.
pub fn bytes_of<M: Message>(message: &M, request_id: u64) -> Vec<u8> {
    raw_message(message.kind(), request_id, 0, &message.encode().expect("a message that fits"))
}

/// The bytes of a request to open whatever comes with it.
pub fn open_source(request_id: u64, fd_count: u8, is_memory: bool) -> Vec<u8> {
    let open = OpenSource {
        label: "hostile".into(),
        stream: None,
        seek_mode: SeekMode::Exact,
        is_memory,
        thread_count: 0,
    };
    let mut bytes = bytes_of(&Request::OpenSource(open), request_id);
    bytes[6] = fd_count;
    bytes
}
