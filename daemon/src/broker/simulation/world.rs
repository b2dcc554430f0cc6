//! [`World`]: the broker, its clients and its engines, and what must always hold between them.
//!
//! What happens next is decided by the program.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::OnceLock;
use std::sync::mpsc as channel;
use std::time::{Duration, Instant};

use clap::Parser;
#[cfg(test)]
use reeld_protocol::error::ErrorCode;
use reeld_protocol::ids::{LeaseId, SourceId};
use reeld_protocol::message::{Message, Notice, OpenSource, Request, SeekMode, Ticket, kind};
use reeld_protocol::socket::PeerIdentity;
use reeld_protocol::{Frame, Header, Hello, SealedMemfd, VERSION_MAJOR, VERSION_MINOR};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::super::death::Way;
use super::super::engines::EngineKey;
use super::super::events::EVENTS_MAX;
use super::super::helpers::{Done, Line};
use super::super::spawner::{Order, Process, Spawner};
use super::super::{Broker, Event, PeerKey, clock};
use super::client::{Expected, Haunted, HeldTicket, Redeemed, SimulatedClient};
use super::engine::{Conclusion, SimulatedEngine, inode_of};
use super::media::SimulatedFile;
use super::{CLIENTS_MAX, Outcome};
use crate::config::{self, Command, CommandLine, Settings};

/// Turns that everything takes at most when all engines do their best, many times over.
const ROUNDS_MAX: usize = 10_000;

/// One thread, which looks at its sockets at every turn.
pub fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().event_interval(1).max_blocking_threads(2).build().expect("a runtime")
}

/// A client may have as much as its user, so that two of one user are short of memory, and three of two users too.
fn settings(client_memory_mib: u64) -> Settings {
    static DEFAULTS: OnceLock<Settings> = OnceLock::new();
    let mut settings = DEFAULTS.get_or_init(defaults).clone();
    settings.limits.client_memory_mib = client_memory_mib;
    settings.limits.user_memory_mib = Some(client_memory_mib);
    settings.limits.memory_mib = Some(2 * client_memory_mib);
    settings.limits.engine_count_max = Some(2);
    settings
}

fn defaults() -> Settings {
    let words = ["reeld", "serve", "--config", "/dev/null", "--index-cache-mib", "0"];
    match CommandLine::parse_from(words).command {
        Command::Serve(options) => config::load(&options).expect("settings that are right"),
        Command::Engine(_) => unreachable!("`serve` was parsed"),
    }
}

/// A ticket that was issued.
struct WorldTicket {
    held: HeldTicket,
    issuer: u64,
    uid: u32,
    is_redeemed: bool,
    is_expired: bool,
}

/// Everything.
pub struct World {
    /// All files there are.
    pub files: Vec<SimulatedFile>,
    file_by_inode: HashMap<u64, usize>,
    broker: Broker,
    incoming: mpsc::Receiver<Event>,
    /// What helpers have come back with, in the order of their calls, and the broker was not told yet.
    results: Vec<(u64, Event)>,
    clients: Vec<Option<SimulatedClient>>,
    /// All that were ever ordered, in the order of their keys.
    engines: Vec<SimulatedEngine>,
    orders: channel::Receiver<(EngineKey, Order, OwnedFd)>,
    /// Engines that are ordered start when the program says so.
    are_starts_held: bool,
    /// Tickets that were issued: by which client of which user, and whether they are of use.
    tickets: Vec<WorldTicket>,
    /// Clients that have named a session.
    have_named_session: BTreeSet<u64>,
    /// Clients that have named a session that lives.
    sessions: BTreeSet<u64>,
    /// Memory that the children of clients that are gone may still have mapped.
    haunted: Vec<Haunted>,
    now: Instant,
    outcome: Outcome,
}

impl World {
    /// Nobody is there yet.
    pub fn new(client_memory_mib: u64) -> World {
        let now = Instant::now();
        clock::stop_at(Some(now));
        let (events, incoming) = mpsc::channel(EVENTS_MAX);
        let reload = Box::new(|| Err("nothing is read again".into()));
        let mut broker =
            Broker::new(settings(client_memory_mib), reload, Vec::new(), events).expect("a broker");
        // All clients are this process.
        broker.switches.death = Way::HangUp;
        let (spawner, orders) = Spawner::without_thread();
        broker.engines.start_with(spawner);
        let files = SimulatedFile::all();
        World {
            file_by_inode: files.iter().map(|file| (inode_of(file.fd()), file.number)).collect(),
            files,
            broker,
            incoming,
            results: Vec::new(),
            clients: (0..CLIENTS_MAX).map(|_| None).collect(),
            engines: Vec::new(),
            orders,
            are_starts_held: false,
            tickets: Vec::new(),
            have_named_session: BTreeSet::new(),
            sessions: BTreeSet::new(),
            haunted: Vec::new(),
            now,
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
        self.broker.admit_client(stream, PeerIdentity { pid: std::process::id(), uid, gid: uid });
        let key = self.broker.next_client;
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
    pub async fn disconnect(&mut self, client: usize, is_rude: bool) {
        let Some(leaving) = &self.clients[client] else { return };
        leaving.check_contents();
        self.haunted.extend(leaving.haunted());
        let key = leaving.key;
        if is_rude {
            self.send(client, kind::STATUS, 0, Vec::new(), Vec::new());
            self.clients[client] = None;
        } else {
            self.clients[client] = None;
            self.hear_end(PeerKey::Client(key)).await;
        }
        assert!(!self.broker.clients.contains_key(&key));
    }

    /// Waits until the broker has seen that a socket was closed.
    async fn hear_end(&mut self, key: PeerKey) {
        loop {
            let event = self.incoming.recv().await.expect("the broker holds a sender");
            let is_end = matches!(&event, Event::Gone { remains, .. } if remains.key == key);
            self.sort(event);
            if is_end {
                return;
            }
        }
    }

    /// Asks for a file to be opened.
    pub fn open(&mut self, client: usize, file: usize, seek_mode: SeekMode, is_memory: bool) {
        let open =
            OpenSource { label: "simulated".into(), stream: None, seek_mode, is_memory, thread_count: 0 };
        let Some(asking) = &mut self.clients[client] else { return };
        let id = asking.expect(Expected::Source(file));
        let request = Request::OpenSource(open);
        let mut fds = vec![self.files[file].fd()];
        if seek_mode == SeekMode::Mapped {
            fds.push(self.files[file].mapping());
        }
        self.send(client, request.kind(), id, request.encode().expect("a request that fits"), fds);
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

    fn send(&mut self, client: usize, kind: u16, request_id: u64, body: Vec<u8>, fds: Vec<OwnedFd>) {
        let Some(sender) = &self.clients[client] else { return };
        let (body_bytes, fd_count) = (body.len() as u32, fds.len() as u8);
        let header = Header { body_bytes, kind, fd_count, flags: 0, request_id };
        let key = PeerKey::Client(sender.key);
        let line = Line::User(self.broker.clients.get(&sender.key).map_or(0, |client| client.user.uid));
        self.broker.handle(Event::Frame { key, line, frame: Frame { header, body, fds }, turn: None });
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

    /// A client asks for a ticket for one of its leases: the named one, or the next that has any.
    pub fn issue_ticket(&mut self, client: usize, number: usize) {
        for client in (client..CLIENTS_MAX).chain(0..client) {
            let leases: Vec<LeaseId> =
                self.clients[client].iter().flat_map(SimulatedClient::leases).collect();
            if let Some(&lease) = leases.get(number % leases.len().max(1)) {
                return self.ask(client, &Request::IssueTicket(lease), Expected::Ticket(lease), &[]);
            }
        }
    }

    /// A client brings a ticket, of whomever: the named one, or the next that is there.
    pub fn redeem_ticket(&mut self, client: usize, number: usize) {
        let is_there = |client: &usize| self.clients[*client].is_some();
        let Some(client) = (client..CLIENTS_MAX).chain(0..client).find(is_there) else { return };
        let Some(key) = self.clients[client].as_ref().map(|client| client.key) else { return };
        let uid = self.broker.clients[&key].user.uid;
        if self.tickets.is_empty() {
            return self.ask(client, &Request::RedeemTicket(Ticket([7; 32])), Expected::Error, &[]);
        }
        // The newest first: they are most often of use.
        let number = self.tickets.len() - 1 - number % self.tickets.len();
        let ticket = &self.tickets[number];
        let is_of_use = ticket.uid == uid && !ticket.is_redeemed && !ticket.is_expired;
        // Where its issuer is gone, its memory may have been wanted.
        let is_due = if !is_of_use {
            Some(false)
        } else {
            self.broker.clients.contains_key(&ticket.issuer).then_some(true)
        };
        let HeldTicket { frames, parts, .. } = ticket.held.clone();
        let expected = Expected::Redeemed(Box::new(Redeemed { frames, parts, is_due }));
        let request = Request::RedeemTicket(ticket.held.ticket);
        self.tickets[number].is_redeemed |= is_of_use;
        self.ask(client, &request, expected, &[]);
    }

    /// A client names a session, once.
    pub fn name_session(&mut self, client: usize) {
        let Some(key) = self.clients[client].as_ref().map(|client| client.key) else { return };
        if !self.have_named_session.insert(key) {
            return;
        }
        self.sessions.insert(key);
        let myself = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(myself, rustix::process::PidfdFlags::empty());
        let body = Notice::Session.encode().expect("a notice that fits");
        self.send(client, kind::SESSION, 0, body, vec![pidfd.expect("a pidfd of this process")]);
    }

    /// A session ends.
    pub fn end_session(&mut self, number: usize) {
        let Some(&issuer) = self.sessions.iter().nth(number) else { return };
        self.sessions.remove(&issuer);
        self.broker.handle(Event::SessionEnded(issuer));
        self.expire_tickets();
    }

    /// Takes note of tickets that were issued, and of those that are of no use any more.
    fn expire_tickets(&mut self) {
        for client in self.clients.iter_mut().flatten() {
            let uid = self.broker.clients[&client.key].user.uid;
            let issuer = client.key;
            let new = client.issued.drain(..);
            self.tickets.extend(new.map(|held| WorldTicket {
                held,
                issuer,
                uid,
                is_redeemed: false,
                is_expired: false,
            }));
        }
        for ticket in &mut self.tickets {
            let is_issuer_there = self.broker.clients.contains_key(&ticket.issuer);
            ticket.is_expired |= !is_issuer_there && !self.sessions.contains(&ticket.issuer);
        }
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

    /// For each engine that decodes: how many pictures somebody waits for, and how many are for later.
    #[cfg(test)]
    pub fn at_work(&self) -> Vec<(usize, usize)> {
        let at_work = self.engines.iter().filter(|engine| engine.is_alive() && !engine.wanted().is_empty());
        let counts = |engine: &SimulatedEngine| {
            let awaited_count = engine.pictures().count();
            (awaited_count, engine.wanted().len() - awaited_count)
        };
        at_work.map(counts).collect()
    }

    /// What the broker counts.
    #[cfg(test)]
    pub fn totals(&self) -> reeld_protocol::status::Totals {
        self.broker.totals
    }

    /// Clients whose hints are not forgotten.
    #[cfg(test)]
    pub fn hinting_clients(&self) -> usize {
        self.broker.hints.clients().count()
    }

    /// Frames that were hinted at and are not decoded.
    #[cfg(test)]
    pub fn hints_waiting(&self) -> u64 {
        self.broker.hints.waiting_count()
    }

    /// A helper's result reaches the broker.
    pub fn deliver_result(&mut self, number: usize) {
        if number < self.results.len() {
            let (_, event) = self.results.remove(number);
            self.broker.handle(event);
        }
    }

    /// Engines that are ordered wait to be started from now on, or no more.
    pub fn hold_starts(&mut self) {
        self.are_starts_held = !self.are_starts_held;
    }

    /// One of the engines that wait for it is started, or cannot be. False if there is none.
    pub fn start_one(&mut self, number: usize, failure: Option<Errno>) -> bool {
        let awaited: Vec<usize> =
            (0..self.engines.len()).filter(|&engine| self.engines[engine].is_awaited()).collect();
        let Some(&engine) = awaited.get(number % awaited.len().max(1)) else { return false };
        let process = &mut self.engines[engine];
        let spawned = match failure {
            None => Ok(Box::new(process.start(engine as u32 + 1)) as Box<dyn Process>),
            Some(errno) => {
                process.end(0);
                Err(io::Error::from(errno))
            }
        };
        self.broker.handle(Event::EngineSpawned(EngineKey(engine as u64), spawned));
        true
    }

    /// An engine says that it is ready.
    pub fn engine_is_ready(&mut self, number: usize) {
        let Some(engine) = self.living(number) else { return };
        if !self.engines[engine].is_ready {
            self.engines[engine].say_ready();
            self.hear(engine);
        }
    }

    /// An engine answers what it is at; the broker has not read it yet.
    pub fn conclude(&mut self, number: usize, conclusion: Conclusion) {
        let Some(engine) = self.living(number) else { return };
        let file_of = |identity: crate::link::FileIdentity| self.file_by_inode[&identity.inode];
        self.engines[engine].conclude(conclusion, file_of, &self.files);
    }

    /// The broker reads what an engine has said, perhaps before it ended.
    pub fn hear_engine(&mut self, number: usize) {
        let speaking: Vec<usize> =
            (0..self.engines.len()).filter(|&engine| !self.engines[engine].said.is_empty()).collect();
        if let Some(&engine) = speaking.get(number % speaking.len().max(1)) {
            self.hear(engine);
        }
    }

    fn hear(&mut self, engine: usize) {
        let Some(frame) = self.engines[engine].said.pop_front() else { return };
        let key = PeerKey::Engine(EngineKey(engine as u64));
        self.broker.handle(Event::Frame { key, line: Line::House, frame, turn: None });
    }

    /// An engine's process ends, in this way: it crashes, is killed by somebody, or does as it was told.
    pub fn engine_ends(&mut self, number: usize, status: i32) {
        if let Some(engine) = self.living(number) {
            self.end(engine, status);
        }
    }

    fn end(&mut self, engine: usize, status: i32) {
        self.outcome.crashes += u64::from(self.engines[engine].job.is_some());
        self.engines[engine].end(status);
        self.broker.handle(Event::EngineExited(EngineKey(engine as u64)));
    }

    /// An engine misbehaves without ending: it talks nonsense, or closes its socket.
    pub async fn engine_fails(&mut self, number: usize, is_talkative: bool) {
        let Some(engine) = self.living(number) else { return };
        if is_talkative {
            self.engines[engine].say_nonsense();
            self.hear_engine(engine);
        } else if self.engines[engine].hang_up() {
            self.hear_end(PeerKey::Engine(EngineKey(engine as u64))).await;
        }
    }

    /// All engines write garbage where they may.
    pub fn scribble(&self) {
        self.engines.iter().for_each(SimulatedEngine::scribble);
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        clock::stop_at(Some(self.now));
        self.broker.expire();
        self.broker.tend();
    }

    fn living(&self, number: usize) -> Option<usize> {
        let living: Vec<usize> =
            (0..self.engines.len()).filter(|&engine| self.engines[engine].is_alive()).collect();
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
            is_quiet &= !self.await_helpers().await;
            is_quiet &= !self.take_orders();
            // What they read makes room for more.
            for engine in self.engines.iter_mut().filter(|engine| engine.is_alive()) {
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
            Event::Helped { call, .. } => self.results.push((call, event)),
            other => {
                self.broker.handle(other);
            }
        }
    }

    /// Waits until all helpers have come back, and tells the broker of those that have brought nothing. True if
    /// there were such. Their threads end in any order; the broker hears of them in that of their calls.
    async fn await_helpers(&mut self) -> bool {
        let running_count =
            |broker: &Broker| broker.helpers.counts().map(|(_, line)| line.running).sum::<usize>();
        while running_count(&self.broker) > self.results.len() {
            let event = self.incoming.recv().await.expect("the broker holds a sender");
            self.sort(event);
        }
        self.results.sort_by_key(|&(call, _)| call);
        let is_empty = |event: &Event| matches!(event, Event::Helped { done: Done::Nothing, .. });
        let results = std::mem::take(&mut self.results);
        let (empty, rest): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, event)| is_empty(event));
        self.results = rest;
        let has_moved = !empty.is_empty();
        for (_, event) in empty {
            self.broker.handle(event);
        }
        has_moved
    }

    /// Takes note of engines that were ordered. True if there were some.
    fn take_orders(&mut self) -> bool {
        let mut has_moved = false;
        while let Ok((key, _, socket)) = self.orders.try_recv() {
            has_moved = true;
            assert_eq!(key, EngineKey(self.engines.len() as u64));
            let socket = StdUnixStream::from(socket);
            socket.set_nonblocking(true).expect("a socket that does not block");
            self.engines.push(SimulatedEngine::ordered(socket));
        }
        while !self.are_starts_held && self.start_one(0, None) {
            has_moved = true;
        }
        has_moved
    }

    /// What holds at any time: nobody writes where a client reads, or where somebody else writes; memory is within
    /// its quota; each side knows of the same requests.
    pub fn check(&mut self) {
        self.expire_tickets();
        // Several may have the same slot, by tickets.
        let mut slots: BTreeSet<(u64, u64, u64)> =
            self.clients.iter().flatten().flat_map(SimulatedClient::slots).collect();
        let is_due = |ticket: &&WorldTicket| {
            let is_issuer_there = self.broker.clients.contains_key(&ticket.issuer);
            is_issuer_there && !ticket.is_redeemed && !ticket.is_expired
        };
        slots.extend(self.tickets.iter().filter(is_due).map(|ticket| ticket.held.slot));
        slots.extend(self.haunted.iter().map(|haunted| haunted.slot));
        let mut used: Vec<(u64, u64, u64)> = slots.into_iter().collect();
        for engine in self.engines.iter().filter(|engine| engine.is_alive()) {
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
            let lease_count = usage.lease_count + known.borrowed.usage().0;
            assert_eq!(lease_count, client.leases().count() as u64);
            assert_eq!(known.request_count, client.unanswered.len() as u64);
        }
        self.broker.audit().expect("tables that agree");
    }

    /// Helpers and engines do their best until every request is answered.
    pub async fn answer_everything(&mut self) {
        self.are_starts_held = false;
        for _ in 0..ROUNDS_MAX {
            self.settle().await;
            self.check();
            let unanswered: usize = self.clients.iter().flatten().map(|client| client.unanswered.len()).sum();
            let is_at_work = |engine: &SimulatedEngine| {
                let is_active = engine.is_alive() && (engine.job.is_some() || !engine.is_ready);
                engine.is_doomed() || is_active || !engine.said.is_empty()
            };
            let is_moving = self.engines.iter().any(is_at_work) || !self.results.is_empty();
            if unanswered == 0 && !is_moving && self.broker.queue.len() == 0 {
                return;
            }
            if !is_moving {
                // The broker waits for its clock alone.
                self.pass(self.broker.next_deadline().saturating_duration_since(self.now));
            }
            while !self.results.is_empty() {
                self.deliver_result(0);
            }
            for engine in 0..self.engines.len() {
                self.do_its_best(engine);
            }
        }
        panic!("requests are never answered");
    }

    fn do_its_best(&mut self, engine: usize) {
        if self.engines[engine].is_doomed() {
            self.end(engine, 0);
        }
        if self.engines[engine].is_alive() {
            if !self.engines[engine].is_ready {
                self.engines[engine].say_ready();
            }
            let file_of = |identity: crate::link::FileIdentity| self.file_by_inode[&identity.inode];
            self.engines[engine].conclude(Conclusion::Done, file_of, &self.files);
        }
        while !self.engines[engine].said.is_empty() {
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
            self.disconnect(client, false).await;
        }
        while !self.sessions.is_empty() {
            self.end_session(0);
        }
        self.answer_everything().await;
        for engine in self.engines.iter().filter(|engine| engine.is_alive() && !engine.is_doomed()) {
            assert_eq!(engine.known_count().1, 0, "an engine keeps the arenas of clients that are gone");
        }
        // Idle files and engines go; so do engines that were told to be silent, and what they were at is done again.
        for _ in 0..2 {
            self.pass(Duration::from_secs(3600));
            self.answer_everything().await;
        }
        self.pass(Duration::ZERO);
        self.outcome.tickets_redeemed = self.broker.totals.tickets_redeemed;
        self.outcome.hints_accepted = self.broker.totals.hints_accepted;
        self.check_nothing_is_left();
        self.outcome
    }

    fn check_nothing_is_left(&mut self) {
        let broker = &mut self.broker;
        let left = [
            ("clients", broker.clients.len()),
            ("opens", broker.opens.len()),
            ("requests", broker.requests.len()),
            ("pictures", broker.requests.pictures().count()),
            ("jobs", broker.queue.len()),
            ("clients with hints", broker.hints.clients().count()),
            ("costs of clients", broker.queue.clients().count()),
            ("arenas", broker.arenas.len()),
            ("relieved clients", broker.relieved.len()),
            ("files", broker.catalog.len()),
            ("files to be given back", broker.leavings.len()),
            ("arenas without clients", broker.detached.len()),
            ("tickets", broker.tickets.len()),
            ("issuers of tickets", broker.tickets.issuers().count()),
            ("sessions", broker.sessions.len()),
            ("arenas of others", broker.borrowers.len()),
            ("accounts of users", broker.quotas.iter().count()),
            ("gates of users", broker.gates.len()),
            ("calls of helpers", broker.helpers.counts().count()),
            ("engines", broker.engines.iter_mut().count()),
        ];
        let left: Vec<_> = left.into_iter().filter(|(_, count)| *count > 0).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
