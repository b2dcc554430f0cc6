//! What the daemon says about itself: the body of a status reply.
//!
//! Counters only grow; gauges are as of the reply. How they are shown is `reelctl`'s matter.

use crate::codec::{Decode, Encode};

/// The most clients and engines that one status reply lists; the totals count all.
pub const LISTED_MAX: usize = 256;

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
}
