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
    /// Shared memory that one client may hold, in MiB.
    pub client_memory_mib: u64,
}
