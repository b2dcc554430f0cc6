//! The way of an `OpenSource`: the descriptor is checked, the file is found in or added to the catalog, an
//! engine reads its header and, in exact mode, scans it; everyone who waits for the same is answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::SealedMemfd;
use reeld_protocol::error::{ErrorCode, WireError};
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::message::{OpenSource, Reply, SeekMode, SourceOpened};
use reeld_protocol::metadata::{EffectiveMetadata, MediaMetadata, StreamMetadata, VideoHeader};
use tokio::sync::Semaphore;

use super::catalog::Knowledge;
use super::client::{OpenedSource, SOURCES_MAX};
use super::index_store::{IndexKey, IndexStore};
use super::job::{Job, Task, User};
use super::plan::Timeline;
use super::queue::Waiter;
use super::source_file::{self, SourceFile};
use super::{Broker, Event, HELPERS_PER_USER_MAX, reply};
use crate::link::index::{Index, IndexError};
use crate::link::{CatalogId, ContentDigest, EngineError};

/// The longest label that is kept: as long as a path can be.
const LABEL_CHARS_MAX: usize = 4096;

/// A disk that has not answered by then is slower than a scan.
const LOAD_WITHIN: Duration = Duration::from_secs(2);

/// An `OpenSource` that is not answered yet.
#[derive(Debug)]
pub struct PendingOpen {
    client: u64,
    request_id: u64,
    options: OpenSource,
    /// None until the descriptor was checked.
    source: Option<CatalogId>,
}

impl Broker {
    pub(super) fn open_source(
        &mut self,
        client: u64,
        request_id: u64,
        mut options: OpenSource,
        mut fds: Vec<OwnedFd>,
    ) {
        let Some(opener) = self.clients.get(&client) else { return };
        let user = opener.user;
        let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
            return self.fail(
                client,
                request_id,
                reply::invalid("exactly one file must come with OpenSource"),
            );
        };
        if opener.sources.len() >= SOURCES_MAX {
            let reason = format!("{SOURCES_MAX} sources are open; close some");
            return self.fail(client, request_id, reply::limit(reason));
        }
        self.next_open += 1;
        let open = self.next_open;
        options.label = printable(&options.label);
        let (is_memory, label) = (options.is_memory, options.label.clone());
        self.opens.insert(open, PendingOpen { client, request_id, options, source: None });
        let turns = Arc::clone(self.helper_turns(user));
        let events = self.events.clone();
        tokio::spawn(async move {
            let _turn = turns.acquire_owned().await;
            let check = tokio::task::spawn_blocking(move || source_file::check(fd, is_memory, &label));
            let checked = check.await.unwrap_or_else(|error| Err(reply::internal(error.to_string())));
            let _ = events.send(Event::SourceChecked { open, checked }).await;
        });
    }

    fn helper_turns(&mut self, user: User) -> &Arc<Semaphore> {
        let fresh = || Arc::new(Semaphore::new(HELPERS_PER_USER_MAX));
        self.helpers.entry(user.uid).or_insert_with(fresh)
    }

    pub(super) fn source_checked(&mut self, open: u64, checked: Result<SourceFile, WireError>) {
        let Some(pending) = self.opens.get_mut(&open) else { return };
        let file = match checked {
            Ok(file) => file,
            Err(error) => return self.fail_open(open, error),
        };
        let Some(client) = self.clients.get(&pending.client) else { return };
        let (label, is_memory) = (&pending.options.label, pending.options.is_memory);
        let source =
            self.catalog.acquire(client.user, file.identity, file.fd, label, is_memory, Instant::now());
        pending.source = Some(source);
        self.advance_open(open);
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
            return self.push_scan(source, stream, waiter);
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            let load = tokio::task::spawn_blocking(move || store.load(&key));
            let index = match tokio::time::timeout(LOAD_WITHIN, load).await {
                Ok(Ok(index)) => index,
                Ok(Err(_)) | Err(_) => None,
            };
            let _ = events.send(Event::IndexLoaded { source, stream, waiter, index }).await;
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

    pub(super) fn index_loaded(
        &mut self,
        source: CatalogId,
        stream: StreamIndex,
        waiter: Waiter,
        index: Option<Index>,
    ) {
        match index {
            Some(index) => self.index_read(source, stream, Ok(index)),
            None => self.push_scan(source, stream, waiter),
        }
    }

    fn push_scan(&mut self, source: CatalogId, stream: StreamIndex, waiter: Waiter) {
        self.totals.scans += 1;
        self.push_catalog_job(source, Task::Scan { stream, waiter });
    }

    fn push_catalog_job(&mut self, source: CatalogId, task: Task) {
        let Some(entry) = self.catalog.get(source) else { return };
        self.queue.push(Job { user: entry.user, source, pinned: None, failure_count: 0, task });
    }

    fn finish_open(
        &mut self,
        open: u64,
        media: &MediaMetadata,
        header: &VideoHeader,
        stream: StreamIndex,
        timeline: Timeline,
    ) {
        let Some(PendingOpen { client, request_id, options, source: Some(catalog) }) =
            self.opens.remove(&open)
        else {
            return;
        };
        let Some(client) = self.clients.get_mut(&client) else { return };
        let (content, effective) = match &timeline {
            Timeline::Exact { content, .. } => (Some(*content), EffectiveMetadata::exact(header, content)),
            Timeline::Approximate { effective, .. } => (None, *effective),
        };
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

    /// An engine has made an index. Reading and storing it may take milliseconds, so a helper does it.
    pub(super) fn scanned(&mut self, source: CatalogId, stream: StreamIndex, mut fds: Vec<OwnedFd>) {
        let Some(fd) = fds.pop() else {
            return self.catalog_job_failed(source, &EngineError::Internal("an index did not come".into()));
        };
        let events = self.events.clone();
        let stored = self.stored_index(source, stream);
        tokio::task::spawn_blocking(move || {
            let (index, bytes) = match read_index(fd) {
                Ok((index, bytes)) => (Ok(index), bytes),
                Err(error) => (Err(error), Vec::new()),
            };
            let is_whole = index.is_ok();
            let _ = events.blocking_send(Event::IndexRead { source, stream, index });
            if let Some((store, key)) = stored.filter(|_| is_whole) {
                store.save(&key, &bytes);
            }
        });
    }

    pub(super) fn index_read(
        &mut self,
        source: CatalogId,
        stream: StreamIndex,
        index: Result<Index, IndexError>,
    ) {
        match index {
            Ok(index) => {
                if let Some(entry) = self.catalog.get_mut(source) {
                    entry.indexes.insert(stream, Knowledge::Present(Arc::new(index)));
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

    /// Two engines crashed over the file's header or index.
    pub(super) fn catalog_job_crashed(&mut self, source: CatalogId) {
        let label = self.catalog.get(source).map_or_else(String::new, |entry| entry.label.clone());
        self.fail_opens_of(source, &reply::crashed(&label));
    }

    fn fail_opens_of(&mut self, source: CatalogId, error: &WireError) {
        if let Some(entry) = self.catalog.get_mut(source) {
            entry.indexes.retain(|_, known| matches!(known, Knowledge::Present(_)));
            if matches!(entry.media, Knowledge::Pending) {
                entry.media = Knowledge::Unknown;
            }
        }
        self.catalog.unshare(source);
        for open in self.opens_of(source) {
            self.fail_open(open, error.clone());
        }
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

    fn fail_open(&mut self, open: u64, error: WireError) {
        let Some(pending) = self.opens.remove(&open) else { return };
        if let Some(source) = pending.source {
            self.catalog.release(source, Instant::now());
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
            let pending = self.opens.remove(&open);
            if let Some(source) = pending.and_then(|pending| pending.source) {
                self.catalog.release(source, Instant::now());
            }
        }
    }
}

/// A label for logs and messages: no control characters, and not too long.
fn printable(label: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{FFFD}' } else { c };
    label.chars().take(LABEL_CHARS_MAX).map(printable).collect()
}

fn read_index(fd: OwnedFd) -> Result<(Index, Vec<u8>), IndexError> {
    let memory = SealedMemfd::from_peer(fd).map_err(|_| IndexError::NotAnIndex)?;
    let bytes = memory.read(0, memory.bytes()).map_err(|_| IndexError::NotAnIndex)?;
    Ok((Index::from_bytes(&bytes)?, bytes))
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
