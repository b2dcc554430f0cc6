//! What can go wrong for a caller: one variant per thing that a caller does differently.
//!
//! Which mistake of a request gets which code is decided by the daemon, not here.

use std::io;
use std::path::{Path, PathBuf};

use reeld_protocol::{ErrorCode, WireError};

/// Why a call failed. Its text is a sentence that says what was wrong and, where possible, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong: fix the arguments.
    #[error("{0}")]
    InvalidRequest(String),
    /// A frame index outside the stream.
    #[error("{0}")]
    FrameIndex(String),
    /// A time outside the stream, or not a number.
    #[error("{0}")]
    TimeOutOfRange(String),
    /// The file cannot be read as media.
    #[error("{0}")]
    Media(String),
    /// The file was changed after it was opened: open it again.
    #[error("{0}")]
    SourceChanged(String),
    /// This daemon cannot do that.
    #[error("{0}")]
    Unsupported(String),
    /// The result does not fit beside the frames that this process keeps: drop some, or raise the quota.
    #[error("{0}")]
    NoSlots(String),
    /// The deadline of the request passed.
    #[error("{0}")]
    Deadline(String),
    /// The request was cancelled.
    #[error("{0}")]
    Cancelled(String),
    /// The decoder crashed on this file, twice.
    #[error("{0}")]
    DecoderCrashed(String),
    /// No daemon answers: there was none to begin with, or the one that was there went away and did not come
    /// back within [`crate::ClientBuilder::reconnect_for`]. A later call looks for it again.
    #[error("{reason}")]
    DaemonUnavailable {
        /// What was tried, and what to do.
        reason: String,
    },
    /// The frames that a ticket stood for are lost: it was redeemed already, or the processes that it depends on
    /// have ended, or the daemon was restarted.
    #[error("{0}")]
    FramesLost(String),
    /// A limit other than that of memory was reached, such as open sources or connections.
    #[error("{0}")]
    LimitReached(String),
    /// The daemon made a mistake. Its log has the details.
    #[error("{0}")]
    Internal(String),
    /// The file could not be opened here.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file, or its label.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon sent something that the protocol does not allow.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
}

impl Error {
    /// True where the same call may succeed if it is made again, without any change by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::DaemonUnavailable { .. } => true,
            Error::InvalidRequest(_)
            | Error::FrameIndex(_)
            | Error::TimeOutOfRange(_)
            | Error::Media(_)
            | Error::SourceChanged(_)
            | Error::Unsupported(_)
            | Error::NoSlots(_)
            | Error::Deadline(_)
            | Error::Cancelled(_)
            | Error::DecoderCrashed(_)
            | Error::FramesLost(_)
            | Error::LimitReached(_)
            | Error::Internal(_)
            | Error::Io { .. }
            | Error::Protocol(_) => false,
        }
    }

    /// A short name of the kind of error that never changes, for programs that read `--json` output.
    pub fn name(&self) -> &'static str {
        match self {
            Error::InvalidRequest(_) => "invalid_request",
            Error::FrameIndex(_) => "frame_index",
            Error::TimeOutOfRange(_) => "time_out_of_range",
            Error::Media(_) => "media",
            Error::SourceChanged(_) => "source_changed",
            Error::Unsupported(_) => "unsupported",
            Error::NoSlots(_) => "no_slots",
            Error::Deadline(_) => "deadline",
            Error::Cancelled(_) => "cancelled",
            Error::DecoderCrashed(_) => "decoder_crashed",
            Error::DaemonUnavailable { .. } => "daemon_unavailable",
            Error::LimitReached(_) => "limit_reached",
            Error::FramesLost(_) => "frames_lost",
            Error::Internal(_) => "internal",
            Error::Io { .. } => "io",
            Error::Protocol(_) => "protocol",
        }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Error {
        Error::DaemonUnavailable { reason: reason.into() }
    }

    pub(crate) fn io(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Io { path: path.as_ref().to_owned(), source: source.into() }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Error {
        let message = error.message;
        match error.code {
            ErrorCode::InvalidRequest => Error::InvalidRequest(message),
            ErrorCode::IndexOutOfRange => Error::FrameIndex(message),
            ErrorCode::TimeOutOfRange => Error::TimeOutOfRange(message),
            ErrorCode::Media => Error::Media(message),
            ErrorCode::SourceChanged => Error::SourceChanged(message),
            ErrorCode::Unsupported => Error::Unsupported(message),
            ErrorCode::NoSlots => Error::NoSlots(message),
            ErrorCode::Deadline => Error::Deadline(message),
            ErrorCode::Cancelled => Error::Cancelled(message),
            ErrorCode::DecoderCrashed => Error::DecoderCrashed(message),
            ErrorCode::ShuttingDown => Error::DaemonUnavailable { reason: message },
            ErrorCode::Internal => Error::Internal(message),
            ErrorCode::LimitReached => Error::LimitReached(message),
            ErrorCode::FramesLost => Error::FramesLost(message),
            // A code of a later minor version, which the handshake should have kept away.
            _ => Error::Internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_shows_the_daemons_sentence() {
        let wire = WireError::new(ErrorCode::IndexOutOfRange, "frame 9 of 3");
        let error = Error::from(wire);
        assert!(matches!(error, Error::FrameIndex(_)));
        assert_eq!((error.to_string().as_str(), error.name()), ("frame 9 of 3", "frame_index"));
    }

    #[test]
    fn stopping_daemon_is_unavailable_and_retryable() {
        let error = Error::from(WireError::new(ErrorCode::ShuttingDown, "stopping"));
        assert!(error.is_retryable());
    }
}
