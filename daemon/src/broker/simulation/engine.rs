//! [`SimulatedEngine`]: reads what the broker asks of an engine, checks that it makes sense, and answers when and as
//! the program says. It writes into the same memory as a real one, garbage included, as long as it has not answered.
//!
//! What is done when is the matter of `world`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use reeld_protocol::frame::{FrameReader, Received};
use reeld_protocol::message::Message;
use reeld_protocol::{Frame, Header, SealedMemfd, Transform};
use rustix::net::RecvFlags;

use super::super::plan::compare_targets;
use super::super::spawner::Process;
use super::media::{SimulatedFile, paint};
use crate::link::{
    ArenaKey, CatalogId, Destination, EngineError, EngineReply, EngineReport, EngineRequest, FileIdentity,
    JobId, LOOKS_PER_MESSAGE_MAX, Looks, WANTED_PER_MESSAGE_MAX, WantedId, WantedPicture,
};

/// What becomes of a process.
#[derive(Debug, Default)]
pub struct Fate {
    is_killed: AtomicBool,
    has_ended: AtomicBool,
    /// As the kernel tells it.
    status: AtomicI32,
}

/// The process of an engine, as the broker sees it.
#[derive(Debug)]
pub struct SimulatedProcess {
    number: u32,
    fate: Arc<Fate>,
}

impl Process for SimulatedProcess {
    fn id(&self) -> u32 {
        self.number
    }

    fn pidfd(&self) -> io::Result<OwnedFd> {
        // Never readable: the world says itself when a process has ended.
        Ok(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?)
    }

    fn kill(&mut self) {
        self.fate.is_killed.store(true, Ordering::Relaxed);
    }

    fn has_ended(&mut self) -> bool {
        self.fate.has_ended.load(Ordering::Relaxed)
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        assert!(self.has_ended(), "the broker's loop waits for a process that lives");
        Ok(ExitStatus::from_raw(self.fate.status.load(Ordering::Relaxed)))
    }
}

/// What an engine is at.
#[derive(Debug)]
pub enum Task {
    /// A header.
    Probe,
    /// An index.
    Scan,
    /// Pictures that are not answered for.
    Decode(Vec<WantedPicture>),
}

/// A job in progress.
#[derive(Debug)]
pub struct SimulatedJob {
    /// Its name.
    pub id: JobId,
    /// Its file.
    pub source: CatalogId,
    /// What.
    pub task: Task,
}

/// How a job is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// All is done.
    Done,
    /// Half of it is done, the rest is for the next turn.
    Yielded,
    /// Nothing was done at all.
    Stalled,
    /// All of it fails.
    Failed,
    /// Half of it is done, the rest fails.
    HalfFailed,
    /// The file is not what it was.
    SourceChanged,
    /// What was not asked for is answered too.
    Overdone,
}

/// One engine.
#[derive(Debug)]
pub struct SimulatedEngine {
    socket: Option<UnixStream>,
    reader: FrameReader,
    fate: Arc<Fate>,
    /// True once there is a process.
    is_started: bool,
    /// True once it said so.
    pub is_ready: bool,
    /// Told to end.
    pub is_leaving: bool,
    /// What it is at.
    pub job: Option<SimulatedJob>,
    /// Answers that are on their way.
    pub said: VecDeque<Frame>,
    sources: HashMap<CatalogId, FileIdentity>,
    arenas: HashMap<ArenaKey, (OwnedFd, u64)>,
    /// What is done to the pictures that it was asked for.
    looks: HashMap<WantedId, Vec<Transform>>,
}

impl SimulatedEngine {
    /// One that was ordered, with its end of the socket.
    pub fn ordered(socket: UnixStream) -> SimulatedEngine {
        SimulatedEngine {
            socket: Some(socket),
            reader: FrameReader::new(),
            fate: Arc::default(),
            is_started: false,
            is_ready: false,
            is_leaving: false,
            job: None,
            said: VecDeque::new(),
            sources: HashMap::new(),
            arenas: HashMap::new(),
            looks: HashMap::new(),
        }
    }

    /// There is a process from now on.
    pub fn start(&mut self, number: u32) -> SimulatedProcess {
        self.is_started = true;
        SimulatedProcess { number, fate: Arc::clone(&self.fate) }
    }

    /// True while it was ordered and there is no process.
    pub fn is_awaited(&self) -> bool {
        !self.is_started && !self.fate.has_ended.load(Ordering::Relaxed)
    }

    /// True until its process has ended, if there is one.
    pub fn is_alive(&self) -> bool {
        self.is_started && !self.fate.has_ended.load(Ordering::Relaxed)
    }

    /// True where the process is to end, by the broker's wish.
    pub fn is_doomed(&self) -> bool {
        self.is_alive() && (self.fate.is_killed.load(Ordering::Relaxed) || self.is_leaving)
    }

    /// The process ends, with this status, or never was one.
    pub fn end(&mut self, status: i32) {
        self.fate.status.store(status, Ordering::Relaxed);
        self.fate.has_ended.store(true, Ordering::Relaxed);
        self.socket = None;
        self.job = None;
    }

    /// Files and arenas that it was told of and not told to forget.
    pub fn known_count(&self) -> (usize, usize) {
        (self.sources.len(), self.arenas.len())
    }

    /// Reads everything that the broker has said. True if it said something.
    pub fn read(&mut self) -> bool {
        let mut has_heard = false;
        loop {
            while let Some(frame) = self.reader.next_frame().expect("the broker keeps to the framing") {
                self.obey(frame);
            }
            let Some(socket) = &self.socket else { return has_heard };
            match self.reader.receive(socket, RecvFlags::DONTWAIT) {
                Ok(Received::Bytes) => has_heard = true,
                Ok(Received::Closed) => {
                    self.is_leaving = true;
                    return has_heard;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return has_heard,
                Err(error) => panic!("an engine's socket: {error}"),
            }
        }
    }

    fn obey(&mut self, mut frame: Frame) {
        let request = EngineRequest::decode(frame.header.kind, &frame.body).expect("a body that can be read");
        match request.expect("a request to an engine") {
            EngineRequest::AddSource { source, identity } => {
                assert_eq!(frame.fds.len(), 1, "a source is one file");
                assert!(self.sources.insert(source, identity).is_none(), "{source:?} is known already");
            }
            EngineRequest::DropSource(source) => {
                assert!(self.sources.remove(&source).is_some(), "{source:?} is not known");
                let is_used = self.job.as_ref().is_some_and(|job| job.source == source);
                assert!(!is_used, "{source:?} is dropped under a job");
            }
            EngineRequest::AddArena { arena, bytes } => {
                let fd = frame.fds.pop().expect("an arena is one file");
                assert!(self.arenas.insert(arena, (fd, bytes)).is_none(), "{arena:?} is known already");
            }
            EngineRequest::DropArena(arena) => {
                assert!(self.arenas.remove(&arena).is_some(), "{arena:?} is not known");
                let is_used = self.pictures().any(|picture| picture.destination.arena == arena);
                assert!(!is_used, "{arena:?} is dropped under a job");
            }
            EngineRequest::Probe { job, source } => self.begin(job, source, Task::Probe),
            EngineRequest::Scan { job, source, .. } => self.begin(job, source, Task::Scan),
            EngineRequest::Decode { job, run } => {
                self.check(&run.wanted, &run.looks);
                self.begin(job, run.source, Task::Decode(run.wanted));
            }
            EngineRequest::Extend { job, wanted, looks } => {
                self.check(&wanted, &looks);
                // One that has answered meanwhile ignores it.
                if let Some(SimulatedJob { id, task: Task::Decode(pictures), .. }) = &mut self.job
                    && *id == job
                {
                    pictures.extend(wanted);
                }
            }
            // It may heed this or not.
            EngineRequest::Cancel(_) => {}
        }
    }

    fn begin(&mut self, id: JobId, source: CatalogId, task: Task) {
        assert!(self.is_ready, "work before it is ready");
        assert!(self.sources.contains_key(&source), "{source:?} was not introduced");
        assert!(self.job.is_none(), "two jobs at once");
        self.job = Some(SimulatedJob { id, source, task });
    }

    fn check(&mut self, wanted: &[WantedPicture], looks: &Looks) {
        assert!(looks.len() <= LOOKS_PER_MESSAGE_MAX, "{} looks", looks.len());
        assert!(!wanted.is_empty() && wanted.len() <= WANTED_PER_MESSAGE_MAX, "{} pictures", wanted.len());
        assert!(wanted.is_sorted_by(|one, other| compare_targets(one.target, other.target).is_le()));
        // What is decoded ahead is written nowhere.
        for picture in wanted.iter().filter(|picture| !picture.destination.is_cache()) {
            let Destination { arena, look, .. } = picture.destination;
            self.looks.insert(picture.id, looks[usize::from(look.0)].clone());
            let (_, bytes) =
                self.arenas.get(&arena).unwrap_or_else(|| panic!("{arena:?} was not introduced"));
            for (offset, length) in stretches(&picture.destination) {
                assert!(offset + length <= *bytes, "{picture:?} reaches out of its arena of {bytes} bytes");
            }
        }
    }

    /// Pictures that it may be writing now.
    pub fn pictures(&self) -> impl Iterator<Item = &WantedPicture> {
        self.wanted().iter().filter(|picture| !picture.destination.is_cache())
    }

    /// Pictures that it was asked for and has not answered for: those that go into its cache alone, too.
    pub fn wanted(&self) -> &[WantedPicture] {
        match &self.job {
            Some(SimulatedJob { task: Task::Decode(pictures), .. }) => pictures,
            Some(SimulatedJob { task: Task::Probe | Task::Scan, .. }) | None => &[],
        }
    }

    /// The memory that it may be writing to now: inode, offset, length.
    pub fn writes(&self) -> Vec<(u64, u64, u64)> {
        let stretch = |picture: &WantedPicture| {
            let (fd, _) = &self.arenas[&picture.destination.arena];
            let inode = inode_of(fd);
            stretches(&picture.destination).map(|(offset, bytes)| (inode, offset, bytes))
        };
        self.pictures().flat_map(stretch).collect()
    }

    /// Writes garbage where it may write.
    pub fn scribble(&self) {
        for picture in self.pictures() {
            let (fd, _) = &self.arenas[&picture.destination.arena];
            for (offset, bytes) in stretches(&picture.destination) {
                write(fd, offset, &vec![0xEE; bytes as usize]);
            }
        }
    }

    fn draw(&self, picture: &WantedPicture, file: &SimulatedFile) {
        let stamp = file.stamp_of(picture.target);
        let (fd, _) = &self.arenas[&picture.destination.arena];
        let [(pixels, bytes), (pts, _), (duration, _)] = stretches(&picture.destination);
        let shade = paint(stamp, &self.looks[&picture.id]);
        write(fd, pixels, &vec![shade; bytes as usize]);
        write(fd, pts, &stamp.to_le_bytes());
        write(fd, duration, &1f64.to_le_bytes());
    }

    /// Says that it is ready.
    pub fn say_ready(&mut self) {
        self.is_ready = true;
        self.say(&EngineReply::Ready { ffmpeg_versions: vec!["simulated 1".into()] }, Vec::new());
    }

    /// Says what an engine never says.
    pub fn say_nonsense(&mut self) {
        let header = Header { body_bytes: 1, kind: 7, fd_count: 0, flags: 0, request_id: 0 };
        self.said.push_back(Frame { header, body: vec![1], fds: Vec::new() });
    }

    /// Answers what it is at. From here on it writes nothing for that.
    pub fn conclude(
        &mut self,
        conclusion: Conclusion,
        file_of: impl Fn(FileIdentity) -> usize,
        files: &[SimulatedFile],
    ) {
        let Some(SimulatedJob { id: job, source, task }) = &self.job else { return };
        let (job, file) = (*job, &files[file_of(self.sources[source])]);
        let (reply, fds) = match task {
            Task::Probe | Task::Scan if is_failure(conclusion) => {
                (EngineReply::JobFailed { job, error: error_of(conclusion) }, Vec::new())
            }
            Task::Probe => {
                (EngineReply::Probed { job, media: file.media(), content: file.content() }, Vec::new())
            }
            Task::Scan if conclusion != Conclusion::Done => (EngineReply::ScanYielded { job }, Vec::new()),
            Task::Scan => {
                let index = SealedMemfd::new("index", &file.index().to_bytes()).expect("a memfd");
                (EngineReply::Scanned { job }, vec![index.into_fd()])
            }
            Task::Decode(pictures) => {
                let done_count = match conclusion {
                    Conclusion::Done | Conclusion::Overdone => pictures.len(),
                    Conclusion::Yielded | Conclusion::HalfFailed => pictures.len().div_ceil(2),
                    Conclusion::Stalled | Conclusion::Failed | Conclusion::SourceChanged => 0,
                };
                let (done, left) = pictures.split_at(done_count);
                let written = done.iter().filter(|picture| !picture.destination.is_cache());
                written.for_each(|picture| self.draw(picture, file));
                let mut finished: Vec<WantedId> = done.iter().map(|picture| picture.id).collect();
                if conclusion == Conclusion::Overdone {
                    finished.extend(finished.clone());
                    finished.push(WantedId(u64::MAX));
                }
                let failures = left.iter().map(|picture| (picture.id, error_of(conclusion)));
                let failed = if is_failure(conclusion) { failures.collect() } else { Vec::new() };
                let report = EngineReport { pictures_decoded: done_count as u64, ..EngineReport::default() };
                (EngineReply::RunEnded { job, finished, failed, report }, Vec::new())
            }
        };
        self.job = None;
        self.say(&reply, fds);
    }

    fn say(&mut self, reply: &EngineReply, fds: Vec<OwnedFd>) {
        let body = reply.encode().expect("a reply that fits");
        let (body_bytes, fd_count) = (body.len() as u32, fds.len() as u8);
        let header = Header { body_bytes, kind: reply.kind(), fd_count, flags: 0, request_id: 0 };
        self.said.push_back(Frame { header, body, fds });
    }

    /// Closes its socket without ending. False if it is closed already.
    pub fn hang_up(&mut self) -> bool {
        self.socket.take().is_some()
    }
}

fn is_failure(conclusion: Conclusion) -> bool {
    matches!(conclusion, Conclusion::Failed | Conclusion::HalfFailed | Conclusion::SourceChanged)
}

fn error_of(conclusion: Conclusion) -> EngineError {
    match conclusion {
        Conclusion::SourceChanged => EngineError::SourceChanged,
        Conclusion::HalfFailed => EngineError::Internal("as the program says".into()),
        Conclusion::Failed
        | Conclusion::Done
        | Conclusion::Yielded
        | Conclusion::Stalled
        | Conclusion::Overdone => EngineError::Media("as the program says".into()),
    }
}

/// Where a picture lies: its pixels, its time, its duration; offset and length each.
fn stretches(destination: &Destination) -> [(u64, u64); 3] {
    let Destination { pixels_offset, pts_offset, duration_offset, height, width, dtype, .. } = *destination;
    let bytes = u64::from(height) * u64::from(width) * 3 * dtype.bytes();
    [(pixels_offset, bytes), (pts_offset, 8), (duration_offset, 8)]
}

/// Which memory a descriptor means, whoever holds it.
pub fn inode_of(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).expect("a memfd").st_ino
}

fn write(fd: &OwnedFd, offset: u64, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(fd, bytes, offset), Ok(bytes.len()));
}
