//! The one place where the rooms' errors become numbers and sentences on the wire.
//!
//! What the client's library makes of the numbers is its own matter.

use reeld_protocol::error::{ErrorCode, WireError};

use super::blame::{Blame, Death};
use super::leases::Reservation;
use super::plan::PlanError;
use super::quotas::{Account, Barrier, QuotaLimits};
use crate::link::EngineError;

/// A request that cannot be planned.
pub fn from_plan(error: &PlanError) -> WireError {
    let code = match error {
        PlanError::IndexTooLarge { .. } | PlanError::IndexTooSmall { .. } => ErrorCode::IndexOutOfRange,
        PlanError::Time { .. } => ErrorCode::TimeOutOfRange,
        PlanError::Range { .. } | PlanError::TooManyFrames { .. } => ErrorCode::InvalidRequest,
        PlanError::NoFrameRate => ErrorCode::Media,
        PlanError::NoIndex => ErrorCode::Unsupported,
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
        EngineError::LimitReached(reason) => {
            WireError::new(ErrorCode::LimitReached, format!("{label}: {reason}"))
        }
        EngineError::Internal(reason) => {
            tracing::error!(label, reason, "an engine failed");
            WireError::new(ErrorCode::Internal, format!("{label}: reeld made a mistake: {reason}"))
        }
    }
}

/// A reservation that failed.
pub fn from_reservation(reservation: &Reservation, bytes: u64, quota_bytes: u64) -> WireError {
    let message = match reservation {
        Reservation::TooLarge => format!(
            "a result of {:.1} MiB is over this client's quota of {:.1} MiB of shared memory; ask for fewer \
             frames at a time, or raise client_memory_mib",
            mib(bytes),
            mib(quota_bytes)
        ),
        Reservation::NoSlots { leased_bytes } => format!(
            "no room in one piece for a result of {:.1} MiB: this client still holds frames of {:.1} MiB out of its \
             quota of {:.1} MiB (client_memory_mib); drop or copy them",
            mib(bytes),
            mib(*leased_bytes),
            mib(quota_bytes)
        ),
        Reservation::Slot(_)
        | Reservation::NeedsArena { .. }
        | Reservation::Lent { .. }
        | Reservation::Wait => {
            return internal("a reservation was taken for an error");
        }
    };
    let is_retryable = !matches!(reservation, Reservation::TooLarge);
    WireError { code: ErrorCode::NoSlots, is_retryable, message }
}

/// A result that is larger than any client may have, beside the client's own quota.
pub fn too_large(bytes: u64, largest_bytes: u64, barrier: Barrier) -> WireError {
    let (name, why) = match barrier {
        Barrier::UserMemory => ("user_memory_mib", "the quota of all clients of this user"),
        Barrier::Memory => ("memory_mib", "what one user may have of the memory of all clients"),
        Barrier::Lent
        | Barrier::UserClients
        | Barrier::Clients
        | Barrier::UserSources
        | Barrier::UserMappedFrames => {
            return internal("a count was taken for memory");
        }
    };
    let message = format!(
        "a result of {:.1} MiB is over {why}, {:.1} MiB; ask for fewer frames at a time, or raise {name}",
        mib(bytes),
        mib(largest_bytes)
    );
    WireError::new(ErrorCode::NoSlots, message)
}

/// A result for which the user's clients, or all clients, leave no room.
pub fn no_room(
    bytes: u64,
    barrier: Barrier,
    user: Account,
    total: Account,
    limits: QuotaLimits,
) -> WireError {
    let own_bytes = user.arena_bytes + user.detached_bytes;
    let message = match barrier {
        Barrier::UserMemory => format!(
            "no room for a result of {:.1} MiB: all clients of this user have {:.1} MiB of shared memory out of \
             {:.1} MiB (user_memory_mib); drop or copy frames, or raise user_memory_mib",
            mib(bytes),
            mib(own_bytes),
            mib(limits.user_memory_bytes)
        ),
        Barrier::Memory => format!(
            "no room for a result of {:.1} MiB: all clients have {:.1} MiB of shared memory out of {:.1} MiB \
             (memory_mib), of which this user has {:.1} MiB, and the rest is kept for users who have less; drop \
             or copy frames, or raise memory_mib",
            mib(bytes),
            mib(total.arena_bytes + total.detached_bytes),
            mib(limits.memory_bytes),
            mib(own_bytes)
        ),
        Barrier::Lent => format!(
            "no room for a result of {:.1} MiB beside the frames that this client holds and those that it has handed \
             on, which others still hold; drop or copy frames here or there, or raise client_memory_mib",
            mib(bytes)
        ),
        Barrier::UserClients | Barrier::Clients | Barrier::UserSources | Barrier::UserMappedFrames => {
            return internal("a count was taken for memory");
        }
    };
    WireError { code: ErrorCode::NoSlots, is_retryable: true, message }
}

/// The daemon may not open more files.
pub fn no_descriptors(error: &std::io::Error) -> WireError {
    let message = format!(
        "the daemon may not open more files ({error}); close some sources, or raise its limit of open files \
         (LimitNOFILE in its unit, or ulimit -n)"
    );
    WireError { code: ErrorCode::LimitReached, is_retryable: true, message }
}

/// A file that came with a message was lost, because the daemon may not open more.
pub fn lost_descriptors() -> WireError {
    no_descriptors(&std::io::Error::from_raw_os_error(libc::EMFILE))
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

/// The daemon is ending.
pub fn shutting_down() -> WireError {
    WireError {
        code: ErrorCode::ShuttingDown,
        is_retryable: true,
        message: "the daemon is stopping; connect again and repeat the request".into(),
    }
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

/// The ticket is of no use. The same for all that may be the reason.
pub fn frames_lost() -> WireError {
    let message = "these frames are lost: their ticket was redeemed already, or expired, because the process that \
                   handed them over and its parent have ended";
    WireError::new(ErrorCode::FramesLost, message)
}

/// A message that this version does not know.
pub fn unknown_kind(kind: u16) -> WireError {
    WireError::new(ErrorCode::Unsupported, format!("this daemon does not know messages of kind {kind}"))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Our own mistake.
pub fn internal(message: impl Into<String>) -> WireError {
    let message = message.into();
    tracing::error!(message, "internal error");
    WireError::new(ErrorCode::Internal, message)
}
