//! All that an engine works with, apart from its messages: files, arenas, warm sessions, cached pictures and
//! the device.
//!
//! What does not live here: order. What is done when is decided by the loop in `mod.rs`.

use std::time::Duration;

use super::Settings;
use super::arenas::Arenas;
use super::continuations::Continuations;
use super::device::{Device, Look};
use super::page_faults::PageFaults;
use super::picture_cache::PictureCache;
use super::revisits::Revisits;
use super::sessions::Sessions;
use super::sources::Sources;
use crate::link::{CatalogId, EngineReport};

/// The tools and the material.
pub struct Workshop<D: Device> {
    /// What decodes and converts.
    pub device: D,
    /// The files.
    pub sources: Sources,
    /// Where frames go.
    pub arenas: Arenas,
    /// Decoders that are kept warm.
    pub sessions: Sessions<D>,
    /// Pictures that were decoded before.
    pub cache: PictureCache<D::Picture, Look>,
    /// What was decoded lately.
    pub revisits: Revisits,
    /// How often warm decoders were of use.
    pub continuations: Continuations,
    /// Pictures that decoders put out since the last report.
    pub pictures_decoded: u64,
    /// Samples that decoders did not get since the last report.
    pub samples_skipped: u64,
    /// Wanted pictures that came from the cache since the last report.
    pub cache_hits: u64,
    /// Of these, the ones that had been decoded ahead.
    pub prefetch_hits: u64,
    /// Pictures that were decoded ahead and kept since the last report.
    pub pictures_prefetched: u64,
    /// Time for turning pictures into frames that no report has told yet.
    pub conversion_time: Duration,
    page_faults: PageFaults,
}

impl<D: Device> Workshop<D> {
    /// With nothing in it.
    pub fn new(device: D, settings: Settings) -> Self {
        Workshop {
            device,
            sources: Sources::default(),
            arenas: Arenas::default(),
            sessions: Sessions::new(settings.session_bytes_max),
            cache: PictureCache::new(settings.cache_bytes_max),
            revisits: Revisits::default(),
            continuations: Continuations::default(),
            pictures_decoded: 0,
            samples_skipped: 0,
            cache_hits: 0,
            prefetch_hits: 0,
            pictures_prefetched: 0,
            conversion_time: Duration::ZERO,
            page_faults: PageFaults::default(),
        }
    }

    /// What was done since the last report, and what is held now.
    pub fn report(&mut self) -> EngineReport {
        let conversion_micros = self.conversion_time.as_micros() as u64;
        // What is less than one counts in the next report.
        self.conversion_time -= Duration::from_micros(conversion_micros);
        EngineReport {
            pictures_decoded: std::mem::take(&mut self.pictures_decoded),
            samples_skipped: std::mem::take(&mut self.samples_skipped),
            cache_hits: std::mem::take(&mut self.cache_hits),
            prefetch_hits: std::mem::take(&mut self.prefetch_hits),
            pictures_prefetched: std::mem::take(&mut self.pictures_prefetched),
            conversion_micros,
            page_faults: self.page_faults.take(),
            session_count: self.sessions.count() as u64,
            cache_bytes: self.cache.bytes() as u64,
        }
    }

    /// Forgets everything that was made from a file.
    pub fn forget(&mut self, source: CatalogId) {
        self.sessions.drop_source(source);
        self.cache.drop_source(source);
    }

    /// Forgets everything that was made from any file: after a panic nothing half-done may remain.
    pub fn forget_all(&mut self) {
        self.sessions.clear();
        self.cache.clear();
        self.sources.close_fresh();
    }
}
