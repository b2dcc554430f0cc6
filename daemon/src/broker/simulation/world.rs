//! [`World`]: the broker, its clients and its engines, and what must always hold between them.
//!
//! What happens next is decided by the program.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::Parser;
#[cfg(test)]
use reeld_protocol::error::ErrorCode;
use reeld_protocol::ids::{LeaseId, SourceId};
use reeld_protocol::message::{Message, Notice, OpenSource, Request, SeekMode, kind};
use reeld_protocol::{Frame, Header, Hello, SealedMemfd, VERSION_MAJOR, VERSION_MINOR};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::super::engines::EngineKey;
use super::super::job::User;
use super::super::{Broker, EVENTS_MAX, Event, PeerKey};
use super::client::{Expected, SimulatedClient};
use super::engine::{Conclusion, Engines, SimulatedEngine, SimulatedStarter, inode_of};
use super::media::SimulatedFile;
use super::{CLIENTS_MAX, Outcome};
use crate::config::{Command, CommandLine, Settings};
use crate::link::EngineReply;

/// Turns that everything takes at most when all engines do their best, many times over.
const ROUNDS_MAX: usize = 10_000;

/// One thread, which looks at its sockets at every turn.
pub fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().event_interval(1).max_blocking_threads(2).build().expect("a runtime")
}

fn settings(client_memory_mib: u64) -> Settings {
    static DEFAULTS: OnceLock<Settings> = OnceLock::new();
    let mut settings = DEFAULTS.get_or_init(defaults).clone();
    settings.limits.client_memory_mib = client_memory_mib;
    settings.limits.engine_count_max = Some(2);
    settings
}

fn defaults() -> Settings {
    match CommandLine::parse_from(["reeld", "serve"]).command {
        Command::Serve(options) => options.settings(),
        Command::Engine(_) => unreachable!("`serve` was parsed"),
    }
}

/// Everything.
pub struct World {
    /// All files there are.
    pub files: Vec<SimulatedFile>,
    file_by_inode: HashMap<u64, usize>,
    broker: Broker,
    incoming: mpsc::Receiver<Event>,
    /// What helpers have found out and the broker was not told yet.
    results: Vec<Event>,
    /// What helpers are still at.
    helpers_count: usize,
    clients: Vec<Option<SimulatedClient>>,
    engines: Engines,
    /// How far the clock was put forward.
    skew: Duration,
    outcome: Outcome,
}

impl World {
    /// Nobody is there yet.
    pub fn new(client_memory_mib: u64) -> World {
        let (events, incoming) = mpsc::channel(EVENTS_MAX);
        let mut broker = Broker::new(settings(client_memory_mib), Vec::new(), events).expect("a broker");
        let engines: Engines = Rc::new(RefCell::new(Vec::new()));
        broker.engines.start_with(SimulatedStarter(Rc::clone(&engines)));
        let files = SimulatedFile::all();
        World {
            file_by_inode: files.iter().map(|file| (inode_of(file.fd()), file.number)).collect(),
            files,
            broker,
            incoming,
            results: Vec::new(),
            helpers_count: 0,
            clients: (0..CLIENTS_MAX).map(|_| None).collect(),
            engines,
            skew: Duration::ZERO,
            outcome: Outcome::default(),
        }
    }

    /// A client connects and says hello, if there is room for one.
    pub async fn connect(&mut self, uid: u32) {
        let Some(free) = self.clients.iter().position(Option::is_none) else { return };
        let (ours, theirs) = StdUnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket that does not block");
        theirs.set_nonblocking(true).expect("a socket that does not block");
        let stream = UnixStream::from_std(theirs).expect("a socket of the runtime");
        self.broker.handle(Event::Connected(stream));
        let key = self.broker.next_client;
        self.broker.clients.get_mut(&key).expect("a client").user = User { uid, connection: None };
        self.clients[free] = Some(SimulatedClient::new(key, ours));
        let hello = Hello {
            major: VERSION_MAJOR,
            minor_min: 0,
            minor_max: VERSION_MINOR,
            features: 0,
            name: "simulated".into(),
        };
        self.send(free, kind::HELLO, 0, hello.to_bytes(), Vec::new());
        self.settle().await;
    }

    /// A client goes, by closing its socket or by breaking the protocol.
    pub fn disconnect(&mut self, client: usize, is_rude: bool) {
        let Some(gone) = self.clients[client].take() else { return };
        gone.check_contents();
        let key = PeerKey::Client(gone.key);
        let event = if is_rude {
            let header = Header { body_bytes: 0, kind: kind::STATUS, fd_count: 0, flags: 0, request_id: 0 };
            Event::Frame { key, frame: Frame { header, body: Vec::new(), fds: Vec::new() } }
        } else {
            Event::Gone { key, reason: None }
        };
        self.broker.handle(event);
        assert!(!self.broker.clients.contains_key(&gone.key));
    }

    /// Asks for a file to be opened.
    pub fn open(&mut self, client: usize, file: usize, seek_mode: SeekMode, is_memory: bool) {
        let open =
            OpenSource { label: "simulated".into(), stream: None, seek_mode, is_memory, thread_count: 0 };
        let Some(asking) = &mut self.clients[client] else { return };
        let id = asking.expect(Expected::Source(file));
        let request = Request::OpenSource(open);
        let fd = self.files[file].fd();
        self.helpers_count += 1;
        self.send(client, request.kind(), id, request.encode().expect("a request that fits"), vec![fd]);
    }

    /// Sends a request, with words in memory where there are some.
    pub fn ask(&mut self, client: usize, request: &Request, expected: Expected, words: &[[u8; 8]]) {
        let Some(asking) = &mut self.clients[client] else { return };
        let id = asking.expect(expected);
        let memory =
            (!words.is_empty()).then(|| SealedMemfd::new("words", words.as_flattened()).expect("a memfd"));
        let fds = memory.map(SealedMemfd::into_fd).into_iter().collect();
        self.send(client, request.kind(), id, request.encode().expect("a request that fits"), fds);
    }

    /// Sends a notice.
    pub fn tell(&mut self, client: usize, notice: &Notice) {
        self.send(client, notice.kind(), 0, notice.encode().expect("a notice that fits"), Vec::new());
    }

    fn send(
        &mut self,
        client: usize,
        kind: u16,
        request_id: u64,
        body: Vec<u8>,
        fds: Vec<std::os::fd::OwnedFd>,
    ) {
        let Some(sender) = &self.clients[client] else { return };
        let (body_bytes, fd_count) = (body.len() as u32, fds.len() as u8);
        let header = Header { body_bytes, kind, fd_count, flags: 0, request_id };
        let key = PeerKey::Client(sender.key);
        self.broker.handle(Event::Frame { key, frame: Frame { header, body, fds } });
    }

    /// The sources of a client, if it is there and has some: name and file.
    pub fn sources_of(&self, client: usize) -> Option<Vec<(SourceId, usize)>> {
        let client = self.clients[client].as_ref()?;
        (!client.sources.is_empty()).then(|| client.sources.clone())
    }

    /// A client forgets a source.
    pub fn forget_source(&mut self, client: usize, number: usize) -> Option<SourceId> {
        let sources = &mut self.clients[client].as_mut()?.sources;
        (number < sources.len()).then(|| sources.remove(number).0)
    }

    /// A client gives up one of its leases.
    pub fn give_up(&mut self, client: usize, number: usize) -> Option<LeaseId> {
        let client = self.clients[client].as_mut()?;
        let lease = client.leases().nth(number)?;
        client.give_up(lease);
        Some(lease)
    }

    /// Leases that a client does not hold.
    pub fn leases_of_others(&self, client: usize) -> Vec<LeaseId> {
        let others = self.clients.iter().enumerate().filter(|(number, _)| *number != client);
        let held = others.filter_map(|(_, other)| other.as_ref()).flat_map(SimulatedClient::leases);
        let returned = self.clients.iter().flatten().filter_map(|client| client.returned);
        held.chain(returned).collect()
    }

    /// The name of an unanswered request.
    pub fn unanswered(&self, client: usize, number: usize) -> Option<u64> {
        self.clients[client].as_ref()?.unanswered.keys().nth(number).copied()
    }

    /// The last error that a client was answered with.
    #[cfg(test)]
    pub fn last_error(&self, client: usize) -> Option<ErrorCode> {
        self.clients[client].as_ref()?.last_error
    }

    /// A helper's result reaches the broker.
    pub fn deliver_result(&mut self, number: usize) {
        if number < self.results.len() {
            let event = self.results.remove(number);
            self.broker.handle(event);
        }
    }

    /// An engine says that it is ready.
    pub fn engine_is_ready(&mut self, number: usize) {
        let Some(engine) = self.living(number) else { return };
        if !self.engines.borrow()[engine].is_ready {
            self.engines.borrow_mut()[engine].say_ready();
            self.hear(engine);
        }
    }

    /// An engine answers what it is at; the broker has not read it yet.
    pub fn conclude(&mut self, number: usize, conclusion: Conclusion) {
        let Some(engine) = self.living(number) else { return };
        let file_of = |identity: crate::link::FileIdentity| self.file_by_inode[&identity.inode];
        self.engines.borrow_mut()[engine].conclude(conclusion, file_of, &self.files);
    }

    /// The broker reads what an engine has said, perhaps before it ended.
    pub fn hear_engine(&mut self, number: usize) {
        let speaking: Vec<usize> = {
            let engines = self.engines.borrow();
            (0..engines.len()).filter(|&engine| !engines[engine].said.is_empty()).collect()
        };
        if let Some(&engine) = speaking.get(number % speaking.len().max(1)) {
            self.hear(engine);
        }
    }

    fn hear(&mut self, engine: usize) {
        let Some(frame) = self.engines.borrow_mut()[engine].said.pop_front() else { return };
        let key = EngineKey(engine as u64);
        if let Ok(Some(EngineReply::Scanned { job })) = EngineReply::decode(frame.header.kind, &frame.body) {
            let running = self.broker.engines.get_mut(key).and_then(|engine| engine.running.as_ref());
            // A helper is asked to read the index.
            self.helpers_count += usize::from(running.is_some_and(|running| running.id == job));
        }
        self.broker.handle(Event::Frame { key: PeerKey::Engine(key), frame });
    }

    /// An engine's process ends: it crashes, or does as it was told.
    pub fn engine_ends(&mut self, number: usize) {
        if let Some(engine) = self.living(number) {
            self.end(engine);
        }
    }

    fn end(&mut self, engine: usize) {
        self.outcome.crashes += u64::from(self.engines.borrow()[engine].job.is_some());
        self.engines.borrow_mut()[engine].end();
        self.broker.handle(Event::EngineExited(EngineKey(engine as u64)));
    }

    /// An engine misbehaves without ending: it talks nonsense, or closes its socket.
    pub fn engine_fails(&mut self, number: usize, is_talkative: bool) {
        let Some(engine) = self.living(number) else { return };
        if is_talkative {
            self.engines.borrow_mut()[engine].say_nonsense();
            self.hear_engine(engine);
        } else {
            self.engines.borrow_mut()[engine].hang_up();
            let key = PeerKey::Engine(EngineKey(engine as u64));
            self.broker.handle(Event::Gone { key, reason: None });
        }
    }

    /// All engines write garbage where they may.
    pub fn scribble(&self) {
        self.engines.borrow().iter().for_each(SimulatedEngine::scribble);
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) {
        self.skew += time;
        // A clock that cannot be put back so far has not run for so long.
        if let Some(earlier) = self.broker.started.checked_sub(time) {
            self.broker.started = earlier;
        }
        self.broker.expire();
        self.broker.tend_at(Instant::now() + self.skew);
    }

    fn living(&self, number: usize) -> Option<usize> {
        let engines = self.engines.borrow();
        let living: Vec<usize> = (0..engines.len()).filter(|&engine| engines[engine].is_alive()).collect();
        living.get(number % living.len().max(1)).copied()
    }

    /// Lets the sockets and the helpers do what is theirs, until nothing moves.
    pub async fn settle(&mut self) {
        loop {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            let mut is_quiet = true;
            while let Ok(event) = self.incoming.try_recv() {
                is_quiet = false;
                self.sort(event);
            }
            while self.helpers_count > 0 {
                let event = self.incoming.recv().await.expect("the broker holds a sender");
                self.sort(event);
            }
            // What they read makes room for more.
            for engine in self.engines.borrow_mut().iter_mut().filter(|engine| engine.is_alive()) {
                is_quiet &= !engine.read();
            }
            for client in self.clients.iter_mut().flatten() {
                is_quiet &= !client.read();
            }
            if is_quiet {
                return;
            }
        }
    }

    fn sort(&mut self, event: Event) {
        match event {
            Event::SourceChecked { .. } | Event::IndexRead { .. } => {
                self.helpers_count -= 1;
                self.results.push(event);
            }
            other => {
                self.broker.handle(other);
            }
        }
    }

    /// What holds at any time: nobody writes where a client reads, or where somebody else writes; memory is within
    /// its quota; each side knows of the same requests.
    pub fn check(&mut self) {
        let mut used: Vec<(u64, u64, u64)> =
            self.clients.iter().flatten().flat_map(SimulatedClient::slots).collect();
        for engine in self.engines.borrow().iter().filter(|engine| engine.is_alive()) {
            used.extend(engine.writes());
        }
        used.sort_unstable();
        for pair in used.windows(2) {
            let [(inode, offset, bytes), (next_inode, next_offset, _)] = [pair[0], pair[1]];
            let is_apart = inode != next_inode || offset + bytes <= next_offset;
            assert!(is_apart, "memory {inode}: {offset} + {bytes} and {next_offset} are used twice");
        }
        for client in self.clients.iter().flatten() {
            let known = &self.broker.clients[&client.key];
            let usage = known.memory.usage();
            assert!(usage.arena_bytes <= known.memory.quota_bytes());
            assert_eq!(usage.lease_count, client.leases().count() as u64);
            assert_eq!(known.request_count, client.unanswered.len() as u64);
        }
    }

    /// Helpers and engines do their best until every request is answered.
    pub async fn answer_everything(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.settle().await;
            self.check();
            let unanswered: usize = self.clients.iter().flatten().map(|client| client.unanswered.len()).sum();
            let is_at_work = |engine: &SimulatedEngine| {
                engine.is_doomed() || (engine.is_alive() && (engine.job.is_some() || !engine.is_ready))
            };
            let is_busy = self.broker.queue.len() > 0 || self.engines.borrow().iter().any(is_at_work);
            let is_heard = self.engines.borrow().iter().all(|engine| engine.said.is_empty());
            if unanswered == 0 && !is_busy && is_heard && self.results.is_empty() {
                return;
            }
            while !self.results.is_empty() {
                self.deliver_result(0);
            }
            let engine_count = self.engines.borrow().len();
            for engine in 0..engine_count {
                self.do_its_best(engine);
            }
        }
        panic!("requests are never answered");
    }

    fn do_its_best(&mut self, engine: usize) {
        if self.engines.borrow()[engine].is_doomed() {
            self.end(engine);
        }
        if self.engines.borrow()[engine].is_alive() {
            if !self.engines.borrow()[engine].is_ready {
                self.engines.borrow_mut()[engine].say_ready();
            }
            let file_of = |identity: crate::link::FileIdentity| self.file_by_inode[&identity.inode];
            self.engines.borrow_mut()[engine].conclude(Conclusion::Done, file_of, &self.files);
        }
        while !self.engines.borrow()[engine].said.is_empty() {
            self.hear(engine);
        }
    }

    /// Everything comes to its end, and nothing is left.
    pub async fn finish(mut self) -> Outcome {
        self.answer_everything().await;
        for client in self.clients.iter().flatten() {
            self.outcome.frames_replies += client.frames_replies;
            self.outcome.errors += client.errors;
        }
        for client in 0..CLIENTS_MAX {
            self.disconnect(client, false);
        }
        self.answer_everything().await;
        for engine in self.engines.borrow().iter().filter(|engine| engine.is_alive() && !engine.is_doomed()) {
            assert_eq!(engine.known_count().1, 0, "an engine keeps the arenas of clients that are gone");
        }
        // Idle files and engines go; so do engines that were told to be silent, and what they were at is done again.
        for _ in 0..2 {
            self.pass(Duration::from_secs(3600));
            self.answer_everything().await;
        }
        self.pass(Duration::ZERO);
        self.check_nothing_is_left();
        self.outcome
    }

    fn check_nothing_is_left(&mut self) {
        let broker = &mut self.broker;
        let left = [
            ("clients", broker.clients.len()),
            ("opens", broker.opens.len()),
            ("requests", broker.requests.len()),
            ("pictures", broker.requests.wanted_count()),
            ("jobs", broker.queue.len()),
            ("costs of clients", broker.queue.client_count()),
            ("arenas", broker.arenas.len()),
            ("relieved clients", broker.relieved.len()),
            ("files", broker.catalog.len()),
            ("engines", broker.engines.iter_mut().count()),
        ];
        let left: Vec<_> = left.into_iter().filter(|(_, count)| *count > 0).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
