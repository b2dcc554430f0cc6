//! The one place where the rooms' errors become numbers and sentences on the wire.
//!
//! What the client's library makes of the numbers is its own matter.

use reeld_protocol::error::{ErrorCode, WireError};

use super::blame::{Blame, Death};
use super::leases::Reservation;
use super::plan::PlanError;
use crate::link::EngineError;

/// A request that cannot be planned.
pub fn from_plan(error: &PlanError) -> WireError {
    let code = match error {
        PlanError::IndexTooLarge { .. } | PlanError::IndexTooSmall { .. } => ErrorCode::IndexOutOfRange,
        PlanError::Time { .. } => ErrorCode::TimeOutOfRange,
        PlanError::Range { .. } | PlanError::TooManyFrames { .. } => ErrorCode::InvalidRequest,
        PlanError::NoFrameRate => ErrorCode::Media,
    };
    WireError::new(code, error.to_string())
}

/// A job that an engine could not do.
pub fn from_engine(error: &EngineError, label: &str) -> WireError {
    match error {
        EngineError::Media(reason) => WireError::new(ErrorCode::Media, format!("{label}: {reason}")),
        EngineError::Unsupported(reason) => {
            WireError::new(ErrorCode::Unsupported, format!("{label}: {reason}"))
        }
        EngineError::SourceChanged => WireError::new(
            ErrorCode::SourceChanged,
            format!("{label}: the file was changed after it was opened; open it again"),
        ),
        EngineError::Internal(reason) => {
            tracing::error!(label, reason, "an engine failed");
            WireError::new(ErrorCode::Internal, format!("{label}: reeld made a mistake: {reason}"))
        }
    }
}

/// A reservation that failed.
pub fn from_reservation(reservation: &Reservation, bytes: u64, quota_bytes: u64) -> WireError {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let message = match reservation {
        Reservation::TooLarge => format!(
            "a result of {:.1} MiB is over this client's quota of {:.1} MiB of shared memory; ask for fewer \
             frames at a time, or raise client_memory_mib",
            mib(bytes),
            mib(quota_bytes)
        ),
        Reservation::NoSlots { leased_bytes } => format!(
            "no room in one piece for a result of {:.1} MiB: this client still holds frames of {:.1} MiB out of its \
             quota of {:.1} MiB; drop or copy them",
            mib(bytes),
            mib(*leased_bytes),
            mib(quota_bytes)
        ),
        Reservation::Slot(_) | Reservation::NeedsArena { .. } | Reservation::Wait => {
            return internal("a reservation was taken for an error");
        }
    };
    let is_retryable = !matches!(reservation, Reservation::TooLarge);
    WireError { code: ErrorCode::NoSlots, is_retryable, message }
}

/// Engines died over the same file again and again.
pub fn crashed(label: &str, blame: Blame, death: &Death) -> WireError {
    let count = blame.death_count();
    let message = match death {
        Death::Crash(how) => format!(
            "{label}: the decoder crashed on this file, {count} times in all ({how}); it is probably damaged"
        ),
        Death::Kill(how) => format!(
            "{label}: {count} processes that decoded this file were killed ({how}), perhaps for want of memory; \
             the logs of the daemon and the kernel say more"
        ),
    };
    let is_retryable = matches!(death, Death::Kill(_));
    WireError { code: ErrorCode::DecoderCrashed, is_retryable, message }
}

/// A call on this file does not come back.
pub fn hanging_file_system(label: &str) -> WireError {
    let message = format!("{label}: the file system does not answer");
    WireError { code: ErrorCode::Media, is_retryable: true, message }
}

/// So many calls of this user do not come back that no more are tried.
pub fn silent_file_system(label: &str) -> WireError {
    let message = format!(
        "{label}: not tried, because a file system of this user does not answer; it is tried again when the \
         calls that hang have come back"
    );
    WireError { code: ErrorCode::LimitReached, is_retryable: true, message }
}

/// The deadline passed.
pub fn deadline() -> WireError {
    WireError::new(ErrorCode::Deadline, "the request's timeout passed before its frames were there")
}

/// The client cancelled.
pub fn cancelled() -> WireError {
    WireError::new(ErrorCode::Cancelled, "the request was cancelled")
}

/// The request names something that this connection does not have, or is not allowed.
pub fn invalid(message: impl Into<String>) -> WireError {
    WireError::new(ErrorCode::InvalidRequest, message)
}

/// A limit of the daemon was reached.
pub fn limit(message: impl Into<String>) -> WireError {
    WireError::new(ErrorCode::LimitReached, message)
}

/// A message that this version does not know.
pub fn unknown_kind(kind: u16) -> WireError {
    WireError::new(ErrorCode::Unsupported, format!("this daemon does not know messages of kind {kind}"))
}

/// Our own mistake.
pub fn internal(message: impl Into<String>) -> WireError {
    let message = message.into();
    tracing::error!(message, "internal error");
    WireError::new(ErrorCode::Internal, message)
}
