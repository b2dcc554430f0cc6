//! The engine: a child process that decodes for one user, one thing at a time, in one thread. This file is
//! its loop; the rooms behind it are `run` (one stretch of decoding), `session`, `media` (header and index),
//! `device` (decoding and pixels), `picture_cache`, and what the broker has handed over: `sources`, `arenas`.
//!
//! What does not live here: any decision about clients. Who gets what, and in which order, is the broker's;
//! the engine knows neither users nor paths nor leases.

mod arenas;
mod cage;
mod continuations;
mod device;
mod failure;
mod mailbox;
mod media;
mod page_faults;
mod picture_cache;
mod revisits;
mod run;
mod scans;
mod session;
mod sessions;
mod sources;
#[cfg(test)]
mod tests;
mod timeless;
mod wanted;
mod way;
mod workshop;

use std::any::Any;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use reeld_protocol::SealedMemfd;

use self::cage::CageError;
use self::device::Device;
use self::device::cpu::CpuDevice;
use self::failure::Failure;
use self::mailbox::{Letter, Mailbox, MailboxError};
use self::media::{Scan, Scanned};
use self::run::{Outcome, Progress, RunInProgress};
use self::scans::Scans;
use self::workshop::Workshop;
use crate::ffi::{self, FfmpegError};
use crate::link::{
    ArenaKey, CatalogId, ContentDigest, EngineError, EngineReply, EngineRequest, JobId, Run, WantedId,
};
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::metadata::MediaMetadata;

/// How long a scan may read before others get their turn.
const SCAN_TURN: Duration = Duration::from_millis(20);

/// How often a run looks for messages: seldom enough to cost nothing, often enough to be stopped soon.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Bytes for the sentences of one reply: what the ids of a full run leave of a message body.
const SENTENCES_BYTES_MAX: usize = 48 * 1024;

/// The longest sentence.
const SENTENCE_BYTES_MAX: usize = 240;

/// What an engine is told when it starts.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The most bytes of decoded pictures that are kept; 0 keeps none.
    pub cache_bytes_max: usize,
    /// The most private memory, in MiB.
    pub memory_mib: u64,
    /// The most bytes of decoders that are kept warm beside the one used last; those that runs come back for are.
    pub session_bytes_max: u64,
    /// Lets FFmpeg write its own messages to standard error.
    pub is_verbose: bool,
}

/// Why an engine ends before its broker does.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It would work unconfined.
    #[error(transparent)]
    Cage(#[from] CageError),
    /// The broker cannot be understood or reached.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
}

/// Confines this process and serves the broker at the other end of `socket` until it goes away.
pub fn serve(socket: OwnedFd, settings: Settings) -> Result<(), ServeError> {
    cage::bind_to_broker()?;
    cage::die_first();
    cage::limit_memory(settings.memory_mib << 20)?;
    serve_in_cage(socket, settings)
}

fn serve_in_cage(socket: OwnedFd, settings: Settings) -> Result<(), ServeError> {
    ffi::set_log_verbose(settings.is_verbose);
    cage::lock()?;
    let mut mailbox = Mailbox::new(socket);
    mailbox.send(&EngineReply::Ready { ffmpeg_versions: ffi::library_versions() }, None)?;
    let mut engine = Engine::new(settings);
    while let Some(letter) = mailbox.next()? {
        engine.handle(&mut mailbox, letter)?;
    }
    Ok(())
}

struct Engine<D: Device> {
    workshop: Workshop<D>,
    scans: Scans,
    memory_mib: u64,
}

impl Engine<CpuDevice> {
    fn new(settings: Settings) -> Self {
        let workshop = Workshop::new(CpuDevice::default(), settings);
        Engine { workshop, scans: Scans::default(), memory_mib: settings.memory_mib }
    }
}

impl<D: Device> Engine<D> {
    fn handle(&mut self, mailbox: &mut Mailbox, (request, fd): Letter) -> Result<(), MailboxError> {
        match request {
            EngineRequest::AddSource { source, identity } => {
                self.workshop.sources.add(source, fd, identity);
            }
            EngineRequest::DropSource(source) => {
                self.workshop.forget(source);
                self.workshop.sources.remove(source);
                self.scans.drop_source(source);
            }
            EngineRequest::AddArena { arena, bytes } => self.add_arena(arena, bytes, fd),
            EngineRequest::DropArena(arena) => self.workshop.arenas.remove(arena),
            EngineRequest::Probe { job, source } => {
                let probed = self.with_memory(|engine| engine.probe(source));
                let reply =
                    probed.map(|(media, content)| (EngineReply::Probed { job, media, content }, None));
                send_or_fail(mailbox, job, reply)?;
            }
            EngineRequest::Scan { job, source, stream } => {
                let scanned = self.with_memory(|engine| engine.scan(job, source, stream));
                send_or_fail(mailbox, job, scanned)?;
            }
            EngineRequest::Decode { job, run } => self.decode(mailbox, job, run)?,
            EngineRequest::Cancel(job) => self.scans.cancel(job),
            // The run has ended before this came; its answer has said so.
            EngineRequest::Extend { .. } => {}
        }
        Ok(())
    }

    fn add_arena(&mut self, arena: ArenaKey, bytes: u64, fd: Option<OwnedFd>) {
        if let Some(file) = fd
            && let Err(failure) = self.workshop.arenas.add(arena, file, bytes)
        {
            tracing::error!("arena {}: {failure}", arena.0);
        }
    }

    fn probe(&mut self, source: CatalogId) -> Result<(MediaMetadata, ContentDigest), Failure> {
        self.workshop.sources.check_unchanged(source)?;
        let media = media::probe(self.workshop.sources.input(source)?);
        Ok((media, self.workshop.sources.digest(source)?))
    }

    fn scan(
        &mut self,
        job: JobId,
        source: CatalogId,
        stream: StreamIndex,
    ) -> Result<(EngineReply, Option<OwnedFd>), Failure> {
        self.workshop.sources.check_unchanged(source)?;
        let mut scan = match self.scans.take(source, stream) {
            Some(scan) => scan,
            None => Scan::new(self.workshop.sources.take_input_to_scan(source)?, stream.0 as usize)?,
        };
        match scan.step(Instant::now() + SCAN_TURN)? {
            Scanned::Yielded => {
                self.scans.keep(job, source, stream, scan);
                Ok((EngineReply::ScanYielded { job }, None))
            }
            Scanned::Finished(index) => {
                self.workshop.sources.check_unchanged(source)?;
                let memory = SealedMemfd::new("reeld-index", &index.to_bytes())
                    .map_err(|error| FfmpegError::from_io("hand over the index", &error))?;
                Ok((EngineReply::Scanned { job }, Some(memory.into_fd())))
            }
        }
    }

    fn decode(&mut self, mailbox: &mut Mailbox, job: JobId, run: Run) -> Result<(), MailboxError> {
        let mut again = run.clone();
        let mut outcome = self.decode_once(mailbox, job, run)?;
        // What is decoded ahead is not worth giving up what is there.
        let ahead = again.wanted.extract_if(.., |wanted| wanted.destination.is_cache());
        let ahead: Vec<WantedId> = ahead.map(|wanted| wanted.id).collect();
        let (ahead, short): (Vec<_>, Vec<_>) =
            outcome.take_out_of_memory().into_iter().partition(|id| ahead.contains(id));
        let failure = Failure::OutOfMemory { memory_mib: self.memory_mib };
        outcome.failed.extend(ahead.into_iter().map(|id| (id, failure.clone())));
        if !short.is_empty() {
            // Other files' decoders and pictures make room; what joined meanwhile is asked for again.
            self.workshop.forget_all();
            again.wanted.retain(|wanted| short.contains(&wanted.id));
            let mut second = self.decode_once(mailbox, job, again)?;
            let short = second.take_out_of_memory();
            if !short.is_empty() {
                self.workshop.forget_all();
            }
            outcome.failed.extend(short.into_iter().map(|id| (id, failure.clone())));
            outcome.finished.append(&mut second.finished);
            outcome.failed.append(&mut second.failed);
        }
        let report = self.workshop.report();
        let failed = reports(&outcome.failed);
        mailbox.send(&EngineReply::RunEnded { job, finished: outcome.finished, failed, report }, None)
    }

    fn decode_once(&mut self, mailbox: &mut Mailbox, job: JobId, run: Run) -> Result<Outcome, MailboxError> {
        let ids: Vec<WantedId> = run.wanted.iter().map(|wanted| wanted.id).collect();
        let mut mail = Ok(());
        let source = run.source;
        let decoded = self.guard(|engine| {
            let mut progress = RunInProgress::new(&mut engine.workshop, run)?;
            mail = engine.drive(mailbox, job, &mut progress);
            Ok(progress.end(&mut engine.workshop))
        });
        mail?;
        Ok(decoded.unwrap_or_else(|failure| {
            let failure = self.workshop.sources.check_unchanged(source).err().unwrap_or(failure);
            let failed = ids.into_iter().map(|id| (id, failure.clone())).collect();
            Outcome { finished: Vec::new(), failed }
        }))
    }

    /// Goes on with a run until it ends, taking in what concerns it on the way.
    fn drive(
        &mut self,
        mailbox: &mut Mailbox,
        job: JobId,
        progress: &mut RunInProgress<D>,
    ) -> Result<(), MailboxError> {
        let mut last_poll = Instant::now();
        loop {
            if progress.step(&mut self.workshop) == Progress::Ended {
                return Ok(());
            }
            if last_poll.elapsed() < POLL_INTERVAL {
                continue;
            }
            last_poll = Instant::now();
            for (request, fd) in mailbox.take_if(|request| concerns(request, job))? {
                match request {
                    // Pictures that join the run may go there.
                    EngineRequest::AddArena { arena, bytes } => self.add_arena(arena, bytes, fd),
                    EngineRequest::Extend { wanted, looks, .. } => progress.extend(wanted, looks),
                    EngineRequest::Cancel(_) => return Ok(()),
                    EngineRequest::AddSource { .. }
                    | EngineRequest::DropSource(_)
                    | EngineRequest::DropArena(_)
                    | EngineRequest::Probe { .. }
                    | EngineRequest::Scan { .. }
                    | EngineRequest::Decode { .. } => {}
                }
            }
        }
    }

    /// Where memory runs out, everything that is only kept for speed is given up, and the work is done once
    /// more.
    fn with_memory<T>(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self.guard(&mut work) {
            Err(failure) if failure.is_out_of_memory() => {}
            settled => return settled,
        }
        self.workshop.forget_all();
        self.guard(work).map_err(|failure| {
            if failure.is_out_of_memory() {
                Failure::OutOfMemory { memory_mib: self.memory_mib }
            } else {
                failure
            }
        })
    }

    /// Turns a panic into a failure of this one job. Nothing half-done is kept.
    fn guard<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let caught = catch_unwind(AssertUnwindSafe(|| work(self)));
        caught.unwrap_or_else(|payload| {
            self.workshop.forget_all();
            Err(Failure::Panic(panic_message(payload.as_ref())))
        })
    }
}

fn concerns(request: &EngineRequest, current: JobId) -> bool {
    match request {
        EngineRequest::Extend { job, .. } | EngineRequest::Cancel(job) => *job == current,
        EngineRequest::AddArena { .. } => true,
        EngineRequest::AddSource { .. }
        | EngineRequest::DropSource(_)
        | EngineRequest::DropArena(_)
        | EngineRequest::Probe { .. }
        | EngineRequest::Scan { .. }
        | EngineRequest::Decode { .. } => false,
    }
}

fn send_or_fail(
    mailbox: &mut Mailbox,
    job: JobId,
    reply: Result<(EngineReply, Option<OwnedFd>), Failure>,
) -> Result<(), MailboxError> {
    match reply {
        Ok((reply, fd)) => mailbox.send(&reply, fd),
        Err(failure) => {
            let error = failure.report(SENTENCE_BYTES_MAX);
            mailbox.send(&EngineReply::JobFailed { job, error }, None)
        }
    }
}

/// Sentences are cut so that the reply fits into one message, however many pictures failed.
fn reports(failed: &[(WantedId, Failure)]) -> Vec<(WantedId, EngineError)> {
    let sentence_bytes = (SENTENCES_BYTES_MAX / failed.len().max(1)).min(SENTENCE_BYTES_MAX);
    failed.iter().map(|(id, failure)| (*id, failure.report(sentence_bytes))).collect()
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
