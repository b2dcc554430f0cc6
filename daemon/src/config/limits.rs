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
    /// Private memory that one engine may use, in MiB.
    pub engine_memory_mib: u64,
    /// Shared memory that one client may hold, in MiB.
    pub client_memory_mib: u64,
    /// Shared memory that all clients of one user may hold, in MiB; none: as `memory_mib`.
    pub user_memory_mib: Option<u64>,
    /// Shared memory that all clients may hold, in MiB; none: half of the memory that the node or the control
    /// group has.
    pub memory_mib: Option<u64>,
    /// Requests in flight of one client.
    pub client_requests_max: usize,
    /// Requests in flight of all clients of one user.
    pub user_requests_max: usize,
    /// Open sources of one client.
    pub client_sources_max: usize,
    /// Open sources of all clients of one user.
    pub user_sources_max: usize,
    /// Clients that are connected at the same time.
    pub client_count_max: usize,
    /// Clients of one user that are connected at the same time.
    pub user_client_count_max: usize,
}
