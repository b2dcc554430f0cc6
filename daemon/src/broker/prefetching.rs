//! The way of a hint: from what a client is going to ask for to runs that engines decode into their picture caches,
//! where nobody waits for anything.
//!
//! An engine is handed such a run only while no other run waits, and puts it down as soon as one does. What a run is
//! worth, and whose turn it is, is the matter of `hints`.

use reeld_protocol::Transforms;
use reeld_protocol::message::{Dtype, PREFETCH_FRAMES_MAX, Prefetch, Wanted};

use super::blame::Blame;
use super::engines::{EngineKey, Running};
use super::hints::{HintLimits, HintedRun, Stretch};
use super::job::{Decode, Job, Task, User};
use super::locating::{self, Sought};
use super::plan::{PlannedRun, compare_targets, plan};
use super::requests::PlannedPart;
use super::{Broker, clock};
use crate::link::{
    Destination, EngineError, EngineReport, EngineRequest, Run, RunStart, Target, WANTED_PER_MESSAGE_MAX,
    WantedId, WantedPicture,
};

/// One part in so many of the picture caches of a user's engines is for what one client has hinted at and not asked for.
const CLIENT_SHARE: u64 = 4;

/// The same for all clients of the user: as much as an engine keeps of it.
const USER_SHARE: u64 = 2;

impl Broker {
    /// Takes note of a hint. What is wrong with it, or too much, is dropped: nobody waits for it.
    pub(super) fn prefetch(&mut self, key: u64, hint: Prefetch) {
        let Some(client) = self.clients.get(&key) else { return };
        let user = client.user;
        let asked_count = value_count(&hint.wanted);
        let Some(source) = client.sources.get(&hint.source).filter(|_| !self.is_draining()).cloned() else {
            self.totals.hints_dropped += asked_count;
            return;
        };
        let pixels = u64::from(source.height) * u64::from(source.width);
        let room = self.hints.room(key, user, pixels, self.hint_limits(user)).min(PREFETCH_FRAMES_MAX);
        let wanted = first_of(hint.wanted, room);
        let sought = [Sought { source, wanted, dtype: Dtype::Uint8, transforms: Transforms::default() }];
        let is_possible = room > 0 && locating::is_small(&sought);
        let located = is_possible.then(|| locating::locate(&sought, Vec::new()).ok()).flatten();
        let mut taken_count = 0;
        for part in located.into_iter().flatten() {
            taken_count += part.located.len().min(room) as u64;
            self.add_hints(key, user, &part, room);
        }
        self.totals.hints_accepted += taken_count;
        self.totals.hints_dropped += asked_count.saturating_sub(taken_count);
        tracing::debug!(client = key, accepted = taken_count, of = asked_count, "hint");
    }

    fn add_hints(&mut self, client: u64, user: User, part: &PlannedPart, room: usize) {
        // A range of times may have more frames than there is room for.
        let located = &part.located[..part.located.len().min(room)];
        for PlannedRun { start, rows, .. } in plan(located) {
            let place = (part.source, part.stream, start);
            let mut run = HintedRun::new(client, user, place, part.picture_pixels);
            run.thread_count = part.thread_count;
            let pictures: Vec<_> =
                rows.into_iter().map(|(_, target)| (self.requests.name_picture(), target)).collect();
            self.hints.add(run, pictures);
        }
    }

    fn hint_limits(&self, user: User) -> HintLimits {
        let engine_count = self.engines.iter().filter(|(_, engine)| engine.user == user).count().max(1);
        let cache_bytes = (self.settings.limits.engine_cache_mib << 20).saturating_mul(engine_count as u64);
        HintLimits { client_bytes: cache_bytes / CLIENT_SHARE, user_bytes: cache_bytes / USER_SHARE }
    }

    /// Gives engines that nobody else needs what was hinted at; takes it away from them where somebody does.
    pub(super) fn dispatch_hints(&mut self) {
        if self.queue.len() > 0 {
            return self.put_hints_down();
        }
        if self.hints.is_empty() || self.is_draining() {
            return;
        }
        let nothing_pinned = std::collections::BTreeMap::new();
        while self.engines.has_idle() && self.engines.has_free_processor() {
            let engines = &self.engines;
            let choose = |run: &HintedRun| engines.choose(&job_of(run), &nothing_pinned);
            let Some(key) = self.hints.next(|run| choose(run).is_some()) else { break };
            let Some(engine) = self.hints.get(key).and_then(choose) else { break };
            self.hand_over_hint(key, engine);
        }
        let now = clock::now();
        for user in self.hints.waiting_users() {
            let has_idle = self.engines.iter().any(|(_, engine)| engine.user == user && engine.is_idle());
            if !has_idle
                && self.engines.has_free_processor()
                && self.engines.may_start(user, now)
                && let Err(error) = self.engines.start(user, now)
            {
                tracing::warn!(uid = user.uid, %error, "no engine can be started for hints");
            }
        }
    }

    fn hand_over_hint(&mut self, key: u64, engine: EngineKey) {
        let Some(run) = self.hints.get(key) else { return };
        let (mut job, source) = (job_of(run), run.source);
        job.pinned = None;
        let (Some(entry), Some(process)) = (self.catalog.get(source), self.engines.get_mut(engine)) else {
            // Its client closed the source, and nobody else has it open.
            return self.hints.forget_run(key);
        };
        process.introduce_source(source, entry.identity, &entry.fd);
        let id = self.engines.next_job();
        let pictures = self.hints.begin(key, id, engine, WANTED_PER_MESSAGE_MAX);
        let Task::Decode(decode) = &job.task else { return };
        let mut run = job.run(decode, 1);
        run.wanted = pictures.into_iter().map(ahead).collect();
        self.totals.runs += 1;
        let Some(process) = self.engines.get_mut(engine) else { return };
        tracing::debug!(engine = engine.0, job = id.0, source = source.0, "hinted run");
        process.begin(id, job, &EngineRequest::Decode { job: id, run }, clock::now());
    }

    /// Has a run that somebody waits for keep what was hinted at and lies on its way: else that way would be gone once
    /// more for it.
    pub(super) fn take_hints_along(&mut self, engine: EngineKey, user: User, run: &mut Run) {
        let RunStart::Keyframe(_) = run.start else { return };
        let Some(last) = run.wanted.last().filter(|_| !self.hints.is_empty()) else { return };
        let stretch = Stretch::new(run.source, run.stream, run.start);
        let count_max = WANTED_PER_MESSAGE_MAX.saturating_sub(run.wanted.len());
        let along = self.hints.on_the_way(user, stretch, last.target, engine, count_max);
        if !along.is_empty() {
            run.wanted.extend(along.into_iter().map(ahead));
            run.wanted.sort_by(|one, other| compare_targets(one.target, other.target));
        }
    }

    /// Asks engines that decode ahead to end that: at the next sample they do.
    fn put_hints_down(&mut self) {
        for (_, engine) in self.engines.iter_mut().filter(|(_, engine)| engine.is_at_hints()) {
            if let Some(running) = engine.running.as_mut().filter(|running| !running.is_cancelled) {
                running.is_cancelled = true;
                let cancel = EngineRequest::Cancel(running.id);
                engine.send(&cancel, Vec::new());
            }
        }
    }

    /// Somebody asks for a run: it is done where decoding it has begun, and is not hinted at any more.
    pub(super) fn follow_hints(&mut self, job: &mut Job) {
        let Task::Decode(decode) = &job.task else { return };
        if self.hints.is_empty() {
            return;
        }
        let stretch = Stretch::new(job.source, decode.stream, decode.start);
        let targets = decode.pictures.iter().map(|(picture, _)| picture.target);
        job.pinned = job.pinned.or(self.hints.asked(stretch, targets));
    }

    /// An engine has ended a run that may have been one of hints.
    pub(super) fn hints_ended(
        &mut self,
        running: &Running,
        finished: &[WantedId],
        failed: &[(WantedId, EngineError)],
        report: EngineReport,
    ) {
        self.totals.pictures_prefetched += report.pictures_prefetched;
        self.totals.prefetch_hits += report.prefetch_hits;
        let lost: Vec<WantedId> = failed.iter().map(|(id, _)| *id).collect();
        let is_idle = finished.is_empty() && failed.is_empty() && report.pictures_decoded == 0;
        let is_stalled = is_idle && !running.is_cancelled && running.job.is_ahead();
        let now = self.now_millis();
        self.hints.ended(running.id, finished, &lost, is_stalled, now);
        if let Task::Decode(decode) = &running.job.task
            && !self.hints.is_empty()
        {
            self.hints.brought(Stretch::new(running.job.source, decode.stream, decode.start), finished, now);
        }
    }

    /// A client is gone: nobody needs what it has hinted at.
    pub(super) fn forget_hints(&mut self, client: u64) {
        let jobs = self.hints.forget_client(client);
        for (_, engine) in self.engines.iter_mut().filter(|(_, engine)| engine.is_at_hints()) {
            let is_meant = |running: &&mut Running| jobs.contains(&running.id) && !running.is_cancelled;
            if let Some(running) = engine.running.as_mut().filter(is_meant) {
                running.is_cancelled = true;
                let cancel = EngineRequest::Cancel(running.id);
                engine.send(&cancel, Vec::new());
            }
        }
    }
}

/// A picture that is decoded ahead.
fn ahead((id, target): (WantedId, Target)) -> WantedPicture {
    WantedPicture { id, target, destination: Destination::CACHE }
}

/// A run that nobody waits for.
fn job_of(run: &HintedRun) -> Job {
    let decode = Decode {
        stream: run.stream,
        start: run.start,
        pictures: Vec::new(),
        looks: vec![Transforms::default()],
        frame_pixels: run.picture_pixels,
        decode_count: 1,
        thread_count: run.thread_count,
    };
    let (user, source, pinned) = (run.user, run.source, run.engine);
    Job { user, source, pinned, failure_count: 0, blame: Blame::default(), task: Task::Decode(decode) }
}

/// How many frames a hint is for, as far as it says so itself; else 1.
fn value_count(wanted: &Wanted) -> u64 {
    match wanted {
        Wanted::Indices(indices) => indices.len() as u64,
        Wanted::PlayedAtEach(times) => times.len() as u64,
        &Wanted::IndexRange { start, stop, step } => stop.saturating_sub(start).div_ceil(step.max(1)),
        Wanted::PlayedAt(_)
        | Wanted::PlayedInRange { .. }
        | Wanted::IndicesInMemory(_)
        | Wanted::PlayedAtEachInMemory(_) => 1,
    }
}

/// The first ones of a selection, as far as it says itself how many they are.
fn first_of(mut wanted: Wanted, count_max: usize) -> Wanted {
    match &mut wanted {
        Wanted::Indices(indices) => indices.truncate(count_max),
        Wanted::PlayedAtEach(times) => times.truncate(count_max),
        Wanted::IndexRange { start, stop, step } => {
            let end = start.saturating_add(step.saturating_mul(count_max as u64));
            *stop = end.min(*stop);
        }
        Wanted::PlayedAt(_)
        | Wanted::PlayedInRange { .. }
        | Wanted::IndicesInMemory(_)
        | Wanted::PlayedAtEachInMemory(_) => {}
    }
    wanted
}
