//! The way of a `GetFrames`: its frames are located and laid out, a slot is reserved, runs are queued, and
//! when the last picture lies in the slot the client is told. And where decoding can begin, for who asks.

use std::os::fd::OwnedFd;

use reeld_protocol::Transforms;
use reeld_protocol::error::WireError;
use reeld_protocol::ids::LeaseId;
use reeld_protocol::message::{
    FramesReply, GetFrames, GetKeyFrames, KEY_FRAMES_PER_REPLY_MAX, PartLayout, Reply,
};

use super::blame::{Blame, Death};
use super::client::Client;
use super::helpers::{Done, Line, Purpose};
use super::job::{Decode, Job, Task};
use super::leases::{Release, Reservation, Slot};
use super::locating::{self, Sought};
use super::memory::Reserved;
use super::plan::{FRAMES_PER_REQUEST_MAX, plan};
use super::queue::Pushed;
use super::requests::{FrameRequest, PlannedPart, WantedRecord, lay_out};
use super::{Broker, clock, reply};
use crate::link::{
    ArenaKey, CatalogId, Destination, EngineError, EngineRequest, LookIndex, WantedId, WantedPicture,
};

/// Parts of one request: a batch of videos. The layouts of so many, at 52 bytes each, fit into one reply.
const PARTS_MAX: usize = 1024;

/// Frames that one client may wait for, all its requests together: as many as one request may have. Each costs
/// the broker some 200 bytes, so that 64 such requests of one client would take gigabytes.
const FRAMES_IN_FLIGHT_MAX: u64 = FRAMES_PER_REQUEST_MAX;

/// Crashed engines after which a request is given up, whatever files of it they were at: it may have a
/// thousand parts.
const DEATHS_PER_REQUEST_MAX: u32 = 24;

impl Broker {
    pub(super) fn get_frames(
        &mut self,
        client: u64,
        request_id: u64,
        wanted: GetFrames,
        fds: &mut Vec<OwnedFd>,
    ) {
        let line = self.clients.get(&client).map_or(Line::House, |client| Line::User(client.user.uid));
        let (request, parts) = match self.resolve(client, request_id, wanted) {
            Ok(resolved) => resolved,
            Err(error) => return self.fail(client, request_id, error),
        };
        let key = self.requests.insert(request);
        if fds.is_empty() && locating::is_small(&parts) {
            return self.located(Purpose::Locate(key), locating::locate(&parts, Vec::new()));
        }
        let fds = std::mem::take(fds);
        self.helpers.run(line, Purpose::Locate(key), move || Done::Located(locating::locate(&parts, fds)));
    }

    /// Answered at once: the index is there, and one reply has few of its entries.
    pub(super) fn get_key_frames(&mut self, client: u64, request_id: u64, asked: GetKeyFrames) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        client.active_at = clock::now();
        let Some(opened) = client.sources.get(&asked.source) else {
            let error = reply::invalid(format!("source {} is not open", asked.source));
            return client.fail(request_id, error);
        };
        match opened.timeline.key_frames(asked.from, KEY_FRAMES_PER_REPLY_MAX) {
            Ok(key_frames) => client.reply(request_id, &Reply::KeyFrames(key_frames)),
            Err(error) => client.fail(request_id, reply::from_plan(&error)),
        }
    }

    /// Finds the files that a request names. From here on it stands, whatever its client closes.
    fn resolve(
        &mut self,
        client: u64,
        request_id: u64,
        wanted: GetFrames,
    ) -> Result<(FrameRequest, Vec<Sought>), WireError> {
        let deadline_millis = wanted.timeout_millis.map(|timeout| self.now_millis().saturating_add(timeout));
        let Some(client) = self.clients.get_mut(&client) else {
            return Err(reply::internal("a request without its client"));
        };
        client.active_at = clock::now();
        if self.requests.find(client.key, request_id).is_some() {
            return Err(reply::invalid(format!("request id {request_id} is in use")));
        }
        if wanted.parts.is_empty() || wanted.parts.len() > PARTS_MAX {
            let count = wanted.parts.len();
            return Err(reply::invalid(format!(
                "a request has 1 to {PARTS_MAX} parts, not {count}; split it"
            )));
        }
        let mut parts = Vec::with_capacity(wanted.parts.len());
        for part in wanted.parts {
            let Some(source) = client.sources.get(&part.source) else {
                return Err(reply::invalid(format!("source {} is not open", part.source)));
            };
            let transforms = Transforms::new(part.transforms);
            let transforms = transforms.map_err(|error| reply::invalid(error.to_string()))?;
            let (source, wanted, dtype) = (source.clone(), part.wanted, part.dtype);
            parts.push(Sought { source, wanted, dtype, transforms });
        }
        let request = FrameRequest {
            client: client.key,
            request_id,
            parts: Vec::new(),
            priority: wanted.priority,
            deadline_millis,
            layouts: Vec::new(),
            slot_bytes: 0,
            lease: None,
            missing_count: 0,
            blames: Vec::new(),
        };
        Ok((request, parts))
    }

    /// The frames of a request were found, or there are none such.
    pub(super) fn located(&mut self, purpose: Purpose, located: Result<Vec<PlannedPart>, WireError>) {
        let Purpose::Locate(key) = purpose else { return };
        // Its client may be gone, have cancelled, or have had no more time.
        let Some(asking) = self.requests.get(key).map(|request| request.client) else { return };
        let in_flight_count = self.requests.frame_count_of(asking);
        let too_large = |client: &Client| {
            reply::from_reservation(&Reservation::TooLarge, u64::MAX, client.memory.quota_bytes())
        };
        let planned = match (located, self.clients.get(&asking)) {
            (Ok(parts), Some(client)) => lay_out(&parts)
                .ok_or_else(|| too_large(client))
                .and_then(|layout| check_flight(&layout.0, in_flight_count).map(|()| (parts, layout))),
            (Ok(_), None) => Err(reply::internal("a request without its client")),
            (Err(error), _) => Err(error),
        };
        let Some(request) = self.requests.get_mut(key) else { return };
        match planned {
            Ok((parts, (layouts, slot_bytes))) => {
                (request.parts, request.layouts, request.slot_bytes) = (parts, layouts, slot_bytes);
                self.totals.requests += 1;
                let (client, request_id, frames) =
                    (request.client, request.request_id, request.frame_count());
                let parts = request.parts.len();
                tracing::debug!(client, request_id, key, parts, frames, slot_bytes, "request planned");
                self.admit(key);
            }
            Err(error) => {
                if let Some(request) = self.requests.remove(key) {
                    self.fail(request.client, request.request_id, error);
                }
            }
        }
    }

    /// Lets a request in if there is memory for its result, behind those that wait already.
    fn admit(&mut self, key: u64) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let client = request.client;
        let Some(client) = self.clients.get_mut(&client) else { return };
        client.waiting.push_back(key);
        if client.waiting.len() == 1 {
            let client = client.key;
            self.admit_waiting(client);
        }
    }

    /// Lets waiting requests of a client in, in order, as far as there is memory.
    pub(super) fn admit_waiting(&mut self, client: u64) {
        while let Some(key) = self.clients.get(&client).and_then(|client| client.waiting.front().copied()) {
            let Some(bytes) = self.requests.get_mut(key).map(|request| request.slot_bytes) else {
                self.stop_waiting(client);
                continue;
            };
            match self.reserve(client, bytes) {
                Reserved::Slot(slot) => {
                    self.stop_waiting(client);
                    self.start(key, slot);
                }
                Reserved::Wait => return self.stop_starving(client),
                Reserved::WaitForOthers(barrier) => return self.starve(client, key, barrier),
                Reserved::Refused(error) => self.fail_waiting(client, key, error),
            }
        }
        self.stop_starving(client);
    }

    fn stop_waiting(&mut self, client: u64) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.waiting.pop_front();
        }
    }

    fn fail_waiting(&mut self, client: u64, key: u64, error: WireError) {
        self.stop_waiting(client);
        if let Some(request) = self.requests.remove(key) {
            self.totals.requests_failed += 1;
            self.fail(client, request.request_id, error);
        }
    }

    /// Queues everything that the request wants, to be written into its slot.
    fn start(&mut self, key: u64, slot: Slot) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.lease = Some(slot.lease);
        request.missing_count = request.frame_count();
        let request = request.clone();
        if request.missing_count == 0 {
            return self.complete(key);
        }
        let granted = self.clients.get(&request.client).and_then(|client| client.arenas.get(&slot.arena));
        let Some(arena) = granted.map(|granted| granted.key) else {
            return self.fail_request(key, reply::internal("a slot in an arena that was not granted"));
        };
        let record = WantedRecord { request: key, client: request.client, lease: slot.lease };
        let (client, request_id) = (request.client, request.request_id);
        tracing::debug!(client, request_id, key, lease = slot.lease.0, "request queued");
        for (part, layout) in request.parts.iter().zip(&request.layouts) {
            let Some(user) = self.catalog.get(part.source).map(|entry| entry.user) else {
                return self.fail_request(key, reply::invalid("the source was closed"));
            };
            for run in plan(&part.located) {
                let mut pictures = Vec::with_capacity(run.rows.len());
                for (row, target) in run.rows {
                    let destination = destination(arena, slot.offset, layout, row as u64);
                    let id = self.requests.want(record);
                    pictures.push((WantedPicture { id, target, destination }, request.waiter()));
                }
                let decode = Decode {
                    stream: part.stream,
                    start: run.start,
                    pictures,
                    looks: vec![part.transforms.clone()],
                    frame_pixels: part.picture_pixels,
                    decode_count: run.decode_count,
                    thread_count: part.thread_count,
                };
                let (source, task) = (part.source, Task::Decode(decode));
                let blame = Blame::default();
                self.push_decode(Job { user, source, pinned: None, failure_count: 0, blame, task });
            }
        }
    }

    /// Queues a run, or lets it join one that an engine is at, or one that waits.
    pub(super) fn push_decode(&mut self, mut job: Job) {
        self.follow_hints(&mut job);
        let Task::Decode(decode) = &job.task else { return };
        let targets = decode.pictures.iter().map(|(picture, _)| picture.target);
        job.pinned = job.pinned.or(self.kept.engine_with((job.source, decode.stream), targets));
        let count = decode.pictures.len() as u64;
        if self.extend_running(&job, decode) {
            self.totals.joined += count;
            return;
        }
        if self.queue.push(job) == Pushed::Joined {
            self.totals.joined += count;
        }
    }

    /// All pictures are in the slot: from here on it is the client's.
    fn complete(&mut self, key: u64) {
        let Some(request) = self.requests.remove(key) else { return };
        let (Some(client), Some(lease)) = (self.clients.get_mut(&request.client), request.lease) else {
            return;
        };
        client.memory.fulfil(lease);
        self.has_memory_moved = true;
        self.totals.frames_delivered += request.frame_count();
        match client.memory.slot(lease) {
            Some(slot) => {
                let frames = FramesReply {
                    lease,
                    arena: slot.arena,
                    slot_offset: slot.offset,
                    slot_bytes: slot.bytes,
                    parts: request.layouts,
                };
                client.reply(request.request_id, &Reply::Frames(frames));
            }
            None => client.fail(request.request_id, reply::internal("a finished request without a slot")),
        }
        self.admit_waiting(request.client);
    }

    /// Answers a request with an error. What engines still do for it goes to nobody.
    pub(super) fn fail_request(&mut self, key: u64, error: WireError) {
        let Some(client) = self.refuse_request(key, error) else { return };
        self.forget_unwanted(client);
        self.admit_waiting(client);
    }

    /// The same, where what others wait for is looked after by the caller. Returns the request's client.
    pub(super) fn refuse_request(&mut self, key: u64, error: WireError) -> Option<u64> {
        let request = self.requests.remove(key)?;
        self.totals.requests_failed += 1;
        if let Some(client) = self.clients.get_mut(&request.client) {
            client.waiting.retain(|&waiting| waiting != key);
            if let Some(lease) = request.lease {
                client.memory.abandon(lease);
                self.has_memory_moved = true;
            }
            client.fail(request.request_id, error);
        }
        Some(request.client)
    }

    /// An engine has written a picture.
    pub(super) fn picture_finished(&mut self, wanted: WantedId) {
        let is_wanted = self.requests.is_wanted(wanted);
        let Some(record) = self.settle(wanted) else { return };
        if !is_wanted {
            return;
        }
        let Some(request) = self.requests.get_mut(record.request) else { return };
        request.missing_count = request.missing_count.saturating_sub(1);
        if request.missing_count == 0 {
            self.complete(record.request);
        }
    }

    /// An engine cannot provide a picture.
    pub(super) fn picture_failed(&mut self, wanted: WantedId, error: &EngineError, label: &str) {
        let is_wanted = self.requests.is_wanted(wanted);
        let Some(record) = self.settle(wanted) else { return };
        if is_wanted {
            self.fail_request(record.request, reply::from_engine(error, label));
        }
    }

    /// An engine died over these pictures of one file. Their requests start again, in other slots, or give up.
    pub(super) fn pictures_crashed(
        &mut self,
        wanted: &[WantedId],
        source: CatalogId,
        label: &str,
        death: &Death,
    ) {
        let mut requests: Vec<u64> = Vec::new();
        for &wanted in wanted {
            let is_wanted = self.requests.is_wanted(wanted);
            let record = self.settle(wanted);
            requests.extend(record.filter(|_| is_wanted).map(|record| record.request));
        }
        requests.sort_unstable();
        requests.dedup();
        for key in requests {
            let Some(request) = self.requests.get_mut(key) else { continue };
            if let Some(blame) = blame_file(request, source, death) {
                self.fail_request(key, reply::crashed(label, blame, death));
                continue;
            }
            self.totals.retries += 1;
            let (client, lease) = (request.client, request.lease.take());
            if let (Some(client), Some(lease)) = (self.clients.get_mut(&client), lease) {
                client.memory.abandon(lease);
                self.has_memory_moved = true;
            }
            // The request now stands behind those that wait already: the first of them may have the memory.
            self.relieved.insert(client);
            self.forget_unwanted(client);
            self.admit(key);
        }
    }

    /// An engine has answered for a picture, or is dead: its slot is not written to on its account any more.
    pub(super) fn settle(&mut self, wanted: WantedId) -> Option<WantedRecord> {
        let record = self.requests.settle(wanted)?;
        if let Some(client) = self.clients.get_mut(&record.client)
            && client.memory.end_writing(record.lease)
        {
            self.relieved.insert(record.client);
            self.has_memory_moved = true;
        }
        Some(record)
    }

    /// Lets requests in for which an engine's answer has made room.
    pub(super) fn admit_relieved(&mut self) {
        for client in std::mem::take(&mut self.relieved) {
            self.admit_waiting(client);
        }
    }

    /// Takes pictures that a client does not wait for any more out of the queue, and stops runs that have none
    /// left.
    pub(super) fn forget_unwanted(&mut self, client: u64) {
        let requests = &mut self.requests;
        self.queue.retain_of(client, |job| {
            let Task::Decode(decode) = &mut job.task else { return true };
            decode.pictures.retain(|(picture, _)| {
                let is_wanted = requests.is_wanted(picture.id);
                if !is_wanted {
                    requests.settle(picture.id);
                }
                is_wanted
            });
            !decode.pictures.is_empty()
        });
        for (_, engine) in self.engines.iter_mut() {
            let Some(running) = &mut engine.running else { continue };
            let Task::Decode(decode) = &running.job.task else { continue };
            if running.job.is_ahead() {
                // Nobody ever waited for it.
                continue;
            }
            let is_wanted = decode.pictures.iter().any(|(picture, _)| requests.is_wanted(picture.id));
            if !is_wanted && !running.is_cancelled {
                running.is_cancelled = true;
                let cancel = EngineRequest::Cancel(running.id);
                engine.send(&cancel, Vec::new());
            }
        }
    }

    /// A client gives leases back.
    pub(super) fn release(&mut self, key: u64, leases: &[LeaseId]) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let mut strays = Vec::new();
        for &lease in leases {
            match client.memory.release(lease) {
                Release::Freed => {}
                Release::Stray => strays.push(lease),
            }
        }
        let spent = client.memory.revoke_spent();
        let dropped = client.revoke_arenas(&spent);
        self.drop_arenas(&dropped);
        for lease in strays {
            if !self.release_borrowed(key, lease) {
                self.totals.stray_releases += 1;
            }
        }
        self.has_memory_moved = true;
        self.admit_waiting(key);
    }
}

/// A client that waits for many frames asks for no more than the limit leaves it.
fn check_flight(layouts: &[PartLayout], in_flight_count: u64) -> Result<(), WireError> {
    let count: u64 = layouts.iter().map(|layout| layout.frame_count).sum();
    if in_flight_count > 0 && in_flight_count + count > FRAMES_IN_FLIGHT_MAX {
        return Err(reply::limit(format!(
            "{count} frames beside {in_flight_count} in flight are over the limit of {FRAMES_IN_FLIGHT_MAX}; \
             wait for some"
        )));
    }
    Ok(())
}

/// Takes note of a death over one of the request's files; what the file has suffered, if it is enough.
fn blame_file(request: &mut FrameRequest, source: CatalogId, death: &Death) -> Option<Blame> {
    let position = request.blames.iter().position(|(known, _)| *known == source).unwrap_or_else(|| {
        request.blames.push((source, Blame::default()));
        request.blames.len() - 1
    });
    let blame = &mut request.blames[position].1;
    let is_enough = blame.add(death);
    let blame = *blame;
    let death_count: u32 = request.blames.iter().map(|(_, blame)| u32::from(blame.death_count())).sum();
    (is_enough || death_count >= DEATHS_PER_REQUEST_MAX).then_some(blame)
}

/// Where one row of a part goes. A part has one look, and begins its runs.
fn destination(arena: ArenaKey, slot_offset: u64, layout: &PartLayout, row: u64) -> Destination {
    Destination {
        arena,
        pixels_offset: slot_offset + layout.pixels_offset + row * layout.frame_bytes(),
        pts_offset: slot_offset + layout.pts_offset + row * 8,
        duration_offset: slot_offset + layout.durations_offset + row * 8,
        height: layout.height,
        width: layout.width,
        dtype: layout.dtype,
        look: LookIndex(0),
    }
}

/// The arenas that a run writes into.
pub(super) fn arenas_of(pictures: &[(WantedPicture, super::queue::Waiter)]) -> Vec<ArenaKey> {
    let mut arenas: Vec<ArenaKey> = pictures.iter().map(|(picture, _)| picture.destination.arena).collect();
    arenas.sort_unstable();
    arenas.dedup();
    arenas
}
