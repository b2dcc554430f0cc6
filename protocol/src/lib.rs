//! The wire protocol of reeld, as both sides see it: framing, messages, sockets that carry file
//! descriptors, arenas and error codes. `docs/protocol.md` describes the same for other languages.
//!
//! And how either side waits for the other: `vigil`.
//!
//! What does not live here: any decision about requests. Who may ask for what, and what is answered, is the daemon's.

pub mod arena;
pub mod codec;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod header;
pub mod ids;
pub mod mapping;
pub mod message;
pub mod metadata;
pub mod socket;
pub mod status;
pub mod transform;
pub mod vigil;

pub use arena::{Arena, ArenaError, SealedMemfd};
pub use error::{ErrorCode, WireError};
pub use frame::{Frame, FrameError, FrameReader, Outbox, Received};
pub use handshake::{Hello, Refusal, RefusalCause, Welcome};
pub use header::{BODY_BYTES_MAX, FDS_MAX, HEADER_BYTES, Header};
pub use ids::{ArenaId, FrameIndex, LeaseId, RequestId, SourceId, StreamIndex};
pub use message::{Notice, Reply, Request};
pub use transform::{Transform, TransformError, Transforms};

/// The protocol's major version. Peers with different majors refuse each other in the handshake.
pub const VERSION_MAJOR: u16 = 1;

/// The newest minor version that this crate speaks. Minor versions add message kinds and append enum
/// variants, nothing else, so that the lower of the two sides' minors is understood by both.
pub const VERSION_MINOR: u16 = 0;
