//! The way of an `OpenSource`: the descriptor is checked, the file is found in or added to the catalog, an
//! engine reads its header and, in exact mode, scans it; everyone who waits for the same is answered.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use reeld_protocol::SealedMemfd;
use reeld_protocol::error::{ErrorCode, WireError};
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::message::{OpenSource, Reply, SeekMode, SourceOpened};
use reeld_protocol::metadata::{EffectiveMetadata, MediaMetadata, StreamMetadata, VideoHeader};

use super::blame::{Blame, Death};
use super::catalog::Knowledge;
use super::client::{OpenedSource, cleaned};
use super::helpers::{Done, Line, Purpose};
use super::index_store::{IndexKey, IndexStore};
use super::job::{Job, Task};
use super::mappings::Mapping;
use super::plan::Timeline;
use super::queue::Waiter;
use super::source_file::{self, SourceFile};
use super::{Broker, clock, reply};
use crate::link::index::{Index, IndexError};
use crate::link::{CatalogId, ContentDigest, EngineError};

/// The longest label that is kept: as long as a path can be.
const LABEL_CHARS_MAX: usize = 4096;

/// An `OpenSource` that is not answered yet.
#[derive(Debug)]
pub struct PendingOpen {
    client: u64,
    request_id: u64,
    options: OpenSource,
    /// None until the descriptor was checked.
    source: Option<CatalogId>,
    /// Until the open has come to its end; counted on its user's account.
    mapping: Option<Mapping>,
}

impl PendingOpen {
    /// Who waits for it.
    pub fn client(&self) -> u64 {
        self.client
    }

    /// Frames of the mapping that came with it.
    pub fn mapped_frame_count(&self) -> u64 {
        self.mapping.as_ref().map_or(0, Mapping::frame_count)
    }

    /// The file, once it was checked.
    pub fn source(&self) -> Option<CatalogId> {
        self.source
    }
}

impl Broker {
    pub(super) fn open_source(
        &mut self,
        client: u64,
        request_id: u64,
        mut options: OpenSource,
        fds: &mut Vec<OwnedFd>,
    ) {
        let Some(opener) = self.clients.get(&client) else { return };
        let line = Line::User(opener.user.uid);
        let is_mapped = options.seek_mode == SeekMode::Mapped;
        if fds.len() != 1 + usize::from(is_mapped) {
            let reason = if is_mapped {
                "exactly one file and one mapping must come with OpenSource in mapped mode"
            } else {
                "exactly one file must come with OpenSource"
            };
            return self.fail(client, request_id, reply::invalid(reason));
        }
        if self.helpers.is_silent(line) {
            return self.fail(client, request_id, reply::silent_file_system(&printable(&options.label)));
        }
        if let Err(error) = self.count_source(client) {
            return self.fail(client, request_id, error);
        }
        let mapping = if is_mapped { fds.pop() } else { None };
        let Some(fd) = fds.pop() else { return };
        self.next_open += 1;
        let open = self.next_open;
        options.label = printable(&options.label);
        let (is_memory, label) = (options.is_memory, options.label.clone());
        self.opens.insert(open, PendingOpen { client, request_id, options, source: None, mapping: None });
        self.helpers.run(line, Purpose::Open(open), move || {
            Done::SourceChecked(source_file::check(fd, mapping, is_memory, &label))
        });
    }

    /// One more source of this client, if it and its user may have one more.
    fn count_source(&mut self, client: u64) -> Result<(), WireError> {
        let limits = &self.settings.limits;
        let Some(client) = self.clients.get_mut(&client) else { return Ok(()) };
        if client.sources.len() + client.opening_count >= limits.client_sources_max {
            let count = limits.client_sources_max;
            let reason = format!("this client has {count} sources open (client_sources_max); close some");
            return Err(reply::limit(reason));
        }
        if self.quotas.open_source(client.user).is_err() {
            let count = limits.user_sources_max;
            let reason = format!(
                "the clients of this user have {count} sources open (user_sources_max); close some, or open \
                 each file once in fewer processes"
            );
            return Err(reply::limit(reason));
        }
        client.opening_count += 1;
        Ok(())
    }

    /// An open has come to nothing.
    fn discount_open(&mut self, client: u64) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.opening_count = client.opening_count.saturating_sub(1);
            self.quotas.close_sources(client.user, 1);
        }
    }

    pub(super) fn source_checked(
        &mut self,
        line: Line,
        purpose: Purpose,
        checked: Result<SourceFile, WireError>,
    ) {
        let mut file = match checked {
            Ok(file) => file,
            Err(error) => return self.nothing_came_of(purpose, || error),
        };
        let open = match purpose {
            Purpose::Open(open) => open,
            // They were told that it takes too long.
            Purpose::Locate(_) | Purpose::Load { .. } | Purpose::Chore => {
                return self.helpers.discard(line, file);
            }
        };
        let opener = self.opens.get(&open).and_then(|pending| self.clients.get(&pending.client));
        let Some(user) = opener.map(|client| client.user) else {
            // The client is gone.
            return self.helpers.discard(line, file);
        };
        if let Some(mapping) = &file.mapping
            && let Err(error) = self.count_mapping(user, mapping)
        {
            self.helpers.discard(line, file);
            return self.fail_open(open, error);
        }
        let Some(pending) = self.opens.get_mut(&open) else { return };
        pending.mapping = file.mapping.take();
        let (label, is_memory) = (&pending.options.label, pending.options.is_memory);
        let (source, surplus) =
            self.catalog.acquire(user, file.identity, file.fd, label, is_memory, clock::now());
        pending.source = Some(source);
        let is_first =
            self.catalog.get(source).is_some_and(|entry| matches!(entry.media, Knowledge::Unknown));
        tracing::debug!(
            client = pending.client,
            request_id = pending.request_id,
            source = source.0,
            label = pending.options.label,
            is_first,
            "source opened"
        );
        self.advance_open(open);
        // Behind the answer: to wake a helper takes longer than to give one.
        if let Some(surplus) = surplus {
            self.helpers.discard(line, surplus);
        }
    }

    /// Takes an open as far as what is known of its file allows, and asks for what is missing.
    fn advance_open(&mut self, open: u64) {
        let Some(PendingOpen { client, source: Some(source), options, .. }) = self.opens.get(&open) else {
            return;
        };
        let (client, source, options) = (*client, *source, options.clone());
        let waiter = Waiter { client, priority: 0, deadline_millis: None };
        let Some(entry) = self.catalog.get_mut(source) else { return };
        let media = match &entry.media {
            Knowledge::Present(media) => Arc::clone(media),
            Knowledge::Pending => return,
            Knowledge::Unknown => {
                entry.media = Knowledge::Pending;
                return self.push_catalog_job(source, Task::Probe { waiter });
            }
        };
        let (stream, header) = match choose_stream(&media, options.stream) {
            Ok((stream, header)) => (stream.clone(), header.clone()),
            Err(error) => return self.fail_open(open, error),
        };
        let number = stream.stream_index;
        let timeline = match options.seek_mode {
            SeekMode::Mapped => {
                let mapping = self.opens.get_mut(&open).and_then(|pending| pending.mapping.take());
                let Some(mapping) = mapping else { return };
                let effective = EffectiveMetadata::approximate(&stream, &header, &media);
                Timeline::mapped(Arc::new(mapping.into_index(stream.time_base)), effective)
            }
            SeekMode::Approximate => {
                let effective = EffectiveMetadata::approximate(&stream, &header, &media);
                Timeline::Approximate { effective, time_base: stream.time_base }
            }
            SeekMode::Exact => match entry.indexes.entry(number).or_insert(Knowledge::Unknown) {
                Knowledge::Present(index) => Timeline::exact(Arc::clone(index)),
                Knowledge::Pending => return,
                unknown @ Knowledge::Unknown => {
                    *unknown = Knowledge::Pending;
                    return self.find_index(source, number, waiter);
                }
            },
        };
        self.finish_open(open, &media, &header, number, timeline);
    }

    /// Asks the disk for an index first, then an engine.
    fn find_index(&mut self, source: CatalogId, stream: StreamIndex, waiter: Waiter) {
        let Some((store, key)) = self.stored_index(source, stream) else {
            return self.scan(source, stream, waiter);
        };
        self.helpers.run(key.line(), Purpose::Load { source, stream, waiter }, move || {
            store.load(&key).map_or(Done::Nothing, |index| Done::IndexRead {
                source,
                stream,
                index: Ok(index),
            })
        });
    }

    /// Where the index of a stream is kept between two daemons, if it is.
    fn stored_index(&self, source: CatalogId, stream: StreamIndex) -> Option<(Arc<IndexStore>, IndexKey)> {
        let store = self.index_store.as_ref()?;
        let entry = self.catalog.get(source).filter(|entry| !entry.is_memory())?;
        let demuxer = self.ffmpeg_versions.join(" ");
        let key = IndexKey::new(entry.user, &entry.identity, entry.content.as_ref()?, stream, &demuxer)?;
        Some((Arc::clone(store), key))
    }

    /// The disk has no index, or does not answer.
    pub(super) fn scan(&mut self, source: CatalogId, stream: StreamIndex, waiter: Waiter) {
        if let Some(user) = self.catalog.get(source).map(|entry| entry.user) {
            self.totals.scans += 1;
            let (task, blame) = (Task::Scan { stream, waiter }, Blame::default());
            self.push_catalog_job_again(Job { user, source, pinned: None, failure_count: 0, blame, task });
        }
    }

    fn push_catalog_job(&mut self, source: CatalogId, task: Task) {
        let Some(entry) = self.catalog.get(source) else { return };
        let (user, blame) = (entry.user, Blame::default());
        self.queue.push(Job { user, source, pinned: None, failure_count: 0, blame, task });
    }

    fn finish_open(
        &mut self,
        open: u64,
        media: &MediaMetadata,
        header: &VideoHeader,
        stream: StreamIndex,
        timeline: Timeline,
    ) {
        let Some(PendingOpen { client, request_id, options, source: Some(catalog), mapping: _ }) =
            self.opens.remove(&open)
        else {
            return;
        };
        let Some(client) = self.clients.get_mut(&client) else { return };
        let (content, effective) = match &timeline {
            Timeline::Exact { content, .. } | Timeline::Mapped { content, .. } => {
                (Some(*content), EffectiveMetadata::exact(header, content))
            }
            Timeline::Approximate { effective, .. } => (None, *effective),
        };
        client.opening_count = client.opening_count.saturating_sub(1);
        let source = client.next_source();
        let thread_count = options.thread_count;
        let (height, width) = (header.height, header.width);
        client
            .sources
            .insert(source, OpenedSource { catalog, stream, timeline, height, width, thread_count });
        let opened = SourceOpened { source, stream, media: media.clone(), content, effective };
        client.reply(request_id, &Reply::SourceOpened(Box::new(opened)));
    }

    /// An engine has read a header.
    pub(super) fn probed(&mut self, source: CatalogId, media: MediaMetadata, content: ContentDigest) {
        if let Some(entry) = self.catalog.get_mut(source) {
            entry.content = Some(content);
            entry.media = Knowledge::Present(Arc::new(media));
        }
        self.advance_opens_of(source);
    }

    /// An engine has made an index. Reading it may take milliseconds, so a helper does it; in the user's line,
    /// because an engine that was taken over may send anything.
    pub(super) fn scanned(
        &mut self,
        source: CatalogId,
        stream: StreamIndex,
        fds: &mut Vec<OwnedFd>,
        is_lost: bool,
    ) {
        if is_lost {
            self.shed_files();
            let reason = reply::lost_descriptors().message;
            return self.catalog_job_failed(source, &EngineError::LimitReached(reason));
        }
        let (Some(fd), Some(entry)) = (fds.pop(), self.catalog.get(source)) else {
            return self.catalog_job_failed(source, &EngineError::Internal("an index did not come".into()));
        };
        self.helpers.run(Line::User(entry.user.uid), Purpose::Chore, move || {
            let index = catch_unwind(AssertUnwindSafe(|| read_index(fd)));
            let index = index.unwrap_or(Err(IndexError::NotAnIndex));
            Done::IndexRead { source, stream, index }
        });
    }

    /// Stores an index that was just made.
    fn keep_index(&mut self, source: CatalogId, stream: StreamIndex, index: &Arc<Index>) {
        if let Some((store, key)) = self.stored_index(source, stream) {
            let index = Arc::clone(index);
            self.helpers.run(key.line(), Purpose::Chore, move || {
                store.save(&key, &index.to_bytes());
                Done::Nothing
            });
        }
    }

    pub(super) fn index_read(
        &mut self,
        source: CatalogId,
        stream: StreamIndex,
        index: Result<Index, IndexError>,
        is_new: bool,
    ) {
        match index {
            Ok(index) => {
                let index = Arc::new(index);
                if is_new {
                    self.keep_index(source, stream, &index);
                }
                if let Some(entry) = self.catalog.get_mut(source) {
                    let (label, frames) = (&entry.label, index.entries.len());
                    tracing::debug!(source = source.0, stream = stream.0, label, frames, "scan done");
                    entry.indexes.insert(stream, Knowledge::Present(index));
                }
                self.advance_opens_of(source);
            }
            Err(error) => self.catalog_job_failed(source, &EngineError::Internal(error.to_string())),
        }
    }

    /// A probe or a scan has failed: so has everyone who waits for the file. Whoever comes next tries anew.
    pub(super) fn catalog_job_failed(&mut self, source: CatalogId, error: &EngineError) {
        let label = self.catalog.get(source).map_or_else(String::new, |entry| entry.label.clone());
        self.fail_opens_of(source, &reply::from_engine(error, &label));
    }

    /// Engines died over the file's header or index, and it is enough.
    pub(super) fn catalog_job_crashed(&mut self, source: CatalogId, blame: Blame, death: &Death) {
        let label = self.catalog.get(source).map_or_else(String::new, |entry| entry.label.clone());
        self.fail_opens_of(source, &reply::crashed(&label, blame, death));
    }

    /// Probes and scans that a client waited for go on for whoever else waits for the same, or not at all.
    pub(super) fn find_heirs(&mut self, client: u64) {
        let orphans = self.queue.take_of(client, |job| !matches!(job.task, Task::Decode(_)));
        for job in orphans {
            self.push_catalog_job_again(job);
        }
    }

    /// Queues a probe or a scan that was begun or tried before, for those who still wait for it.
    pub(super) fn push_catalog_job_again(&mut self, mut job: Job) {
        let waits = |pending: &&PendingOpen| pending.source == Some(job.source);
        let heir = self.opens.values().filter(waits).map(|pending| pending.client).min();
        match (heir, &mut job.task) {
            (Some(heir), Task::Probe { waiter } | Task::Scan { waiter, .. }) => {
                waiter.client = heir;
                self.queue.push(job);
            }
            (Some(_), Task::Decode(_)) => {}
            (None, _) => {
                // Whoever comes next tries anew.
                if let Some(entry) = self.catalog.get_mut(job.source) {
                    entry.forget_pending();
                }
            }
        }
    }

    fn fail_opens_of(&mut self, source: CatalogId, error: &WireError) {
        if let Some(entry) = self.catalog.get_mut(source) {
            entry.forget_pending();
        }
        self.catalog.unshare(source);
        for open in self.opens_of(source) {
            self.fail_open(open, error.clone());
        }
    }

    /// What messages call the file of an open.
    pub(super) fn label_of(&self, open: u64) -> String {
        self.opens.get(&open).map_or_else(String::new, |pending| pending.options.label.clone())
    }

    fn opens_of(&self, source: CatalogId) -> Vec<u64> {
        let waiting = self.opens.iter().filter(|(_, pending)| pending.source == Some(source));
        waiting.map(|(&open, _)| open).collect()
    }

    fn advance_opens_of(&mut self, source: CatalogId) {
        for open in self.opens_of(source) {
            self.advance_open(open);
        }
    }

    pub(super) fn fail_open(&mut self, open: u64, error: WireError) {
        let Some(pending) = self.opens.remove(&open) else { return };
        if let Some(source) = pending.source {
            self.catalog.release(source, clock::now());
        }
        self.discount_open(pending.client);
        if let Some(mapping) = pending.mapping {
            if let Some(client) = self.clients.get(&pending.client) {
                self.quotas.unmap_frames(client.user, mapping.frame_count());
            }
            self.helpers.discard(Line::House, mapping);
        }
        self.fail(pending.client, pending.request_id, error);
    }

    /// The client is gone: nobody waits for its opens. What engines do for them is of use to others.
    pub(super) fn forget_opens(&mut self, client: u64) {
        let opens: Vec<u64> = self
            .opens
            .iter()
            .filter(|(_, pending)| pending.client == client)
            .map(|(&open, _)| open)
            .collect();
        for open in opens {
            let Some(pending) = self.opens.remove(&open) else { continue };
            if let Some(source) = pending.source {
                self.catalog.release(source, clock::now());
            }
            if let Some(mapping) = pending.mapping {
                self.helpers.discard(Line::House, mapping);
            }
        }
    }
}

/// A label for logs and messages: no control characters, and not too long.
fn printable(label: &str) -> String {
    cleaned(&label.chars().take(LABEL_CHARS_MAX).collect::<String>())
}

fn read_index(fd: OwnedFd) -> Result<Index, IndexError> {
    let memory = SealedMemfd::from_peer(fd).map_err(|_| IndexError::NotAnIndex)?;
    let bytes = memory.read(0, memory.bytes()).map_err(|_| IndexError::NotAnIndex)?;
    Index::from_bytes(&bytes)
}

/// The wanted video stream, or the one that FFmpeg prefers.
fn choose_stream(
    media: &MediaMetadata,
    wanted: Option<StreamIndex>,
) -> Result<(&StreamMetadata, &VideoHeader), WireError> {
    let Some(number) = wanted.or(media.best_video_stream) else {
        let reason = "The best video stream is unknown and there is no specified stream: the file has no video \
                      stream that can be decoded.";
        return Err(reply::invalid(reason));
    };
    let Some(stream) = media.streams.get(number.0 as usize) else {
        let reason = format!(
            "The stream index {number} is not a valid stream: the file has {} streams.",
            media.streams.len()
        );
        return Err(reply::invalid(reason));
    };
    let Some(header) = &stream.video else {
        return Err(reply::invalid(format!("The stream at index {number} is not a video stream.")));
    };
    if header.width == 0 || header.height == 0 {
        let reason = format!("the header does not tell the size of the pictures of stream {number}");
        return Err(WireError::new(ErrorCode::Media, reason));
    }
    Ok((stream, header))
}
