//! File descriptors: as many as the administrator allows, and what is done where they run out.
//!
//! Who holds them is known to the catalog, the clients and the engines.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Broker;

/// Raises the limit of open files to what the administrator allows. Engines inherit it.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let current = getrlimit(Resource::Nofile).current;
    tracing::debug!(open_files_max = current, "limit of open files");
}

/// How many files the daemon may have open.
pub fn count_max() -> usize {
    let current = getrlimit(Resource::Nofile).current;
    current.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX)
}

/// True where a call failed because this process, or the system, may not open more files.
pub fn are_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl Broker {
    /// Closes files that nobody has open and that are only kept to be found again. `witness` is dropped once they
    /// are closed, which may take its time on a network file system.
    pub(super) fn shed_files_and(&mut self, witness: impl Send + Sync + 'static) {
        let evicted = self.catalog.evict_idle();
        tracing::warn!(closed = evicted.len(), "no more files can be opened; raise the limit of open files");
        self.close_files(evicted, witness);
    }

    /// Closes files that are only kept to be found again.
    pub(super) fn shed_files(&mut self) {
        self.shed_files_and(());
    }
}
