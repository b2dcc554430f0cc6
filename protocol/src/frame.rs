//! Messages as bytes and file descriptors on a stream socket: [`FrameReader`] for what comes in,
//! [`Outbox`] for what goes out. Both work with blocking and with non-blocking sockets.
//!
//! What a body means is not known here.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::codec::CodecError;
use crate::header::{BODY_BYTES_MAX, FDS_MAX, HEADER_BYTES, Header};
use crate::message::Message;

/// Descriptors that may wait for their messages: those of a message that is not whole yet, and those of the next
/// one, of which the same read may bring the beginning. Whoever sends more would fill our table of open files.
const FDS_WAITING_MAX: usize = 2 * FDS_MAX;

/// The most descriptors that the kernel passes in one message. A smaller buffer would let it close the surplus,
/// on the thread that reads and whatever file they are of.
const KERNEL_FDS_MAX: usize = 253;

/// What a peer did that no version of the protocol allows. The connection cannot go on after it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length that no message has.
    #[error("a message body of {bytes} bytes is over the limit of {BODY_BYTES_MAX}")]
    BodyTooLarge {
        /// What the header says.
        bytes: u32,
    },
    /// A number of file descriptors that no message has.
    #[error("{count} file descriptors with one message are over the limit of {FDS_MAX}")]
    TooManyFds {
        /// What the header says.
        count: u8,
    },
    /// The header announces file descriptors that did not come.
    #[error("a message announces {announced} file descriptors, but {received} came with it")]
    FdsMissing {
        /// What the header says.
        announced: usize,
        /// How many came.
        received: usize,
    },
    /// File descriptors pile up that no message claims.
    #[error("{count} file descriptors came that no message claims")]
    FdsUnclaimed {
        /// How many wait.
        count: usize,
    },
    /// Not the bytes of a handshake.
    #[error("the peer does not speak reeld's protocol")]
    NotReeld,
    /// A handshake that ends early.
    #[error("the handshake message is too short")]
    HandshakeTooShort,
}

/// One message with the file descriptors that came with it.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub header: Header,
    /// The body, as long as the header says.
    pub body: Vec<u8>,
    /// As many as the header says; none where [`Frame::are_fds_lost`].
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// True where the kernel dropped file descriptors of this message: there were too many, or this process
    /// may not open more.
    pub fn are_fds_lost(&self) -> bool {
        self.fds.len() < usize::from(self.header.fd_count)
    }
}

/// What one read from a socket brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Some bytes.
    Bytes,
    /// The peer closed its side.
    Closed,
}

/// Collects bytes and file descriptors until whole messages are there.
///
/// Every read goes through `recvmsg`: a plain read would drop file descriptors without a word. The kernel
/// may join the bytes of several messages, but ends a read at a message that carries descriptors, so
/// they are queued and handed to messages by the count in their headers. Of a read that lost some, none is
/// kept: which ones are missing cannot be known, and a message with another's file would be worse than one
/// without.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    fds: VecDeque<OwnedFd>,
    strays: Vec<OwnedFd>,
    /// Where in the buffer reads begin and end that have lost descriptors.
    lossy_reads: Vec<(usize, usize)>,
    is_drained: bool,
}

impl FrameReader {
    /// An empty reader.
    pub fn new() -> Self {
        FrameReader::default()
    }

    /// Reads once from the socket. Returns `WouldBlock` where the socket or `flags` say so. Closes strays.
    pub fn receive(&mut self, socket: impl AsFd, flags: RecvFlags) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_FDS_MAX))];
        self.receive_into(&mut space, socket, flags)
    }

    fn receive_into(
        &mut self,
        space: &mut [MaybeUninit<u8>],
        socket: impl AsFd,
        flags: RecvFlags,
    ) -> io::Result<Received> {
        self.strays.clear();
        self.make_room();
        let mut ancillary = RecvAncillaryBuffer::new(space);
        self.is_drained = false;
        let room = self.buffer.len() - self.end;
        let mut slices = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let message = recvmsg(socket, &mut slices, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)?;
        let is_lossy = message.flags.contains(ReturnFlags::CTRUNC);
        let before = self.fds.len();
        for item in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = item {
                if is_lossy { self.strays.extend(fds) } else { self.fds.extend(fds) }
            }
        }
        let count = self.fds.len() - before;
        self.is_drained = message.bytes < room && count == 0 && !is_lossy;
        if count > FDS_MAX {
            let count = u8::try_from(count).unwrap_or(u8::MAX);
            return Err(io::Error::new(io::ErrorKind::InvalidData, FrameError::TooManyFds { count }));
        }
        if self.fds.len() > FDS_WAITING_MAX {
            let error = FrameError::FdsUnclaimed { count: self.fds.len() };
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if is_lossy {
            let end = self.end + message.bytes;
            match self.lossy_reads.last_mut() {
                Some(last) if last.1 == self.end => last.1 = end,
                Some(_) | None => self.lossy_reads.push((self.end, end)),
            }
        }
        self.end += message.bytes;
        Ok(if message.bytes == 0 { Received::Closed } else { Received::Bytes })
    }

    /// The next whole message, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let pending = &self.buffer[self.start..self.end];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_BYTES>() else {
            if pending.is_empty() {
                // No message is left to claim these: a peer sent descriptors where none belong.
                self.strays.extend(self.fds.drain(..));
            }
            return Ok(None);
        };
        let header = Header::from_bytes(header)?;
        let body_bytes = header.body_bytes as usize;
        if rest.len() < body_bytes {
            return Ok(None);
        }
        let has_lost_fds = self.has_lost_fds(self.start);
        let fd_count = if has_lost_fds { 0 } else { usize::from(header.fd_count) };
        if self.fds.len() < fd_count {
            // Descriptors never arrive later than the bytes they were sent with.
            return Err(FrameError::FdsMissing { announced: fd_count, received: self.fds.len() });
        }
        let body = rest[..body_bytes].to_vec();
        self.start += HEADER_BYTES + body_bytes;
        Ok(Some(Frame { header, body, fds: self.fds.drain(..fd_count).collect() }))
    }

    /// Descriptors that no message claimed, for a caller to whom it matters where they are closed. The next
    /// read closes them here.
    pub fn take_strays(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.strays)
    }

    /// All descriptors that are left, for the same reason.
    pub fn into_fds(mut self) -> Vec<OwnedFd> {
        let mut fds = self.take_strays();
        fds.extend(self.fds.drain(..));
        fds
    }

    /// True while no byte waits to become part of a message.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// True where the last read took all that was there. The kernel ends a read early only where the buffer is full
    /// or where descriptors came.
    pub fn is_drained(&self) -> bool {
        self.is_drained
    }

    /// True if the message that begins here came with a read that lost descriptors: they are sent with a
    /// message's first byte.
    fn has_lost_fds(&self, start: usize) -> bool {
        self.lossy_reads.iter().any(|&(begin, end)| begin <= start && start < end)
    }

    fn make_room(&mut self) {
        const CAPACITY: usize = HEADER_BYTES + BODY_BYTES_MAX;
        if self.buffer.is_empty() {
            self.buffer.resize(CAPACITY, 0);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.lossy_reads.retain(|&(_, end)| self.start < end);
            for (begin, end) in &mut self.lossy_reads {
                *begin = begin.saturating_sub(self.start);
                *end -= self.start;
            }
            self.end -= self.start;
            self.start = 0;
        }
    }
}

/// A file descriptor on its way out: given away, or shared with others who send it too.
pub type OutgoingFd = Arc<OwnedFd>;

/// Messages on their way out, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OutgoingFd>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new() -> Self {
        Outbox::default()
    }

    /// Appends a message of any group. At most [`FDS_MAX`] descriptors.
    pub fn push<M: Message>(
        &mut self,
        message: &M,
        request_id: u64,
        fds: Vec<OutgoingFd>,
    ) -> Result<(), CodecError> {
        let body = message.encode()?;
        self.push_raw(message.kind(), request_id, &body, fds);
        Ok(())
    }

    /// Appends a message whose body is already encoded, such as a handshake's.
    pub fn push_raw(&mut self, kind: u16, request_id: u64, body: &[u8], fds: Vec<OutgoingFd>) {
        debug_assert!(body.len() <= BODY_BYTES_MAX && fds.len() <= FDS_MAX);
        let header =
            Header { body_bytes: body.len() as u32, kind, fd_count: fds.len() as u8, flags: 0, request_id };
        // Messages without descriptors join the one before them: one system call sends both.
        match self.queue.back_mut() {
            Some(last) if fds.is_empty() && last.bytes.len() < BODY_BYTES_MAX => {
                last.bytes.extend(header.to_bytes());
                last.bytes.extend(body);
            }
            Some(_) | None => {
                let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
                bytes.extend(header.to_bytes());
                bytes.extend(body);
                self.queue.push_back(Outgoing { bytes, sent: 0, fds });
            }
        }
        self.queued_bytes += HEADER_BYTES + body.len();
    }

    /// True while nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that wait to be sent.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Sends until all is gone, or until the socket or `flags` say `WouldBlock`; what is left stays queued.
    pub fn send(&mut self, socket: impl AsFd, flags: SendFlags) -> io::Result<()> {
        while let Some(first) = self.queue.front_mut() {
            let sent = match send_once(socket.as_fd(), first, flags) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // The descriptors went with the first byte.
            first.fds.clear();
            first.sent += sent;
            self.queued_bytes -= sent;
            if first.sent == first.bytes.len() {
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

fn send_once(socket: BorrowedFd<'_>, outgoing: &Outgoing, flags: SendFlags) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = outgoing.fds.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many file descriptors for one message"));
    }
    let slices = [IoSlice::new(&outgoing.bytes[outgoing.sent..])];
    Ok(sendmsg(socket, &slices, &mut ancillary, flags | SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::ids::LeaseId;
    use crate::message::Notice;

    fn null() -> OutgoingFd {
        Arc::new(File::open("/dev/null").unwrap().into())
    }

    fn receive_all(socket: &UnixStream) -> (FrameReader, Vec<Frame>) {
        let mut reader = FrameReader::new();
        let mut frames = Vec::new();
        while reader.receive(socket, RecvFlags::empty()).unwrap() == Received::Bytes {
            while let Some(frame) = reader.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        (reader, frames)
    }

    #[test]
    fn fds_arrive_with_their_own_messages() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new();
        outbox.push_raw(1, 1, b"plain", vec![]);
        outbox.push_raw(2, 2, b"two", vec![null(), null()]);
        outbox.push_raw(3, 3, b"plain", vec![]);
        outbox.push_raw(4, 4, b"one", vec![null()]);
        outbox.send(&ours, SendFlags::empty()).unwrap();
        drop(ours);
        let (_, frames) = receive_all(&theirs);
        let counts: Vec<_> = frames.iter().map(|frame| (frame.header.kind, frame.fds.len())).collect();
        assert_eq!(counts, [(1, 0), (2, 2), (3, 0), (4, 1)]);
    }

    #[test]
    fn surplus_fds_are_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new();
        outbox.push_raw(1, 1, b"claims none", vec![null()]);
        outbox.queue[0].bytes[6] = 0;
        outbox.send(&ours, SendFlags::empty()).unwrap();
        drop(ours);
        let (reader, frames) = receive_all(&theirs);
        assert_eq!(frames[0].fds.len(), 0);
        assert!(reader.into_fds().is_empty());
    }

    #[test]
    fn fds_that_pile_up_behind_half_a_message_are_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut reader = FrameReader::new();
        let mut received = Vec::new();
        // Each byte of one long message brings as many descriptors as a whole message may have.
        let header = Header { body_bytes: 9, kind: 1, fd_count: 1, flags: 0, request_id: 1 };
        for byte in header.to_bytes() {
            let outgoing = Outgoing { bytes: vec![byte], sent: 0, fds: vec![null(); FDS_MAX] };
            send_once(ours.as_fd(), &outgoing, SendFlags::empty()).unwrap();
            received.push(reader.receive(&theirs, RecvFlags::empty()).is_ok());
            assert!(reader.next_frame().unwrap().is_none());
        }
        assert_eq!(received[..3], [true, true, false]);
    }

    #[test]
    fn announced_fds_that_do_not_come_are_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new();
        outbox.push_raw(1, 1, b"", vec![]);
        outbox.queue[0].bytes[6] = 1;
        outbox.send(&ours, SendFlags::empty()).unwrap();
        let mut reader = FrameReader::new();
        reader.receive(&theirs, RecvFlags::empty()).unwrap();
        assert!(matches!(reader.next_frame(), Err(FrameError::FdsMissing { announced: 1, received: 0 })));
    }

    #[test]
    fn message_whose_fds_were_lost_says_so_and_the_next_has_its_own() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // More descriptors than the reader below has room for: the kernel drops some, as it does when a
        // process may not open more.
        let surplus: Vec<OutgoingFd> = (0..FDS_MAX + 8).map(|_| null()).collect();
        let lost = Header { body_bytes: 0, kind: 2, fd_count: 1, flags: 0, request_id: 2 }.to_bytes();
        let mut outbox = Outbox::new();
        outbox.push_raw(1, 1, b"plain", vec![]);
        outbox.send(&ours, SendFlags::empty()).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = surplus.iter().map(|fd| fd.as_fd()).collect();
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&ours, &[IoSlice::new(&lost)], &mut ancillary, SendFlags::empty()).unwrap();
        outbox.push_raw(3, 3, b"one", vec![null()]);
        outbox.send(&ours, SendFlags::empty()).unwrap();
        drop(ours);
        let (mut reader, mut frames) = (FrameReader::new(), Vec::new());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        while reader.receive_into(&mut space, &theirs, RecvFlags::empty()).unwrap() == Received::Bytes {
            frames.extend(std::iter::from_fn(|| reader.next_frame().unwrap()));
        }
        let shown: Vec<_> = frames.iter().map(|frame| (frame.fds.len(), frame.are_fds_lost())).collect();
        assert_eq!(shown, [(0, false), (0, true), (1, false)]);
    }

    #[test]
    fn full_socket_keeps_the_rest_queued_and_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new();
        for id in 1..=100 {
            outbox.push_raw(7, id, &[id as u8; 30_000], vec![null()]);
        }
        let mut reader = FrameReader::new();
        let mut ids = Vec::new();
        while ids.len() < 100 {
            match outbox.send(&ours, SendFlags::DONTWAIT) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            reader.receive(&theirs, RecvFlags::empty()).unwrap();
            while let Some(frame) = reader.next_frame().unwrap() {
                assert_eq!((frame.body.len(), frame.fds.len()), (30_000, 1));
                ids.push(frame.header.request_id);
            }
        }
        assert_eq!(ids, (1..=100).collect::<Vec<_>>());
        assert_eq!(outbox.queued_bytes(), 0);
    }

    #[test]
    fn message_cut_at_any_byte_is_whole_in_the_end() {
        let mut outbox = Outbox::new();
        outbox.push(&Notice::Release(vec![LeaseId(1), LeaseId(500)]), 0, vec![]).unwrap();
        let bytes = outbox.queue[0].bytes.clone();
        for cut in 0..=bytes.len() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut reader = FrameReader::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                if !piece.is_empty() {
                    io::Write::write_all(&mut &ours, piece).unwrap();
                    reader.receive(&theirs, RecvFlags::empty()).unwrap();
                }
            }
            let frame = reader.next_frame().unwrap().unwrap();
            let notice = Notice::decode(frame.header.kind, &frame.body).unwrap().unwrap();
            assert_eq!(notice, Notice::Release(vec![LeaseId(1), LeaseId(500)]));
        }
    }
}
