//! The messages: what clients ask, what the daemon answers, and what either side says unasked.
//!
//! Each message has a number (`kind`) that never changes its meaning. New fields need a new kind; enums grow
//! at their end only. The bytes are held by `tests/golden.rs`.

use crate::codec::{self, CodecError, Decode, Encode};
use crate::error::WireError;
use crate::ids::{ArenaId, LeaseId, SourceId, StreamIndex};
use crate::metadata::{ContentMetadata, EffectiveMetadata, MediaMetadata};
use crate::status::Status;
use crate::transform::Transform;

/// How a source's frames are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum SeekMode {
    /// By an index of all packets, made by one scan of the file.
    Exact,
    /// By arithmetic on what the header says, without a scan.
    Approximate,
    /// By what the client says, in a mapping that travels as the second fd: see [`crate::mapping`].
    Mapped,
}

/// Type of one value of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Dtype {
    /// 0 to 255.
    Uint8,
    /// 0.0 to 1.0.
    Float32,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::Uint8 => 1,
            Dtype::Float32 => 4,
        }
    }
}

/// `OpenSource`: the file travels as the message's first fd, opened for reading.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OpenSource {
    /// How messages call the file, such as its path. Never opened by the daemon.
    pub label: String,
    /// The stream; none means the one that FFmpeg prefers.
    pub stream: Option<StreamIndex>,
    /// How frames are found.
    pub seek_mode: SeekMode,
    /// True for bytes in a sealed memfd: such a source is never shared.
    pub is_memory: bool,
    /// Decoder threads that the caller would like; 0 leaves it to the daemon. A hint.
    pub thread_count: u16,
}

/// Which frames of a source. Indices from the end are negative, as in Python.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Wanted {
    /// These frames, in this order, duplicates included.
    Indices(Vec<i64>),
    /// `start`, `start + step`, … below `stop`.
    IndexRange {
        /// The first.
        start: u64,
        /// Below this.
        stop: u64,
        /// At least 1.
        step: u64,
    },
    /// The frame that covers this time: pts <= time < pts + duration, else the next one that begins after it.
    PlayedAt(f64),
    /// For each time the frame on display then: pts <= time < the next frame's pts.
    PlayedAtEach(Vec<f64>),
    /// All frames on display in [start, stop).
    PlayedInRange {
        /// Seconds.
        start: f64,
        /// Seconds.
        stop: f64,
    },
    /// As `Indices`, from the request's memfd: little-endian i64.
    IndicesInMemory(MemoryRange),
    /// As `PlayedAtEach`, from the request's memfd: little-endian f64.
    PlayedAtEachInMemory(MemoryRange),
}

/// A stretch of 8-byte values in the sealed memfd that travels with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemoryRange {
    /// Where the first value begins, a multiple of 8.
    pub offset_bytes: u64,
    /// How many values.
    pub count: u64,
}

/// The wanted frames of one source, and what they shall look like.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Part {
    /// An open source of this connection.
    pub source: SourceId,
    /// Which frames.
    pub wanted: Wanted,
    /// Type of the values.
    pub dtype: Dtype,
    /// What is done to the upright pictures, in this order; at most [`TRANSFORMS_MAX`](crate::transform::TRANSFORMS_MAX).
    pub transforms: Vec<Transform>,
}

/// `GetFrames`: all parts are answered together, in one slot.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct GetFrames {
    /// At least one.
    pub parts: Vec<Part>,
    /// Higher goes first; 0 is usual.
    pub priority: i8,
    /// Milliseconds from receipt until the answer is of no use.
    pub timeout_millis: Option<u64>,
}

/// Frames that one client may have hinted at and not asked for, and so the most values in one `Prefetch`: a hint for
/// more than that comes too early.
pub const PREFETCH_FRAMES_MAX: usize = 4096;

/// `Prefetch`: frames that this client, or another of its user, is going to ask for.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Prefetch {
    /// An open source of this connection.
    pub source: SourceId,
    /// Which frames. Lists in memory are of no use here: no descriptor comes with a hint.
    pub wanted: Wanted,
}

/// Indices in one `KeyFrames`: of nine bytes at most each, half a body. Who wants more asks again from there.
pub const KEY_FRAMES_PER_REPLY_MAX: usize = 4096;

/// `GetKeyFrames`: where decoding of a source can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GetKeyFrames {
    /// An open source of this connection, in exact mode.
    pub source: SourceId,
    /// The first index that is of interest.
    pub from: u64,
}

/// The right to a lease that any process of the same user may take, once. A number that cannot be guessed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Ticket(pub [u8; 32]);

impl std::fmt::Debug for Ticket {
    /// Whoever reads a log must not be able to redeem it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// What a client asks. Exactly one terminal reply with the same request id answers each.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Request {
    /// Opens a source; one fd, and the mapping's where there is one.
    OpenSource(OpenSource),
    /// Asks for frames; one fd if a part refers to memory.
    GetFrames(GetFrames),
    /// Asks how the daemon does.
    Status,
    /// Asks for the indices of keyframes.
    GetKeyFrames(GetKeyFrames),
    /// Asks for a ticket for a slot that this connection has a lease on.
    IssueTicket(LeaseId),
    /// Asks for a lease on the slot that a ticket stands for.
    RedeemTicket(Ticket),
}

/// What either side says without expecting an answer; its request id is 0.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Notice {
    /// Client: these leases are given back.
    Release(Vec<LeaseId>),
    /// Client: this source is not needed any more.
    CloseSource(SourceId),
    /// Client: this request is not needed any more. A hint; its reply still comes.
    Cancel(u64),
    /// Client: the process whose pidfd comes with this is the session of this connection's tickets.
    Session,
    /// Client: so much was copied out of slots, since it last said so.
    Copied {
        /// How many results.
        results: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Client: a hint. These frames may be decoded ahead, where nobody waits for anything else.
    Prefetch(Prefetch),
    /// Daemon: an arena of the given length, as one fd, to be mapped once.
    ArenaGranted {
        /// The name that replies use.
        arena: ArenaId,
        /// Its length.
        bytes: u64,
    },
    /// Daemon: no reply will name this arena again and no lease lies in it.
    ArenaRevoked(ArenaId),
}

/// Where one part's frames lie in the slot. Offsets count from the slot's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PartLayout {
    /// Number of frames, N.
    pub frame_count: u64,
    /// Rows, H: after all transforms.
    pub height: u32,
    /// Columns, W: after all transforms.
    pub width: u32,
    /// Values per pixel, C: 3, red, green, blue.
    pub channels: u32,
    /// Type of the values.
    pub dtype: Dtype,
    /// The pixels: N × H × W × C values without gaps.
    pub pixels_offset: u64,
    /// N little-endian f64: when each frame begins, in seconds.
    pub pts_offset: u64,
    /// N little-endian f64: how long each frame lasts, in seconds.
    pub durations_offset: u64,
}

impl PartLayout {
    /// Bytes of one frame's pixels; the largest number there is where they are more.
    pub fn frame_bytes(&self) -> u64 {
        let pixels = u64::from(self.height) * u64::from(self.width);
        pixels.saturating_mul(u64::from(self.channels)).saturating_mul(self.dtype.bytes())
    }
}

/// Frames, in a slot that the client now holds the lease of.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FramesReply {
    /// To be given back.
    pub lease: LeaseId,
    /// An arena that was granted before.
    pub arena: ArenaId,
    /// Where the slot begins in the arena.
    pub slot_offset: u64,
    /// The slot's length.
    pub slot_bytes: u64,
    /// One per part of the request, in its order; none for a ticket: who issued it says what lies in the slot.
    pub parts: Vec<PartLayout>,
}

/// An open source.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct SourceOpened {
    /// The name for requests.
    pub source: SourceId,
    /// The video stream that was chosen.
    pub stream: StreamIndex,
    /// What the header says.
    pub media: MediaMetadata,
    /// What the scan found; none in approximate mode.
    pub content: Option<ContentMetadata>,
    /// What applies.
    pub effective: EffectiveMetadata,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Reply {
    /// The request failed.
    Error(WireError),
    /// Answers `OpenSource`.
    SourceOpened(Box<SourceOpened>),
    /// Answers `GetFrames` and `RedeemTicket`.
    Frames(FramesReply),
    /// Answers `Status`.
    Status(Box<Status>),
    /// Answers `GetKeyFrames`: ascending, all there are unless they are [`KEY_FRAMES_PER_REPLY_MAX`].
    KeyFrames(Vec<u64>),
    /// Answers `IssueTicket`.
    TicketIssued(Ticket),
}

/// A group of messages that share one direction and one way to be encoded.
pub trait Message: Sized {
    /// The number for the header.
    fn kind(&self) -> u16;
    /// The body's bytes.
    fn encode(&self) -> Result<Vec<u8>, CodecError>;
    /// The message of this kind; none where the kind is not one of this group.
    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError>;
}

/// Numbers of the messages. 1 to 3 are the handshake's.
pub mod kind {
    #![allow(missing_docs)] // each is the name of the variant that it numbers
    pub const HELLO: u16 = 1;
    pub const WELCOME: u16 = 2;
    pub const REFUSAL: u16 = 3;
    pub const OPEN_SOURCE: u16 = 16;
    pub const GET_FRAMES: u16 = 17;
    pub const STATUS: u16 = 18;
    pub const GET_KEY_FRAMES: u16 = 19;
    pub const ISSUE_TICKET: u16 = 20;
    pub const REDEEM_TICKET: u16 = 21;
    pub const RELEASE: u16 = 32;
    pub const CLOSE_SOURCE: u16 = 33;
    pub const CANCEL: u16 = 34;
    pub const SESSION: u16 = 35;
    pub const COPIED: u16 = 36;
    pub const PREFETCH: u16 = 37;
    pub const ERROR: u16 = 64;
    pub const SOURCE_OPENED: u16 = 65;
    pub const FRAMES: u16 = 66;
    pub const STATUS_REPORT: u16 = 67;
    pub const KEY_FRAMES: u16 = 68;
    pub const TICKET_ISSUED: u16 = 69;
    pub const ARENA_GRANTED: u16 = 96;
    pub const ARENA_REVOKED: u16 = 97;

    /// True for what never is a notice: the handshake, requests and replies. Kinds of later versions are not known here.
    pub fn is_no_notice(kind: u16) -> bool {
        matches!(kind, HELLO..=REFUSAL | OPEN_SOURCE..=REDEEM_TICKET | ERROR..=TICKET_ISSUED)
    }
}

impl Message for Request {
    fn kind(&self) -> u16 {
        match self {
            Request::OpenSource(_) => kind::OPEN_SOURCE,
            Request::GetFrames(_) => kind::GET_FRAMES,
            Request::Status => kind::STATUS,
            Request::GetKeyFrames(_) => kind::GET_KEY_FRAMES,
            Request::IssueTicket(_) => kind::ISSUE_TICKET,
            Request::RedeemTicket(_) => kind::REDEEM_TICKET,
        }
    }

    fn encode(&self) -> Result<Vec<u8>, CodecError> {
        match self {
            Request::OpenSource(body) => codec::encode(body),
            Request::GetFrames(body) => codec::encode(body),
            Request::Status => Ok(Vec::new()),
            Request::GetKeyFrames(body) => codec::encode(body),
            Request::IssueTicket(lease) => codec::encode(lease),
            Request::RedeemTicket(ticket) => codec::encode(ticket),
        }
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError> {
        Ok(Some(match kind {
            kind::OPEN_SOURCE => Request::OpenSource(codec::decode(body)?),
            kind::GET_FRAMES => Request::GetFrames(codec::decode(body)?),
            kind::STATUS => codec::decode(body).map(|()| Request::Status)?,
            kind::GET_KEY_FRAMES => Request::GetKeyFrames(codec::decode(body)?),
            kind::ISSUE_TICKET => Request::IssueTicket(codec::decode(body)?),
            kind::REDEEM_TICKET => Request::RedeemTicket(codec::decode(body)?),
            _ => return Ok(None),
        }))
    }
}

impl Message for Notice {
    fn kind(&self) -> u16 {
        match self {
            Notice::Release(_) => kind::RELEASE,
            Notice::CloseSource(_) => kind::CLOSE_SOURCE,
            Notice::Cancel(_) => kind::CANCEL,
            Notice::Session => kind::SESSION,
            Notice::Copied { .. } => kind::COPIED,
            Notice::Prefetch(_) => kind::PREFETCH,
            Notice::ArenaGranted { .. } => kind::ARENA_GRANTED,
            Notice::ArenaRevoked(_) => kind::ARENA_REVOKED,
        }
    }

    fn encode(&self) -> Result<Vec<u8>, CodecError> {
        match self {
            Notice::Release(leases) => codec::encode(leases),
            Notice::CloseSource(source) => codec::encode(source),
            Notice::Cancel(request) => codec::encode(request),
            Notice::Session => Ok(Vec::new()),
            Notice::Copied { results, bytes } => codec::encode(&(*results, *bytes)),
            Notice::Prefetch(body) => codec::encode(body),
            Notice::ArenaGranted { arena, bytes } => codec::encode(&(*arena, *bytes)),
            Notice::ArenaRevoked(arena) => codec::encode(arena),
        }
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError> {
        Ok(Some(match kind {
            kind::RELEASE => Notice::Release(codec::decode(body)?),
            kind::CLOSE_SOURCE => Notice::CloseSource(codec::decode(body)?),
            kind::CANCEL => Notice::Cancel(codec::decode(body)?),
            kind::SESSION => codec::decode(body).map(|()| Notice::Session)?,
            kind::COPIED => {
                let (results, bytes) = codec::decode(body)?;
                Notice::Copied { results, bytes }
            }
            kind::PREFETCH => Notice::Prefetch(codec::decode(body)?),
            kind::ARENA_GRANTED => {
                let (arena, bytes) = codec::decode(body)?;
                Notice::ArenaGranted { arena, bytes }
            }
            kind::ARENA_REVOKED => Notice::ArenaRevoked(codec::decode(body)?),
            _ => return Ok(None),
        }))
    }
}

impl Message for Reply {
    fn kind(&self) -> u16 {
        match self {
            Reply::Error(_) => kind::ERROR,
            Reply::SourceOpened(_) => kind::SOURCE_OPENED,
            Reply::Frames(_) => kind::FRAMES,
            Reply::Status(_) => kind::STATUS_REPORT,
            Reply::KeyFrames(_) => kind::KEY_FRAMES,
            Reply::TicketIssued(_) => kind::TICKET_ISSUED,
        }
    }

    fn encode(&self) -> Result<Vec<u8>, CodecError> {
        match self {
            Reply::Error(body) => codec::encode(body),
            Reply::SourceOpened(body) => codec::encode(body.as_ref()),
            Reply::Frames(body) => codec::encode(body),
            Reply::Status(body) => codec::encode(body.as_ref()),
            Reply::KeyFrames(body) => codec::encode(body),
            Reply::TicketIssued(ticket) => codec::encode(ticket),
        }
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError> {
        Ok(Some(match kind {
            kind::ERROR => Reply::Error(codec::decode(body)?),
            kind::SOURCE_OPENED => Reply::SourceOpened(Box::new(codec::decode(body)?)),
            kind::FRAMES => Reply::Frames(codec::decode(body)?),
            kind::STATUS_REPORT => Reply::Status(Box::new(codec::decode(body)?)),
            kind::KEY_FRAMES => Reply::KeyFrames(codec::decode(body)?),
            kind::TICKET_ISSUED => Reply::TicketIssued(codec::decode(body)?),
            _ => return Ok(None),
        }))
    }
}
