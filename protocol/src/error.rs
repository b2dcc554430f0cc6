//! Errors as they travel: a number that programs act on and a sentence that people read.
//!
//! Which error of the daemon becomes which number is decided in one place of the daemon, not here.

use crate::codec::{Decode, Encode};

/// What kind of error it is: one number per thing that a caller would do differently. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request itself is wrong: fix the arguments.
    InvalidRequest,
    /// A frame index outside the stream.
    IndexOutOfRange,
    /// A time outside the stream.
    TimeOutOfRange,
    /// The file cannot be read as media: missing stream data, damage, an unknown codec.
    Media,
    /// The file was changed after it was opened: open it again.
    SourceChanged,
    /// This daemon cannot do that.
    Unsupported,
    /// No memory for the result while the caller keeps its leases, or a result above the quota.
    NoSlots,
    /// The deadline passed.
    Deadline,
    /// The request was cancelled.
    Cancelled,
    /// The decoder crashed on this file, twice.
    DecoderCrashed,
    /// The daemon is stopping: connect again.
    ShuttingDown,
    /// The daemon made a mistake. Its log has the details.
    Internal,
    /// Another limit of the daemon was reached (sources, requests in flight).
    LimitReached,
    /// The frames that a ticket stood for cannot be had by it any more, or never could.
    FramesLost,
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [ErrorCode; 14] = [
        ErrorCode::InvalidRequest,
        ErrorCode::IndexOutOfRange,
        ErrorCode::TimeOutOfRange,
        ErrorCode::Media,
        ErrorCode::SourceChanged,
        ErrorCode::Unsupported,
        ErrorCode::NoSlots,
        ErrorCode::Deadline,
        ErrorCode::Cancelled,
        ErrorCode::DecoderCrashed,
        ErrorCode::ShuttingDown,
        ErrorCode::Internal,
        ErrorCode::LimitReached,
        ErrorCode::FramesLost,
    ];

    /// Its name in logs and in status reports; never changes.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::InvalidRequest => "invalid_request",
            ErrorCode::IndexOutOfRange => "index_out_of_range",
            ErrorCode::TimeOutOfRange => "time_out_of_range",
            ErrorCode::Media => "media",
            ErrorCode::SourceChanged => "source_changed",
            ErrorCode::Unsupported => "unsupported",
            ErrorCode::NoSlots => "no_slots",
            ErrorCode::Deadline => "deadline",
            ErrorCode::Cancelled => "cancelled",
            ErrorCode::DecoderCrashed => "decoder_crashed",
            ErrorCode::ShuttingDown => "shutting_down",
            ErrorCode::Internal => "internal",
            ErrorCode::LimitReached => "limit_reached",
            ErrorCode::FramesLost => "frames_lost",
        }
    }
}

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// What kind of error.
    pub code: ErrorCode,
    /// True where the same request may succeed if sent again.
    pub is_retryable: bool,
    /// What was wrong and what to do, as a sentence.
    pub message: String,
}

impl WireError {
    /// An error that sending again will not cure.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        WireError { code, is_retryable: false, message: message.into() }
    }
}
