//! What broker and engine say to each other over their socketpair. The framing is the wire protocol's; the
//! bodies are these enums. Both ends are the same binary, so there is no version and no compatibility.
//!
//! Neither room's logic lives here: this is all that they share.

pub mod index;

use bincode::{Decode, Encode};
use reeld_protocol::Transform;
use reeld_protocol::codec::{self, CodecError};
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::message::{Dtype, Message};
use reeld_protocol::metadata::MediaMetadata;

/// The `kind` of all messages to an engine.
const ENGINE_REQUEST: u16 = 0x8000;
/// The `kind` of all messages from an engine.
const ENGINE_REPLY: u16 = 0x8001;

/// The most wanted pictures in one message: about 40 bytes each, half a body.
pub const WANTED_PER_MESSAGE_MAX: usize = 800;

/// The most lists of transforms that the pictures of one message may name: a batch of random crops of one
/// stretch. With the longest lists they take a sixth of a body.
pub const LOOKS_PER_MESSAGE_MAX: usize = 64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub u64);
    };
}

id!(
    /// A file in the catalog, known to all engines of its user by this number.
    CatalogId
);
id!(
    /// An arena, known to all engines of its user by this number; not the client's `ArenaId`.
    ArenaKey
);
id!(
    /// One thing that an engine is asked to do. Never reused.
    JobId
);
id!(
    /// One picture that somebody waits for, and where it shall go. Never reused.
    WantedId
);

/// What makes a file the same file. Two opens with equal identities share index, sessions and pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_nanos: i128,
    /// Last change of the inode, nanoseconds since 1970.
    pub changed_nanos: i128,
}

/// A fingerprint of a file's content: SHA-256 of its first and last 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ContentDigest(pub [u8; 32]);

/// Where a picture shall be written. Offsets count from the arena's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Destination {
    /// An arena that was added before.
    pub arena: ArenaKey,
    /// height × width × 3 values without gaps.
    pub pixels_offset: u64,
    /// One f64: when the frame begins, in seconds.
    pub pts_offset: u64,
    /// One f64: how long it lasts, in seconds.
    pub duration_offset: u64,
    /// Rows that the caller reserved room for.
    pub height: u32,
    /// Columns that the caller reserved room for.
    pub width: u32,
    /// Type of the values.
    pub dtype: Dtype,
    /// What is done to the upright picture.
    pub look: LookIndex,
}

impl Destination {
    /// Of a picture that is decoded ahead: it is kept for whoever asks for it, and nothing is written. Arenas are
    /// numbered from 0, one by one.
    pub const CACHE: Destination = Destination {
        arena: ArenaKey(u64::MAX),
        pixels_offset: 0,
        pts_offset: 0,
        duration_offset: 0,
        height: 0,
        width: 0,
        dtype: Dtype::Uint8,
        look: LookIndex(0),
    };

    /// True for a picture that is decoded ahead.
    pub fn is_cache(&self) -> bool {
        self.arena == Destination::CACHE.arena
    }
}

/// Position of a list of transforms in the message that names it, below [`LOOKS_PER_MESSAGE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LookIndex(pub u8);

/// The lists of transforms that the pictures of one message name.
pub type Looks = Vec<Vec<Transform>>;

/// Which decoded picture is meant.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub enum Target {
    /// The first picture, in presentation order from the run's start, with pts >= this, in stream ticks.
    AtOrAfter(i64),
    /// The first picture with begin <= seconds < begin + duration, or begin > seconds.
    PlayedAt(f64),
}

/// A picture that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct WantedPicture {
    /// Its name in replies.
    pub id: WantedId,
    /// Which picture.
    pub target: Target,
    /// Where to.
    pub destination: Destination,
}

/// Where decoding may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RunStart {
    /// Exact mode: the keyframe with this pts, in stream ticks, or anything equivalent, such as a session
    /// that stands between it and the first wanted picture.
    Keyframe(i64),
    /// Approximate mode, or no indexed keyframe before the target: wherever the demuxer's own seek to the
    /// wanted picture leads.
    Demuxer,
}

/// One keyframe start and the pictures wanted out of what follows it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Run {
    /// A source that was added before.
    pub source: CatalogId,
    /// Its stream.
    pub stream: StreamIndex,
    /// Where decoding may begin.
    pub start: RunStart,
    /// In the order of their targets; at most [`WANTED_PER_MESSAGE_MAX`].
    pub wanted: Vec<WantedPicture>,
    /// What those are named after; at most [`LOOKS_PER_MESSAGE_MAX`].
    pub looks: Looks,
    /// Codec threads that may be used; 0 means one.
    pub thread_count: u16,
}

/// What the broker asks of an engine.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum EngineRequest {
    /// A file, as one fd, for later jobs. No reply.
    AddSource {
        /// Its name.
        source: CatalogId,
        /// What it must still be when pictures of it are delivered.
        identity: FileIdentity,
    },
    /// No later job names this source: close it, with its sessions and cached pictures. No reply.
    DropSource(CatalogId),
    /// An arena, as one fd. No reply.
    AddArena {
        /// Its name.
        arena: ArenaKey,
        /// Its length.
        bytes: u64,
    },
    /// No later job names this arena: unmap it. No reply.
    DropArena(ArenaKey),
    /// Read the header. Answered by `Probed` or `JobFailed`.
    Probe {
        /// The job's name.
        job: JobId,
        /// The file.
        source: CatalogId,
    },
    /// Index one stream by reading all packets. Answered by `Scanned`, `ScanYielded` or `JobFailed`; after
    /// `ScanYielded` the same request goes on.
    Scan {
        /// The job's name.
        job: JobId,
        /// The file.
        source: CatalogId,
        /// Its stream.
        stream: StreamIndex,
    },
    /// Decode a run. Answered by `RunEnded`.
    Decode {
        /// The job's name.
        job: JobId,
        /// What to do.
        run: Run,
    },
    /// More pictures for the run in progress; ignored where it has ended.
    Extend {
        /// The run's job.
        job: JobId,
        /// At most [`WANTED_PER_MESSAGE_MAX`], in the order of their targets.
        wanted: Vec<WantedPicture>,
        /// What those are named after; at most [`LOOKS_PER_MESSAGE_MAX`].
        looks: Looks,
    },
    /// End this job at the next sample boundary; ignored where it has ended. A run answers with what it has.
    Cancel(JobId),
}

/// Why a job or a wanted picture failed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum EngineError {
    /// The file cannot be read as media; a sentence.
    Media(String),
    /// Not a media file that this build can decode; a sentence.
    Unsupported(String),
    /// The file is not what it was when it was opened.
    SourceChanged,
    /// A limit of the engine or the daemon was reached; a sentence.
    LimitReached(String),
    /// The engine made a mistake; a sentence for the log.
    Internal(String),
}

/// What an engine has done since its last report, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct EngineReport {
    /// Pictures that decoders put out.
    pub pictures_decoded: u64,
    /// Samples that no decoder got, since nobody wanted their pictures.
    pub samples_skipped: u64,
    /// Wanted pictures that came from the cache.
    pub cache_hits: u64,
    /// Of these, the ones that had been decoded ahead and were asked for the first time.
    pub prefetch_hits: u64,
    /// Pictures that were decoded ahead and kept.
    pub pictures_prefetched: u64,
    /// Time for turning pictures into frames.
    pub conversion_micros: u64,
    /// Page faults of all its threads.
    pub page_faults: u64,
    /// Sessions that are open now.
    pub session_count: u64,
    /// Bytes in the picture cache now.
    pub cache_bytes: u64,
}

/// What an engine answers.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum EngineReply {
    /// The first message: the engine is ready.
    Ready {
        /// Such as `libavcodec 59.37.100`.
        ffmpeg_versions: Vec<String>,
    },
    /// Answers `Probe`.
    Probed {
        /// The job.
        job: JobId,
        /// What the header says.
        media: MediaMetadata,
        /// What the file begins and ends with.
        content: ContentDigest,
    },
    /// Answers `Scan`; the index is in the one fd, as [`index::Index::to_bytes`] wrote it.
    Scanned {
        /// The job.
        job: JobId,
    },
    /// A scan takes longer than one turn; ask again.
    ScanYielded {
        /// The job.
        job: JobId,
    },
    /// `Probe` or `Scan` failed.
    JobFailed {
        /// The job.
        job: JobId,
        /// Why.
        error: EngineError,
    },
    /// A run has ended: it is complete, its turn is over, it was cancelled, or it failed; or it was one that decodes
    /// ahead, and has done what joined it. Wanted pictures that are named in neither list were not written and still
    /// have to be decoded.
    RunEnded {
        /// The job.
        job: JobId,
        /// These are in their slots, or in the cache.
        finished: Vec<WantedId>,
        /// These can never be had.
        failed: Vec<(WantedId, EngineError)>,
        /// What was done and what is held.
        report: EngineReport,
    },
}

impl Message for EngineRequest {
    fn kind(&self) -> u16 {
        ENGINE_REQUEST
    }

    fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError> {
        if kind == ENGINE_REQUEST { codec::decode(body).map(Some) } else { Ok(None) }
    }
}

impl Message for EngineReply {
    fn kind(&self) -> u16 {
        ENGINE_REPLY
    }

    fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError> {
        if kind == ENGINE_REPLY { codec::decode(body).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::transform::TRANSFORMS_MAX;

    use super::*;

    #[test]
    fn largest_run_fits_into_a_body() {
        let crop = Transform::Crop { top: u32::MAX, left: u32::MAX, height: u32::MAX, width: u32::MAX };
        let destination = Destination {
            arena: ArenaKey(u64::MAX),
            pixels_offset: u64::MAX,
            pts_offset: u64::MAX,
            duration_offset: u64::MAX,
            height: u32::MAX,
            width: u32::MAX,
            dtype: Dtype::Float32,
            look: LookIndex(u8::MAX),
        };
        let wanted =
            WantedPicture { id: WantedId(u64::MAX), target: Target::AtOrAfter(i64::MIN), destination };
        let run = Run {
            source: CatalogId(u64::MAX),
            stream: StreamIndex(u32::MAX),
            start: RunStart::Keyframe(i64::MIN),
            wanted: vec![wanted; WANTED_PER_MESSAGE_MAX],
            looks: vec![vec![crop; TRANSFORMS_MAX]; LOOKS_PER_MESSAGE_MAX],
            thread_count: u16::MAX,
        };
        let request = EngineRequest::Decode { job: JobId(u64::MAX), run };
        assert!(Message::encode(&request).is_ok());
    }

    #[test]
    fn largest_report_fits_into_a_body() {
        // A whole batch fails with one sentence each; the sentence is cut by the engine.
        let error = EngineError::Media("x".repeat(60));
        let failed = vec![(WantedId(u64::MAX), error); WANTED_PER_MESSAGE_MAX];
        let reply = EngineReply::RunEnded {
            job: JobId(u64::MAX),
            finished: vec![],
            failed,
            report: EngineReport::default(),
        };
        assert!(Message::encode(&reply).is_ok());
    }
}
