//! [`ByHand`]: a client without the client's library, for what that would never do. And [`as_user`].
//!
//! What is wrong with what it sends is each test's matter.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reeld_protocol::message::{
    Dtype, GetFrames, Message, OpenSource, Part, Reply, Request, SeekMode, Wanted, kind,
};
use reeld_protocol::{ErrorCode, FrameReader, Hello, Outbox, SourceId, VERSION_MAJOR};
use rustix::net::{RecvFlags, SendFlags};

/// A connection that says what it is told.
#[derive(Debug)]
pub struct ByHand {
    stream: UnixStream,
    reader: FrameReader,
    next_request: u64,
}

impl ByHand {
    /// Connects and is welcomed.
    pub fn connect(socket: &Path) -> ByHand {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        // A read that never ends fails the test instead of holding it up.
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let mut hand = ByHand { stream, reader: FrameReader::new(), next_request: 0 };
        let hello =
            Hello { major: VERSION_MAJOR, minor_min: 0, minor_max: 0, features: 0, name: "by hand".into() };
        let mut outbox = Outbox::new();
        outbox.push_raw(kind::HELLO, 0, &hello.to_bytes(), Vec::new());
        outbox.send(&hand.stream, SendFlags::empty()).expect("the daemon reads");
        assert_eq!(hand.read().0, kind::WELCOME);
        hand
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message with descriptors, and does not wait for an answer.
    pub fn send(&self, message: &impl Message, request_id: u64, fds: Vec<OwnedFd>) {
        let mut outbox = Outbox::new();
        let fds: Vec<_> = fds.into_iter().map(Arc::new).collect();
        // Never closed: they may be of a file system that does not answer.
        std::mem::forget(fds.clone());
        outbox.push(message, request_id, fds).expect("a message that can be encoded");
        outbox.send(&self.stream, SendFlags::empty()).expect("the daemon reads");
    }

    /// Asks for a file to be opened, and returns the request's id.
    pub fn open(&mut self, fds: Vec<OwnedFd>) -> u64 {
        let open = OpenSource {
            label: "by hand".into(),
            stream: None,
            seek_mode: SeekMode::Exact,
            is_memory: false,
            thread_count: 0,
        };
        self.request(&Request::OpenSource(open), fds)
    }

    /// Asks for frames of a source, and returns the request's id.
    pub fn frames(&mut self, source: SourceId, indices: Vec<i64>, fds: Vec<OwnedFd>) -> u64 {
        let part =
            Part { source, wanted: Wanted::Indices(indices), dtype: Dtype::Uint8, transforms: Vec::new() };
        let wanted = GetFrames { parts: vec![part], priority: 0, timeout_millis: None };
        self.request(&Request::GetFrames(wanted), fds)
    }

    /// Sends a request, and returns its id.
    pub fn request(&mut self, request: &Request, fds: Vec<OwnedFd>) -> u64 {
        self.next_request += 1;
        self.send(request, self.next_request, fds);
        self.next_request
    }

    /// The next reply, and to which request.
    pub fn reply(&mut self) -> (u64, Reply) {
        loop {
            let (kind, request_id, body) = self.read();
            if request_id != 0 {
                let reply = Reply::decode(kind, &body).expect("a reply that can be decoded");
                return (request_id, reply.expect("a reply of a known kind"));
            }
        }
    }

    /// The code of the next reply, which must be an error.
    #[track_caller]
    pub fn error(&mut self) -> ErrorCode {
        match self.reply().1 {
            Reply::Error(error) => error.code,
            reply => panic!("no error: {reply:?}"),
        }
    }

    fn read(&mut self) -> (u16, u64, Vec<u8>) {
        loop {
            if let Some(frame) = self.reader.next_frame().expect("the daemon keeps to the protocol") {
                return (frame.header.kind, frame.header.request_id, frame.body);
            }
            let received = self.reader.receive(&self.stream, RecvFlags::empty()).expect("the daemon answers");
            assert_eq!(received, reeld_protocol::Received::Bytes, "the daemon closed the connection");
        }
    }

    /// Sends bytes as they are, with descriptors.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let slices = [std::io::IoSlice::new(bytes)];
        sendmsg(&self.stream, &slices, &mut ancillary, SendFlags::empty()).expect("the daemon reads");
    }
}

/// Does something as another user, as far as this thread and the kernel are concerned; as the one who runs the
/// tests where that is not root. A connection that is made there is that user's for ever.
pub fn as_user<T>(uid: u32, work: impl FnOnce() -> T) -> T {
    if !rustix::process::geteuid().is_root() {
        return work();
    }
    // The C library's function would change all threads; the system call changes this one.
    let become_effective = |uid: u32| {
        // SAFETY: numbers only; nothing of this process's memory is touched.
        let status = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
        assert_eq!(status, 0, "the user can be changed");
    };
    become_effective(uid);
    let result = work();
    become_effective(0);
    result
}
