//! [`Limits`]: what clients, users and engines may use up.
//!
//! Where the numbers come from is the matter of the room; what happens at a limit, of the broker.

/// What may be used up. All of it may change while the daemon runs: what was granted before stays granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Decoding processes, all users together; none: one for each processor that may be used.
    pub engine_count_max: Option<usize>,
    /// Decoded pictures that each engine keeps, in MiB.
    pub engine_cache_mib: u64,
    /// Decoders that each engine keeps open, in MiB.
    pub engine_decoders_mib: u64,
    /// Private memory that one engine may use, in MiB.
    pub engine_memory_mib: u64,
    /// Shared memory that one client may hold, in MiB.
    pub client_memory_mib: u64,
    /// Shared memory that all clients of one user may hold, in MiB; none: as [`Limits::memory_mib`].
    pub user_memory_mib: Option<u64>,
    /// Shared memory that all clients together may hold, in MiB; none: half of what the node or the control
    /// group has.
    pub memory_mib: Option<u64>,
    /// Requests of one client that are under way at once.
    pub client_requests_max: usize,
    /// Requests of all clients of one user that are under way at once.
    pub user_requests_max: usize,
    /// Files that one client may have open.
    pub client_sources_max: usize,
    /// Files that all clients of one user may have open.
    pub user_sources_max: usize,
    /// Connections, all users together.
    pub client_count_max: usize,
    /// Connections of one user.
    pub user_client_count_max: usize,
}
