//! What the daemon says about itself: the body of a status reply.
//!
//! Counters only grow; gauges are as of the reply. How they are shown is `reelctl`'s matter.

use crate::codec::{Decode, Encode};

/// The most clients, users and engines that one status reply lists each; the totals count all.
///
/// With numbers and texts at their longest this is below a message's limit.
pub const LISTED_MAX: usize = 128;

/// The longest name of a client in a status reply.
pub const NAME_BYTES_MAX: usize = 48;

/// The longest label of a file in a status reply.
pub const LABEL_BYTES_MAX: usize = 96;

/// The daemon's state.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Versions of the FFmpeg libraries that the engines use, as `libavcodec 59.37.100`.
    pub ffmpeg_versions: Vec<String>,
    /// The broker's process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Clients that are connected.
    pub client_count: u64,
    /// Leases that clients hold.
    pub lease_count: u64,
    /// Bytes of these leases.
    pub leased_bytes: u64,
    /// Slots whose request is not yet answered.
    pub filling_count: u64,
    /// Slots that wait for their engine to let go of them.
    pub quarantined_count: u64,
    /// Bytes of all arenas.
    pub arena_bytes: u64,
    /// Files in the catalog.
    pub source_count: u64,
    /// Runs that wait for an engine.
    pub queued_run_count: u64,
    /// Requests that are not yet answered.
    pub request_count: u64,
    /// What happened since the start.
    pub totals: Totals,
    /// The clients, at most [`LISTED_MAX`].
    pub clients: Vec<ClientStatus>,
    /// The engines, at most [`LISTED_MAX`].
    pub engines: Vec<EngineStatus>,
    /// Calls on files that hang because a file system does not answer.
    pub stuck_helper_count: u64,
    /// Turns of the broker's loop since the start that took 10 ms and more.
    pub slow_turn_count: u64,
    /// The longest turn of the broker's loop since the start, in microseconds.
    pub longest_turn_micros: u64,
    /// The users, at most [`LISTED_MAX`].
    pub users: Vec<UserStatus>,
    /// Bytes that all arenas together may have.
    pub memory_bytes_max: u64,
    /// Bytes of arenas that their clients have given up, but an engine still may write to, or others have leases or
    /// tickets for. They count against the limit too.
    pub detached_bytes: u64,
    /// True once the daemon was told to stop: new requests are refused.
    pub is_draining: bool,
    /// Pixels that have to be decoded for the runs that wait, about.
    pub queued_pixels: u64,
    /// Bytes in the picture caches of all engines.
    pub cache_bytes: u64,
    /// Error replies since the start, by code; codes that did not occur are left out.
    pub errors: Vec<ErrorCount>,
    /// Lines of the daemon's log that were dropped since the start because whoever reads the log did not.
    pub log_lines_dropped: u64,
    /// Tickets that were issued, not redeemed yet, and did not expire.
    pub tickets_outstanding: u64,
    /// Frames that clients have hinted at and that are not decoded yet.
    pub hints_waiting: u64,
}

/// How many replies had an error code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ErrorCount {
    /// The code's name, as [`crate::ErrorCode::name`] has it: a later version may send others.
    pub code: String,
    /// How many.
    pub count: u64,
}

/// Counters since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Totals {
    /// Clients that connected.
    pub clients: u64,
    /// Requests for frames that were accepted.
    pub requests: u64,
    /// Requests for frames that ended with an error.
    pub requests_failed: u64,
    /// Frames that were delivered.
    pub frames_delivered: u64,
    /// Pictures that decoders put out.
    pub pictures_decoded: u64,
    /// Samples that no decoder got, since nobody wanted their pictures.
    pub samples_skipped: u64,
    /// Frames that came from a picture cache.
    pub cache_hits: u64,
    /// Files that were scanned.
    pub scans: u64,
    /// Runs that were handed to engines.
    pub runs: u64,
    /// Wanted pictures that joined a run of another request.
    pub joined: u64,
    /// Engines that ended without being told to.
    pub engine_crashes: u64,
    /// Requests that were tried again after an engine's crash.
    pub retries: u64,
    /// Releases of leases that were not held.
    pub stray_releases: u64,
    /// Engines that were started in place of one that had ended without being told to.
    pub engine_restarts: u64,
    /// Results that clients copied out of shared memory.
    pub results_copied_out: u64,
    /// Bytes of these.
    pub bytes_copied_out: u64,
    /// Tickets that were issued.
    pub tickets_issued: u64,
    /// Tickets that were redeemed.
    pub tickets_redeemed: u64,
    /// Tickets that ended without being redeemed.
    pub tickets_expired: u64,
    /// Frames that clients have hinted at and that are decoded ahead if there is time.
    pub hints_accepted: u64,
    /// Frames that clients have hinted at in vain: too many at once, or none that can be had.
    pub hints_dropped: u64,
    /// Pictures that were decoded ahead and kept.
    pub pictures_prefetched: u64,
    /// Of these, those that were asked for while they were kept: they are among `cache_hits`.
    pub prefetch_hits: u64,
    /// Microseconds that engines took to turn pictures into frames, copies of kept frames included.
    pub conversion_micros: u64,
    /// Page faults of engines in runs, codec threads included: how often memory was touched that was not there yet.
    pub page_faults: u64,
}

/// One client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ClientStatus {
    /// Number of the connection.
    pub connection: u64,
    /// Process id as the kernel tells it at the connection; 0 where it is not visible.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Open sources.
    pub source_count: u64,
    /// Leases held.
    pub lease_count: u64,
    /// Bytes of these leases.
    pub leased_bytes: u64,
    /// Bytes of its arenas.
    pub arena_bytes: u64,
    /// Requests in flight.
    pub request_count: u64,
    /// What it calls itself, at most [`NAME_BYTES_MAX`] long; empty where it is of another user than the asker.
    pub name: String,
    /// Seconds since it connected.
    pub connected_seconds: u64,
    /// Requests since it connected.
    pub requests_total: u64,
    /// Requests of these that were answered with an error.
    pub error_count: u64,
    /// Results that it copied out of shared memory.
    pub results_copied_out: u64,
    /// Bytes of these.
    pub bytes_copied_out: u64,
    /// Tickets that it was issued.
    pub tickets_issued: u64,
    /// Tickets that it redeemed.
    pub tickets_redeemed: u64,
}

/// All clients of one user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct UserStatus {
    /// User id.
    pub uid: u32,
    /// Clients that are connected.
    pub client_count: u64,
    /// Requests in flight.
    pub request_count: u64,
    /// Open sources.
    pub source_count: u64,
    /// Bytes of the clients' arenas.
    pub arena_bytes: u64,
    /// Bytes of arenas of clients that are gone, to which an engine still may write, or for which others have leases
    /// or tickets.
    pub detached_bytes: u64,
    /// Bytes that all of these may have together.
    pub memory_bytes_max: u64,
}

/// One engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct EngineStatus {
    /// Process id.
    pub pid: u32,
    /// The user whom it serves.
    pub uid: u32,
    /// True while it works on something.
    pub is_busy: bool,
    /// Decoders that it keeps open.
    pub session_count: u64,
    /// Bytes in its picture cache.
    pub cache_bytes: u64,
    /// What it is doing.
    pub activity: Activity,
    /// Milliseconds for which it has been doing that. A long run is done in turns of about 20 ms.
    pub activity_millis: u64,
    /// The end of the label of the file that it works on; none where it is idle or of another user than the asker.
    pub label: Option<String>,
    /// Turns of runs and scans, and headers, that it has done.
    pub jobs_done: u64,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
}

/// What an engine is doing. Append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum Activity {
    /// It is not ready yet.
    Starting,
    /// Nothing.
    #[default]
    Idle,
    /// It reads a file's header.
    Probing,
    /// It indexes a stream.
    Scanning,
    /// It decodes.
    Decoding,
    /// It has had nothing to do for long and was told to end.
    Leaving,
}

impl Activity {
    /// Its name in logs and reports; never changes.
    pub fn name(self) -> &'static str {
        match self {
            Activity::Starting => "starting",
            Activity::Idle => "idle",
            Activity::Probing => "probing",
            Activity::Scanning => "scanning",
            Activity::Decoding => "decoding",
            Activity::Leaving => "leaving",
        }
    }
}

/// The end of a text that is too long, behind an ellipsis: of a path the end tells most.
pub fn shortened(text: &str, bytes_max: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut begin = text.len() - bytes_max.saturating_sub(ELLIPSIS.len()).min(text.len());
    while !text.is_char_boundary(begin) {
        begin += 1;
    }
    format!("{ELLIPSIS}{}", &text[begin..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Reply};

    #[test]
    fn longest_report_fits_into_a_body_with_a_third_to_spare() {
        let client = ClientStatus {
            connection: u64::MAX,
            pid: u32::MAX,
            uid: u32::MAX,
            source_count: u64::MAX,
            lease_count: u64::MAX,
            leased_bytes: u64::MAX,
            arena_bytes: u64::MAX,
            request_count: u64::MAX,
            name: "n".repeat(NAME_BYTES_MAX),
            connected_seconds: u64::MAX,
            requests_total: u64::MAX,
            error_count: u64::MAX,
            results_copied_out: u64::MAX,
            bytes_copied_out: u64::MAX,
            tickets_issued: u64::MAX,
            tickets_redeemed: u64::MAX,
        };
        let engine = EngineStatus {
            pid: u32::MAX,
            uid: u32::MAX,
            is_busy: true,
            session_count: u64::MAX,
            cache_bytes: u64::MAX,
            activity: Activity::Leaving,
            activity_millis: u64::MAX,
            label: Some("l".repeat(LABEL_BYTES_MAX)),
            jobs_done: u64::MAX,
            uptime_seconds: u64::MAX,
        };
        let errors =
            crate::ErrorCode::ALL.map(|code| ErrorCount { code: code.name().into(), count: u64::MAX });
        let status = Status {
            version: "0.1.0".into(),
            ffmpeg_versions: vec!["libavcodec 59.37.100".into(); 6],
            clients: vec![client; LISTED_MAX],
            engines: vec![engine; LISTED_MAX],
            errors: errors.to_vec(),
            ..Status::default()
        };
        let bytes = Message::encode(&Reply::Status(Box::new(status))).unwrap();
        assert!(bytes.len() <= crate::header::BODY_BYTES_MAX * 2 / 3, "{} bytes", bytes.len());
    }

    #[test]
    fn text_that_is_too_long_keeps_its_end() {
        assert_eq!(shortened("video.mp4", 9), "video.mp4");
        assert_eq!(shortened("/data/video.mp4", 12), "…video.mp4");
        assert_eq!(shortened("äöüß", 6), "…ß");
    }
}
