//! Scans that take more than one turn, until they are asked for again.
//!
//! What does not live here: reading; see `media::scan`.

use reeld_protocol::ids::StreamIndex;

use super::media::Scan;
use crate::link::{CatalogId, JobId};

/// Scans that wait at a time. The broker has a few in flight at most; a forgotten one begins anew.
const SCANS_MAX: usize = 8;

/// Scans in progress, the least recently continued first.
#[derive(Default)]
pub struct Scans {
    waiting: Vec<(JobId, CatalogId, StreamIndex, Scan)>,
}

impl Scans {
    /// Takes the scan of a stream, whichever job began it.
    pub fn take(&mut self, source: CatalogId, stream: StreamIndex) -> Option<Scan> {
        let position = self.waiting.iter().position(|waiting| (waiting.1, waiting.2) == (source, stream))?;
        Some(self.waiting.remove(position).3)
    }

    /// Keeps a scan until it is asked for again.
    pub fn keep(&mut self, job: JobId, source: CatalogId, stream: StreamIndex, scan: Scan) {
        if self.waiting.len() >= SCANS_MAX {
            self.waiting.remove(0);
        }
        self.waiting.push((job, source, stream, scan));
    }

    /// Ends the scan of a job.
    pub fn cancel(&mut self, job: JobId) {
        self.waiting.retain(|waiting| waiting.0 != job);
    }

    /// Ends the scans of a source.
    pub fn drop_source(&mut self, source: CatalogId) {
        self.waiting.retain(|waiting| waiting.1 != source);
    }
}
