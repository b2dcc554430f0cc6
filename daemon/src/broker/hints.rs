//! Frames that clients have hinted at: to be decoded ahead, or decoded and not asked for yet. Pure: no clock, no I/O.
//!
//! They are grouped as runs are, by client. Each counts against its client, and against its user, until it is asked
//! for, its client goes, or nobody has asked for it in a long time: hints beyond what engines can keep are refused,
//! since what they bring would push out what was hinted at before, and is going to be asked for sooner.
//!
//! When an engine has time for them is decided in `prefetching`; what an engine keeps is its own matter.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use reeld_protocol::ids::StreamIndex;
use reeld_protocol::message::PREFETCH_FRAMES_MAX;

use super::engines::EngineKey;
use super::job::User;
use crate::link::{CatalogId, JobId, RunStart, Target, WantedId};

/// A picture that was decoded and that nobody has asked for counts no longer than this: whoever hints is a batch or
/// two ahead.
const HELD_MILLIS: u64 = 60_000;

/// Runs of one client that are looked at for one that an engine is free for: the first ones may wait for the engine
/// that has begun them.
const LOOKED_AT_MAX: usize = 16;

/// What may be decoded as one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stretch {
    source: CatalogId,
    stream: StreamIndex,
    /// None where the demuxer finds the place.
    keyframe_pts: Option<i64>,
}

/// A run that a client has hinted at.
#[derive(Clone, Debug)]
pub struct HintedRun {
    /// Whose hint it is.
    pub client: u64,
    /// For which user.
    pub user: User,
    /// The file.
    pub source: CatalogId,
    /// Its stream.
    pub stream: StreamIndex,
    /// Where decoding may begin.
    pub start: RunStart,
    /// Codec threads, a hint.
    pub thread_count: u16,
    /// Pixels of one picture.
    pub picture_pixels: u64,
    /// The engine that was at it last: it has the pictures and the warm decoder.
    pub engine: Option<EngineKey>,
    /// Being done now.
    job: Option<JobId>,
    pictures: BTreeMap<TargetKey, Hinted>,
    held_since_millis: u64,
}

/// What a client may have hinted at and not asked for, and its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintLimits {
    /// Bytes of pictures of one client.
    pub client_bytes: u64,
    /// Bytes of pictures of all clients of one user.
    pub user_bytes: u64,
}

/// A target as a key, in the order in which pictures come out of a decoder.
type TargetKey = (bool, i64);

#[derive(Clone, Copy, Debug)]
struct Hinted {
    id: WantedId,
    target: Target,
    /// It was decoded.
    is_held: bool,
}

#[derive(Debug)]
struct Account {
    user: User,
    picture_count: u64,
    bytes: u64,
    /// When one of its runs was handed out last, counted over all.
    served: u64,
    /// Runs with pictures that are not decoded, in the order of coming.
    waiting: BTreeSet<u64>,
}

/// All hints.
#[derive(Debug, Default)]
pub struct Hints {
    runs: BTreeMap<u64, HintedRun>,
    by_stretch: HashMap<Stretch, BTreeSet<u64>>,
    by_job: HashMap<JobId, u64>,
    accounts: BTreeMap<u64, Account>,
    next_run: u64,
    served_count: u64,
}

impl Stretch {
    /// That of a run.
    pub fn new(source: CatalogId, stream: StreamIndex, start: RunStart) -> Stretch {
        let keyframe_pts = match start {
            RunStart::Keyframe(pts) => Some(pts),
            RunStart::Demuxer => None,
        };
        Stretch { source, stream, keyframe_pts }
    }
}

impl HintedRun {
    /// Without pictures.
    pub fn new(client: u64, user: User, place: (CatalogId, StreamIndex, RunStart), pixels: u64) -> HintedRun {
        let (source, stream, start) = place;
        HintedRun {
            client,
            user,
            source,
            stream,
            start,
            thread_count: 0,
            picture_pixels: pixels,
            engine: None,
            job: None,
            pictures: BTreeMap::new(),
            held_since_millis: 0,
        }
    }

    fn stretch(&self) -> Stretch {
        Stretch::new(self.source, self.stream, self.start)
    }

    fn picture_bytes(&self) -> u64 {
        picture_bytes(self.picture_pixels)
    }

    fn is_waiting(&self) -> bool {
        self.pictures.values().any(|hinted| !hinted.is_held)
    }
}

/// Bytes that a decoded picture takes, about: most videos have 1.5 to a pixel, those of more than 8 bits 3.
pub fn picture_bytes(pixels: u64) -> u64 {
    pixels.saturating_mul(2).max(1)
}

impl Hints {
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Pictures that are not decoded yet.
    pub fn waiting_count(&self) -> u64 {
        let pictures = self.runs.values().flat_map(|run| run.pictures.values());
        pictures.filter(|hinted| !hinted.is_held).count() as u64
    }

    /// Clients of whom it knows something, for the audit.
    pub fn clients(&self) -> impl Iterator<Item = u64> {
        self.accounts.keys().copied()
    }

    /// Users with pictures that are not decoded and are not being decoded.
    pub fn waiting_users(&self) -> BTreeSet<User> {
        let is_waiting = |account: &&Account| !account.waiting.is_empty();
        self.accounts.values().filter(is_waiting).map(|account| account.user).collect()
    }

    /// How many more pictures of this size a client may hint at.
    pub fn room(&self, client: u64, user: User, pixels: u64, limits: HintLimits) -> usize {
        let own = self.accounts.get(&client);
        let (count, bytes) = own.map_or((0, 0), |account| (account.picture_count, account.bytes));
        let of_user = self.accounts.values().filter(|account| account.user == user);
        let user_bytes: u64 = of_user.map(|account| account.bytes).sum();
        let free_bytes =
            limits.client_bytes.saturating_sub(bytes).min(limits.user_bytes.saturating_sub(user_bytes));
        let free_count = (PREFETCH_FRAMES_MAX as u64).saturating_sub(count);
        free_count.min(free_bytes / picture_bytes(pixels)) as usize
    }

    /// Adds pictures, with what they are called. Those that the client has hinted at before are looked after once
    /// more: they may be gone by now.
    pub fn add(&mut self, new: HintedRun, pictures: impl IntoIterator<Item = (WantedId, Target)>) {
        let (client, stretch) = (new.client, new.stretch());
        let known = self.by_stretch.get(&stretch).into_iter().flatten().copied();
        let known = known.into_iter().find(|key| self.runs[key].client == client);
        let key = known.unwrap_or_else(|| {
            self.next_run += 1;
            self.by_stretch.entry(stretch).or_default().insert(self.next_run);
            self.runs.insert(self.next_run, new);
            self.next_run
        });
        self.change(key, |run| {
            for (id, target) in pictures {
                run.pictures.insert(key_of(target), Hinted { id, target, is_held: false });
            }
        });
    }

    /// The run whose turn it is among those that `is_placeable`: that of the client that was served longest ago.
    pub fn next(&self, mut is_placeable: impl FnMut(&HintedRun) -> bool) -> Option<u64> {
        let mut accounts: Vec<&Account> =
            self.accounts.values().filter(|account| !account.waiting.is_empty()).collect();
        accounts.sort_by_key(|account| account.served);
        let is_free = |run: &HintedRun| {
            // One engine at a stretch: who joins it shall not find another one there.
            let others = self.by_stretch.get(&run.stretch()).into_iter().flatten();
            others.into_iter().all(|key| self.runs[key].job.is_none())
        };
        accounts.into_iter().find_map(|account| {
            let mut first = account.waiting.iter().take(LOOKED_AT_MAX);
            first.find(|key| is_free(&self.runs[key]) && is_placeable(&self.runs[key])).copied()
        })
    }

    /// One run.
    pub fn get(&self, run: u64) -> Option<&HintedRun> {
        self.runs.get(&run)
    }

    /// A run is handed to an engine. Returns at most so many of its pictures, in the order of their targets.
    pub fn begin(
        &mut self,
        key: u64,
        job: JobId,
        engine: EngineKey,
        count_max: usize,
    ) -> Vec<(WantedId, Target)> {
        let Some(run) = self.runs.get_mut(&key) else { return Vec::new() };
        (run.job, run.engine) = (Some(job), Some(engine));
        self.by_job.insert(job, key);
        let waiting = run.pictures.values().filter(|hinted| !hinted.is_held);
        let begun = waiting.map(|hinted| (hinted.id, hinted.target)).take(count_max).collect();
        self.served_count += 1;
        if let Some(account) = self.accounts.get_mut(&run.client) {
            account.served = self.served_count;
        }
        self.change(key, |_| {});
        begun
    }

    /// Pictures up to `last` that an engine is to keep when a run of the same stretch brings them on the way. Left out
    /// are those that another engine is at, or has begun.
    pub fn on_the_way(
        &mut self,
        user: User,
        stretch: Stretch,
        last: Target,
        engine: EngineKey,
        count_max: usize,
    ) -> Vec<(WantedId, Target)> {
        let keys: Vec<u64> = self.by_stretch.get(&stretch).into_iter().flatten().copied().collect();
        let mut found = Vec::new();
        for key in keys {
            let Some(run) = self.runs.get_mut(&key) else { continue };
            if run.user != user || run.job.is_some() || run.engine.is_some_and(|at| at != engine) {
                continue;
            }
            let before = found.len();
            let passed = run.pictures.range(..=key_of(last)).map(|(_, hinted)| hinted);
            let waiting = passed.filter(|hinted| !hinted.is_held).map(|hinted| (hinted.id, hinted.target));
            found.extend(waiting.take(count_max - before));
            if found.len() > before {
                run.engine = Some(engine);
            }
        }
        found
    }

    /// A run that somebody waited for has ended, and brought some of these on the way.
    pub fn brought(&mut self, stretch: Stretch, finished: &[WantedId], now: u64) {
        let keys: Vec<u64> = self.by_stretch.get(&stretch).into_iter().flatten().copied().collect();
        let finished: BTreeSet<WantedId> = finished.iter().copied().collect();
        for key in keys {
            self.change(key, |run| {
                for hinted in run.pictures.values_mut().filter(|hinted| finished.contains(&hinted.id)) {
                    hinted.is_held = true;
                    run.held_since_millis = now;
                }
            });
        }
    }

    /// An engine has answered for a run: these pictures are kept, and these can never be had. Where it `is_stalled`,
    /// none of them can.
    pub fn ended(&mut self, job: JobId, kept: &[WantedId], lost: &[WantedId], is_stalled: bool, now: u64) {
        let Some(key) = self.by_job.remove(&job) else { return };
        let kept: BTreeSet<WantedId> = kept.iter().copied().collect();
        let lost: BTreeSet<WantedId> = lost.iter().copied().collect();
        self.change(key, |run| {
            run.job = None;
            run.held_since_millis = now;
            for hinted in run.pictures.values_mut() {
                hinted.is_held |= kept.contains(&hinted.id);
            }
            run.pictures.retain(|_, hinted| hinted.is_held || !(is_stalled || lost.contains(&hinted.id)));
        });
    }

    /// Somebody asks for pictures. Returns the engine where decoding them has begun, if any was hinted at.
    pub fn asked(&mut self, stretch: Stretch, targets: impl Iterator<Item = Target>) -> Option<EngineKey> {
        let keys: Vec<u64> = self.by_stretch.get(&stretch)?.iter().copied().collect();
        let targets: BTreeSet<TargetKey> = targets.map(key_of).collect();
        let mut engine = None;
        for key in keys {
            self.change(key, |run| {
                let before = run.pictures.len();
                run.pictures.retain(|target, _| !targets.contains(target));
                if run.pictures.len() < before {
                    engine = engine.or(run.engine);
                }
            });
        }
        engine
    }

    /// An engine has ended: what it kept is gone, and what made it end is not tried again.
    pub fn forget_engine(&mut self, engine: EngineKey) {
        let is_its = |run: &HintedRun| run.engine == Some(engine);
        let keys: Vec<u64> = self.runs.iter().filter(|(_, run)| is_its(run)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(job) = self.runs[&key].job {
                self.by_job.remove(&job);
            }
            self.change(key, |run| {
                let was_running = run.job.take().is_some();
                run.engine = None;
                run.pictures.retain(|_, hinted| !hinted.is_held && !was_running);
            });
        }
    }

    /// Forgets a run, whose file is gone.
    pub fn forget_run(&mut self, key: u64) {
        self.change(key, |run| run.pictures.clear());
    }

    /// Forgets what a client has hinted at. Returns the jobs that are not worth going on with.
    pub fn forget_client(&mut self, client: u64) -> Vec<JobId> {
        let is_its = |run: &HintedRun| run.client == client;
        let keys: Vec<u64> = self.runs.iter().filter(|(_, run)| is_its(run)).map(|(key, _)| *key).collect();
        let jobs: Vec<JobId> = keys.iter().filter_map(|key| self.runs[key].job).collect();
        self.by_job.retain(|job, _| !jobs.contains(job));
        for key in keys {
            self.change(key, |run| {
                run.job = None;
                run.pictures.clear();
            });
        }
        jobs
    }

    /// Forgets pictures that nobody has asked for in a long time.
    pub fn expire(&mut self, now_millis: u64) {
        let is_due = |run: &HintedRun| {
            run.job.is_none()
                && now_millis.saturating_sub(run.held_since_millis) >= HELD_MILLIS
                && run.pictures.values().any(|hinted| hinted.is_held)
        };
        let keys: Vec<u64> = self.runs.iter().filter(|(_, run)| is_due(run)).map(|(key, _)| *key).collect();
        for key in keys {
            self.change(key, |run| run.pictures.retain(|_, hinted| !hinted.is_held));
        }
    }

    /// Lets `change` alter a run, and keeps accounts of it. A run without pictures that nobody is at is forgotten.
    fn change(&mut self, key: u64, change: impl FnOnce(&mut HintedRun)) {
        let Some(run) = self.runs.get_mut(&key) else { return };
        let (client, user, stretch) = (run.client, run.user, run.stretch());
        let new = || Account { user, picture_count: 0, bytes: 0, served: 0, waiting: BTreeSet::new() };
        let account = self.accounts.entry(client).or_insert_with(new);
        // It did not count before it had pictures.
        let before = run.pictures.len() as u64;
        change(run);
        let after = run.pictures.len() as u64;
        let bytes = run.picture_bytes();
        account.picture_count = account.picture_count + after - before;
        account.bytes = (account.bytes + after.saturating_mul(bytes)) - before.saturating_mul(bytes);
        if run.job.is_none() && run.is_waiting() {
            account.waiting.insert(key);
        } else {
            account.waiting.remove(&key);
        }
        if after == 0 && run.job.is_none() {
            self.runs.remove(&key);
            if let Some(keys) = self.by_stretch.get_mut(&stretch) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_stretch.remove(&stretch);
                }
            }
        }
        let has_runs = account.picture_count > 0 || self.runs.values().any(|run| run.client == client);
        if !has_runs {
            self.accounts.remove(&client);
        }
    }

    /// That what is counted is there.
    pub fn check(&self) -> Result<(), String> {
        let mut counted: BTreeMap<u64, (u64, u64, BTreeSet<u64>)> = BTreeMap::new();
        for (key, run) in &self.runs {
            let of_client = counted.entry(run.client).or_default();
            of_client.0 += run.pictures.len() as u64;
            of_client.1 += run.pictures.len() as u64 * run.picture_bytes();
            if run.job.is_none() && run.is_waiting() {
                of_client.2.insert(*key);
            }
            if run.pictures.is_empty() && run.job.is_none() {
                return Err(format!("hinted run {key} has no pictures"));
            }
            if run.job.is_some_and(|job| self.by_job.get(&job) != Some(key)) {
                return Err(format!("hinted run {key} is at work, but its job is not known"));
            }
            if !self.by_stretch.get(&run.stretch()).is_some_and(|keys| keys.contains(key)) {
                return Err(format!("hinted run {key} cannot be found"));
            }
        }
        let known = self.accounts.iter();
        let known: BTreeMap<_, _> = known
            .map(|(&client, account)| {
                (client, (account.picture_count, account.bytes, account.waiting.clone()))
            })
            .collect();
        let found: usize = self.by_stretch.values().map(BTreeSet::len).sum();
        if known != counted || found != self.runs.len() || self.by_job.len() > self.runs.len() {
            return Err(format!("hints are {counted:?}, but {known:?} are counted"));
        }
        Ok(())
    }
}

fn key_of(target: Target) -> TargetKey {
    match target {
        Target::AtOrAfter(pts) => (false, pts),
        // In the order of the times, none of which is negative before the begin of a stream that has times.
        Target::PlayedAt(seconds) => (true, seconds.to_bits() as i64),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USER: User = User { uid: 0, connection: None };
    const STREAM: StreamIndex = StreamIndex(0);
    const ENGINE: EngineKey = EngineKey(4);
    const PIXELS: u64 = 50;
    const LIMITS: HintLimits = HintLimits { client_bytes: 1000, user_bytes: 1500 };

    fn run(client: u64, keyframe: i64) -> HintedRun {
        HintedRun::new(client, USER, (CatalogId(1), STREAM, RunStart::Keyframe(keyframe)), PIXELS)
    }

    fn stretch(keyframe: i64) -> Stretch {
        Stretch::new(CatalogId(1), STREAM, RunStart::Keyframe(keyframe))
    }

    fn pictures(pts: std::ops::Range<i64>) -> impl Iterator<Item = (WantedId, Target)> {
        pts.map(|pts| (WantedId(pts as u64), Target::AtOrAfter(pts)))
    }

    fn targets(pts: std::ops::Range<i64>) -> impl Iterator<Item = Target> {
        pictures(pts).map(|(_, target)| target)
    }

    fn ids(pictures: &[(WantedId, Target)]) -> Vec<WantedId> {
        pictures.iter().map(|(id, _)| *id).collect()
    }

    /// Decodes the next run.
    fn decode(hints: &mut Hints, job: u64) -> u64 {
        let key = hints.next(|_| true).unwrap();
        let begun = ids(&hints.begin(key, JobId(job), ENGINE, 100));
        hints.ended(JobId(job), &begun, &[], false, 0);
        key
    }

    #[test]
    fn room_is_what_count_client_and_user_leave() {
        let mut hints = Hints::default();
        assert_eq!(hints.room(1, USER, PIXELS, LIMITS), 10);
        hints.add(run(1, 0), pictures(0..8));
        assert_eq!(hints.room(1, USER, PIXELS, LIMITS), 2);
        assert_eq!(hints.room(2, USER, PIXELS, LIMITS), 7);
        assert_eq!(hints.room(2, User { uid: 9, connection: None }, PIXELS, LIMITS), 10);
        let much = HintLimits { client_bytes: u64::MAX, user_bytes: u64::MAX };
        assert_eq!(hints.room(1, USER, PIXELS, much), PREFETCH_FRAMES_MAX - 8);
    }

    #[test]
    fn decoded_pictures_count_until_they_are_asked_for() {
        let mut hints = Hints::default();
        hints.add(run(1, 0), pictures(0..8));
        decode(&mut hints, 1);
        assert_eq!((hints.waiting_count(), hints.room(1, USER, PIXELS, LIMITS)), (0, 2));
        assert_eq!(hints.asked(stretch(0), targets(2..5)), Some(ENGINE));
        assert_eq!(hints.room(1, USER, PIXELS, LIMITS), 5);
        assert_eq!(hints.asked(stretch(0), targets(2..5)), None);
        assert_eq!(hints.asked(stretch(0), targets(0..8)), Some(ENGINE));
        assert!(hints.is_empty());
    }

    #[test]
    fn pictures_that_are_asked_for_first_are_not_decoded_ahead() {
        let mut hints = Hints::default();
        hints.add(run(1, 0), pictures(0..8));
        assert_eq!(hints.asked(stretch(0), targets(0..7)), None);
        let key = hints.next(|_| true).unwrap();
        assert_eq!(ids(&hints.begin(key, JobId(1), ENGINE, 100)), [WantedId(7)]);
    }

    #[test]
    fn clients_are_served_in_turn_and_each_in_the_order_of_its_hints() {
        let mut hints = Hints::default();
        for keyframe in [30, 0, 20] {
            hints.add(run(1, keyframe), pictures(keyframe..keyframe + 1));
        }
        hints.add(run(2, 50), pictures(50..51));
        let order: Vec<u64> = (1..5).map(|job| decode(&mut hints, job)).collect();
        assert_eq!(order, [1, 4, 2, 3]);
    }

    #[test]
    fn stretch_is_done_by_one_engine_at_a_time() {
        let mut hints = Hints::default();
        hints.add(run(1, 0), pictures(0..1));
        hints.add(run(2, 0), pictures(1..2));
        let key = hints.next(|_| true).unwrap();
        hints.begin(key, JobId(1), ENGINE, 100);
        assert_eq!(hints.next(|_| true), None);
        hints.ended(JobId(1), &[WantedId(0)], &[], false, 0);
        assert_eq!(hints.next(|_| true), Some(2));
    }

    #[test]
    fn pictures_on_the_way_of_a_run_are_decoded_once() {
        let mut hints = Hints::default();
        let other = User { uid: 9, connection: None };
        hints.add(run(1, 0), pictures(0..8));
        hints.add(run(2, 0), pictures(4..12));
        let mut along = |user, engine| {
            let last = Target::AtOrAfter(5);
            ids(&hints.on_the_way(user, stretch(0), last, EngineKey(engine), 7))
        };
        assert_eq!(along(other, 4), []);
        assert_eq!(along(USER, 4), [0, 1, 2, 3, 4, 5, 4].map(WantedId));
        // It has begun them.
        assert_eq!(along(USER, 5), []);
        hints.brought(stretch(0), &[0, 1, 2, 3].map(WantedId), 0);
        assert_eq!(hints.waiting_count(), 12);
        let key = hints.next(|_| true).unwrap();
        assert_eq!(ids(&hints.begin(key, JobId(1), ENGINE, 100)), [4, 5, 6, 7].map(WantedId));
        let last = Target::AtOrAfter(20);
        assert_eq!(ids(&hints.on_the_way(USER, stretch(0), last, ENGINE, 2)), [4, 5].map(WantedId));
    }

    #[test]
    fn second_hint_at_the_same_has_it_looked_after_and_counts_once() {
        let mut hints = Hints::default();
        hints.add(run(1, 0), pictures(0..8));
        decode(&mut hints, 1);
        hints.add(run(1, 0), pictures(0..8));
        assert_eq!((hints.waiting_count(), hints.room(1, USER, PIXELS, LIMITS)), (8, 2));
    }

    #[test]
    fn pictures_of_an_engine_that_has_ended_are_gone() {
        let mut hints = Hints::default();
        hints.add(run(1, 0), pictures(0..8));
        hints.add(run(1, 20), pictures(20..21));
        decode(&mut hints, 1);
        hints.forget_engine(ENGINE);
        assert_eq!(hints.asked(stretch(0), targets(0..8)), None);
        assert_eq!(hints.waiting_count(), 1);
        hints.forget_client(1);
        assert!(hints.is_empty());
    }

    proptest! {
        #[test]
        fn accounts_hold_whatever_happens(
            steps in proptest::collection::vec((0..9u8, 0..3u64, 0..4i64, 0..10i64), 0..80),
        ) {
            let mut hints = Hints::default();
            let mut jobs: Vec<(JobId, Vec<WantedId>)> = Vec::new();
            for (number, (step, client, keyframe, from)) in steps.into_iter().enumerate() {
                let now = number as u64 * 10_000;
                match step {
                    0 | 1 => hints.add(run(client, keyframe), pictures(from..from + 3)),
                    2 => {
                        hints.asked(stretch(keyframe), targets(from..from + 3));
                    },
                    3 | 4 => {
                        if let Some(key) = hints.next(|run| run.client >= client) {
                            let (job, engine) = (JobId(number as u64), EngineKey(client));
                            jobs.push((job, ids(&hints.begin(key, job, engine, 2))));
                        }
                    }
                    5 => {
                        if let Some((job, ids)) = jobs.pop() {
                            let (kept, lost) = ids.split_at(ids.len().min(from as usize));
                            hints.ended(job, kept, lost, keyframe == 0, now);
                        }
                    }
                    6 => hints.expire(now),
                    7 => {
                        let last = Target::AtOrAfter(from);
                        let along = hints.on_the_way(USER, stretch(keyframe), last, EngineKey(client), 2);
                        hints.brought(stretch(keyframe), &ids(&along), now);
                    }
                    _ if keyframe == 0 => hints.forget_engine(EngineKey(client)),
                    _ if keyframe == 1 => drop(hints.forget_client(client)),
                    _ => {}
                }
                prop_assert_eq!(hints.check(), Ok(()));
            }
            for client in 0..3 {
                hints.forget_client(client);
            }
            prop_assert!(hints.is_empty());
            prop_assert_eq!((hints.clients().count(), hints.by_stretch.len(), hints.by_job.len()), (0, 0, 0));
        }
    }
}
