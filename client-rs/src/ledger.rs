//! [`Ledger`]: how much of its quota a connection holds, and what follows from that.
//!
//! Plain counting: no message is sent and no memory touched here.

use std::sync::atomic::{AtomicU64, Ordering};

/// What this side holds of one connection's quota. All threads count in it; each number is exact, but two
/// read one after the other may belong to different moments.
#[derive(Debug)]
pub(crate) struct Ledger {
    quota_bytes: u64,
    lease_count: AtomicU64,
    live_bytes: AtomicU64,
    returned_bytes: AtomicU64,
    deferred_count: AtomicU64,
    deferred_bytes: AtomicU64,
    results_copied: AtomicU64,
    frames_copied: AtomicU64,
    bytes_copied: AtomicU64,
    /// Of these, what the daemon was not told yet.
    unreported_results: AtomicU64,
    unreported_bytes: AtomicU64,
}

/// Numbers about one connection of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStatistics {
    /// The most bytes that this process may hold of shared memory. 0 while there is no connection.
    pub quota_bytes: u64,
    /// Results in shared memory that this process holds.
    pub leases_held: u64,
    /// Bytes of these results.
    pub leased_bytes: u64,
    /// Results that were dropped, but may still be read by forked children.
    pub leases_deferred: u64,
    /// Bytes of these.
    pub deferred_bytes: u64,
    /// Results that were copied into private memory: because more than half of the quota was held, or by the
    /// caller, who said so.
    pub results_copied_out: u64,
    /// Frames in those that this library copied.
    pub frames_copied_out: u64,
    /// Bytes of these.
    pub bytes_copied_out: u64,
}

impl Ledger {
    /// A result is copied when more than a half of the quota would be held with it: the other half stays
    /// for results under way, so that a program that keeps all its frames never waits on itself.
    const COPIED_ABOVE_SHARE: u64 = 2;
    /// Returned leases are reported at once when they are more than an eighth of the quota: less waits for
    /// the next message, which costs nothing.
    const REPORTED_ABOVE_SHARE: u64 = 8;

    pub(crate) fn new(quota_bytes: u64) -> Ledger {
        Ledger {
            quota_bytes,
            lease_count: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            returned_bytes: AtomicU64::new(0),
            deferred_count: AtomicU64::new(0),
            deferred_bytes: AtomicU64::new(0),
            results_copied: AtomicU64::new(0),
            frames_copied: AtomicU64::new(0),
            bytes_copied: AtomicU64::new(0),
            unreported_results: AtomicU64::new(0),
            unreported_bytes: AtomicU64::new(0),
        }
    }

    /// A lease arrived. True if its result shall be copied out and the lease given back at once.
    pub(crate) fn arrive(&self, bytes: u64) -> bool {
        self.lease_count.fetch_add(1, Ordering::AcqRel);
        let live = self.live_bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        let held = live.saturating_add(self.deferred_bytes.load(Ordering::Acquire));
        held > self.quota_bytes / Self::COPIED_ABOVE_SHARE
    }

    /// A lease was dropped. True if the daemon shall hear of the returned ones at once.
    pub(crate) fn give_back(&self, bytes: u64) -> bool {
        self.lease_count.fetch_sub(1, Ordering::AcqRel);
        self.live_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let returned = self.returned_bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        returned > self.quota_bytes / Self::REPORTED_ABOVE_SHARE
    }

    /// A returned lease is on its way to the daemon, or was deferred.
    pub(crate) fn take_returned(&self, bytes: u64) {
        self.returned_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub(crate) fn defer(&self, bytes: u64) {
        self.deferred_count.fetch_add(1, Ordering::AcqRel);
        self.deferred_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn take_deferred(&self, bytes: u64) {
        self.deferred_count.fetch_sub(1, Ordering::AcqRel);
        self.deferred_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub(crate) fn copied(&self, frame_count: u64, bytes: u64) {
        self.results_copied.fetch_add(1, Ordering::AcqRel);
        self.frames_copied.fetch_add(frame_count, Ordering::AcqRel);
        self.bytes_copied.fetch_add(bytes, Ordering::AcqRel);
        self.unreported_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.unreported_results.fetch_add(1, Ordering::AcqRel);
    }

    /// Copies since the last time, results and bytes, for the daemon.
    pub(crate) fn take_unreported(&self) -> Option<(u64, u64)> {
        match self.unreported_results.swap(0, Ordering::AcqRel) {
            0 => None,
            results => Some((results, self.unreported_bytes.swap(0, Ordering::AcqRel))),
        }
    }

    pub(crate) fn quota_bytes(&self) -> u64 {
        self.quota_bytes
    }

    pub(crate) fn statistics(&self) -> ClientStatistics {
        ClientStatistics {
            quota_bytes: self.quota_bytes,
            leases_held: self.lease_count.load(Ordering::Acquire),
            leased_bytes: self.live_bytes.load(Ordering::Acquire),
            leases_deferred: self.deferred_count.load(Ordering::Acquire),
            deferred_bytes: self.deferred_bytes.load(Ordering::Acquire),
            results_copied_out: self.results_copied.load(Ordering::Acquire),
            frames_copied_out: self.frames_copied.load(Ordering::Acquire),
            bytes_copied_out: self.bytes_copied.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_above_half_of_the_quota_is_copied() {
        let ledger = Ledger::new(100);
        assert!(!ledger.arrive(30));
        assert!(!ledger.arrive(20));
        assert!(ledger.arrive(1));
    }

    #[test]
    fn deferred_leases_count_as_held() {
        let ledger = Ledger::new(100);
        ledger.arrive(40);
        ledger.give_back(40);
        ledger.take_returned(40);
        ledger.defer(40);
        assert!(ledger.arrive(20));
        ledger.take_deferred(40);
        assert!(!ledger.arrive(20));
    }

    #[test]
    fn returned_leases_are_reported_above_an_eighth() {
        let ledger = Ledger::new(80);
        for _ in 0..3 {
            ledger.arrive(5);
        }
        assert!(!ledger.give_back(5));
        assert!(!ledger.give_back(5));
        assert!(ledger.give_back(5));
        assert_eq!(ledger.statistics().leases_held, 0);
    }
}
