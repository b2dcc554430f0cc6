//! Carries out one run: pictures from the cache, else from a warm session, else from a seek; each is converted
//! into its slot at once. A run ends when its turn is over, at a sample boundary, and is resumed by asking
//! for the rest again: the session stays where it is.
//!
//! What does not live here: messages. The caller decides what happens between two steps.

use std::time::{Duration, Instant};

use super::device::{Device, Look, Picture};
use super::failure::Failure;
use super::media::Rotation;
use super::picture_cache::{Form, HitForm, PictureCache, StreamKey};
use super::session::{Session, Step, StreamFacts};
use super::sessions::SessionKey;
use super::wanted::{self, Pending, Shown, Wanted};
use super::workshop::Workshop;
use crate::link::{Looks, Run, RunStart, Target, WantedId, WantedPicture};

/// How long a run may decode before others get their turn.
const TURN: Duration = Duration::from_millis(20);

/// Frames up to this size are kept in their final form once they were asked for twice. Such a hit takes 14
/// instead of 120 microseconds at 224x224, and 40 instead of 390 at 480x270. At 1280x720 the copy itself
/// takes half as long as the conversion and the bytes are twice the native picture's.
const CONVERTED_BYTES_MAX: u64 = 512 * 1024;

/// A run in progress.
pub struct RunInProgress<D: Device> {
    key: SessionKey,
    start: RunStart,
    thread_count: u16,
    facts: StreamFacts,
    pending: Pending,
    /// Nobody waits for these: kept when they come out on the way to those for whom somebody does, and else left.
    along: Pending,
    /// How many of these somebody waits for; the others are decoded ahead.
    awaited_count: usize,
    /// Pictures that somebody waits for joined it on the way.
    was_extended: bool,
    session: Option<Session<D>>,
    /// The target that the session is on its way to.
    aim: Option<Target>,
    /// Whether pictures that nobody wants are kept too.
    keeps_all: bool,
    /// When the turn is over.
    pause: Instant,
    /// A picture came out, or was settled.
    has_headway: bool,
    outcome: Outcome,
}

/// What a run has brought so far.
#[derive(Debug, Default)]
pub struct Outcome {
    /// These are in their slots.
    pub finished: Vec<WantedId>,
    /// These can never be had.
    pub failed: Vec<(WantedId, Failure)>,
}

impl Outcome {
    /// Takes out those for which memory was short.
    pub fn take_out_of_memory(&mut self) -> Vec<WantedId> {
        let (short, failed): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.failed).into_iter().partition(|(_, failure)| failure.is_out_of_memory());
        self.failed = failed;
        short.into_iter().map(|(id, _)| id).collect()
    }
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    GoesOn,
    /// Nothing is left to do, or the turn is over.
    Ended,
}

impl<D: Device> RunInProgress<D> {
    /// Nothing is decoded yet.
    pub fn new(workshop: &mut Workshop<D>, run: Run) -> Result<Self, Failure> {
        let facts = workshop.sources.facts(run.source, run.stream.0 as usize)?;
        let wanted = Wanted::all(run.wanted, run.looks)?;
        let (awaited, ahead): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_awaited);
        let awaited_count = awaited.len();
        let (wanted, along) = if awaited_count > 0 { (awaited, ahead) } else { (ahead, Vec::new()) };
        Ok(RunInProgress {
            key: SessionKey { source: run.source, stream: run.stream },
            start: run.start,
            thread_count: run.thread_count.max(1),
            facts,
            pending: Pending::new(facts.time_base, wanted),
            along: Pending::new(facts.time_base, along),
            awaited_count,
            was_extended: false,
            session: None,
            aim: None,
            keeps_all: false,
            pause: Instant::now() + TURN,
            has_headway: false,
            outcome: Outcome::default(),
        })
    }

    /// Adds pictures that the run has not passed; the others are left for another run. One that decodes ahead then
    /// ends as soon as nobody waits for it, so that these are told and the others have their turn.
    pub fn extend(&mut self, wanted: Vec<WantedPicture>, looks: Looks) {
        let ids: Vec<WantedId> = wanted.iter().map(|wanted| wanted.id).collect();
        let wanted = match Wanted::all(wanted, looks) {
            Ok(wanted) => wanted,
            Err(failure) => {
                self.outcome.failed.extend(ids.into_iter().map(|id| (id, failure.clone())));
                return;
            }
        };
        let session = self.session.as_ref();
        let start = self.start;
        let ahead = wanted.into_iter().filter(|wanted| match start {
            RunStart::Keyframe(_) => {
                session.is_none_or(|session| session.is_before(start, wanted.picture.target))
            }
            RunStart::Demuxer => true,
        });
        let ahead: Vec<Wanted> = ahead.collect();
        self.awaited_count += ahead.len();
        self.was_extended = true;
        self.pending.extend(ahead);
    }

    /// One step forward: a picture from the cache, or a sample or picture of the decoder's.
    pub fn step(&mut self, workshop: &mut Workshop<D>) -> Progress {
        let Some(first) = self.pending.first().cloned() else {
            return Progress::Ended;
        };
        if self.was_extended && self.awaited_count == 0 {
            return Progress::Ended;
        }
        match self.write_cached(workshop, &first) {
            Ok(true) => {
                workshop.cache_hits += u64::from(is_awaited(&first));
                self.settle_first(Ok(()));
            }
            Ok(false) => self.decode(workshop, first.picture.target),
            Err(failure) => self.settle_first(Err(failure)),
        }
        // However short the processor's time: a turn brings a picture, so that each run comes to its end.
        // And one whose decoder has all that is left is finished at once: it cannot be gone on with.
        let is_cut = self.session.as_ref().is_some_and(Session::is_cut);
        let is_over = self.has_headway && !is_cut && Instant::now() >= self.pause;
        if is_over { Progress::Ended } else { Progress::GoesOn }
    }

    /// Puts the session back and hands out what was done, after a last look at the file.
    pub fn end(self, workshop: &mut Workshop<D>) -> Outcome {
        let RunInProgress { key, awaited_count, session, mut outcome, .. } = self;
        if let Some(session) = session {
            // Where nobody waits, the place among the warm ones is rather for those for whom somebody does.
            workshop.sessions.keep(key, session, awaited_count > 0);
        }
        if (!outcome.finished.is_empty() || !outcome.failed.is_empty())
            && let Err(failure) = workshop.sources.check_unchanged(key.source)
        {
            // What failed did so because of the change: damage is not the file's fault then.
            workshop.forget(key.source);
            let failed = outcome.failed.drain(..).map(|(id, _)| id);
            let all: Vec<WantedId> = outcome.finished.drain(..).chain(failed).collect();
            outcome.failed = all.into_iter().map(|id| (id, failure.clone())).collect();
        }
        outcome
    }

    fn decode(&mut self, workshop: &mut Workshop<D>, target: Target) {
        match self.step_towards(workshop, target) {
            Ok(Step::Picture(picture, shown)) => self.receive(workshop, picture, shown),
            Ok(Step::Fed) => {}
            Ok(Step::Skipped) => workshop.samples_skipped += 1,
            Ok(Step::Damaged) => self.begin_again(workshop, target),
            Ok(Step::End) => self.go_further_back(target),
            Err(failure) => {
                self.session = None;
                self.fail(&failure);
            }
        }
    }

    /// A step of the session, which is on its way to the first wanted picture.
    fn step_towards(
        &mut self,
        workshop: &mut Workshop<D>,
        target: Target,
    ) -> Result<Step<D::Picture>, Failure> {
        // With an index, one seek serves the whole run. Without, each target may be worth a seek of its own,
        // which is decided once for each: the demuxer does not always lead to before the target.
        let is_aimed = match self.start {
            RunStart::Keyframe(_) => self.aim.is_some(),
            RunStart::Demuxer => self.aim == Some(target),
        };
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.find_session(workshop, target)?,
        };
        if !is_aimed && !session.is_before(self.start, target) {
            self.keeps_all = self.is_revisit(workshop) && !session.has_only_lone_pictures();
            self.seek(workshop, &mut session, target)?;
        }
        if !is_aimed {
            self.along.take_if(|wanted| !session.is_before(self.start, wanted.picture.target));
        }
        self.aim = Some(target);
        let next_wanted = (!self.keeps_all).then(|| self.next_on_the_way(target));
        // A stretch that was visited before will be again, and hints are followed by more of what lies behind.
        let is_cut_sensible = !self.keeps_all && self.awaited_count > 0 && {
            let (way, saved) = session.cost_of_cut();
            workshop.continuations.are_rarer_than(saved, way)
        };
        self.session.insert(session).step(next_wanted, is_cut_sensible.then_some(&self.pending))
    }

    fn seek(
        &self,
        workshop: &mut Workshop<D>,
        session: &mut Session<D>,
        target: Target,
    ) -> Result<(), Failure> {
        let last = self.pending.last().map_or(target, |last| last.picture.target);
        session.prepare(&mut workshop.device, self.start, (target, last), self.thread_count)?;
        if !session.can_seek_to(target) {
            session.reopen(&mut workshop.device, workshop.sources.take_input(self.key.source)?)?;
        }
        session.seek(self.start, target)
    }

    /// The first picture on the way to `target` that is kept.
    fn next_on_the_way(&self, target: Target) -> Target {
        let cursor = |target| wanted::cursor(target, self.facts.time_base);
        let next = self.along.first().map(|wanted| wanted.picture.target);
        next.filter(|next| cursor(*next) < cursor(target)).unwrap_or(target)
    }

    /// Goes back to where the run begins.
    fn begin_again(&mut self, workshop: &mut Workshop<D>, target: Target) {
        let Some(mut session) = self.session.take() else { return };
        match self.seek(workshop, &mut session, target) {
            Ok(()) => self.session = Some(session),
            Err(failure) => self.fail(&failure),
        }
    }

    /// The index knows of pictures that did not come out before the end.
    fn go_further_back(&mut self, target: Target) {
        let is_known = matches!(self.start, RunStart::Keyframe(_));
        let session = self.session.as_mut().filter(|_| is_known);
        match session.map_or(Ok(false), |session| session.seek_further_back(self.start, target)) {
            Ok(true) => {}
            Ok(false) => self.fail(&Failure::NoMorePictures),
            Err(failure) => self.fail(&failure),
        }
    }

    /// Keeping a picture costs its decoder fresh memory, which makes decoding 20 to 45 % dearer. So those on
    /// the way are kept only where the same way is gone a second time.
    fn is_revisit(&self, workshop: &mut Workshop<D>) -> bool {
        match self.start {
            RunStart::Keyframe(keyframe) if self.awaited_count > 0 => {
                workshop.revisits.note(self.stream(), keyframe)
            }
            // What is decoded ahead is known by name, and is to push out as little as possible.
            RunStart::Keyframe(_) | RunStart::Demuxer => false,
        }
    }

    fn find_session(&self, workshop: &mut Workshop<D>, target: Target) -> Result<Session<D>, Failure> {
        if let Some(went_on) = workshop.sessions.would_go_on(self.key, self.start, target) {
            workshop.continuations.note(went_on);
        }
        if let Some(session) = workshop.sessions.take(self.key, self.start, target) {
            return Ok(session);
        }
        let input = workshop.sources.take_input(self.key.source)?;
        Session::open(&mut workshop.device, input, self.key.stream.0 as usize, self.thread_count)
    }

    fn receive(&mut self, workshop: &mut Workshop<D>, picture: D::Picture, shown: Shown) {
        workshop.pictures_decoded += 1;
        self.has_headway = true;
        let mut satisfied = Vec::new();
        if self.is_in_run(shown) {
            satisfied = self.pending.take_satisfied(shown);
            satisfied.append(&mut self.along.take_satisfied(shown));
        }
        let is_worth_keeping = self.keeps_all || !satisfied.is_empty();
        let is_ahead = !satisfied.is_empty() && !satisfied.iter().any(is_awaited);
        for wanted in satisfied {
            let written = self.write(workshop, &picture, shown, &wanted);
            self.settle(&wanted, written);
        }
        let bytes = picture.bytes();
        if is_ahead {
            let is_kept = workshop.cache.insert_ahead(self.stream(), shown, Form::Native(picture, bytes));
            workshop.pictures_prefetched += u64::from(is_kept);
        } else if is_worth_keeping {
            workshop.cache.insert(self.stream(), shown, Form::Native(picture, bytes));
        }
    }

    /// False for pictures that only come out because a warm session was used instead of a seek.
    fn is_in_run(&self, shown: Shown) -> bool {
        match self.start {
            RunStart::Keyframe(keyframe) => shown.pts >= keyframe,
            RunStart::Demuxer => true,
        }
    }

    fn write(
        &self,
        workshop: &mut Workshop<D>,
        picture: &D::Picture,
        shown: Shown,
        wanted: &Wanted,
    ) -> Result<(), Failure> {
        if !is_awaited(wanted) {
            return Ok(());
        }
        let destination = &wanted.picture.destination;
        let look = look(self.facts.rotation, wanted);
        let pixels = workshop.arenas.pixels(destination, look.frame_bytes())?;
        let begin = Instant::now();
        workshop.device.convert(picture, &look, pixels)?;
        workshop.conversion_time += begin.elapsed();
        workshop.arenas.write_times(destination, shown, self.facts.time_base)
    }

    /// Writes a wanted picture if the cache has it. False if not.
    fn write_cached(&self, workshop: &mut Workshop<D>, wanted: &Wanted) -> Result<bool, Failure> {
        let stream = self.stream();
        let destination = &wanted.picture.destination;
        let look = look(self.facts.rotation, wanted);
        let pts = self.cached_pts(&workshop.cache, wanted.picture.target);
        if !is_awaited(wanted) {
            return Ok(pts.is_some_and(|pts| workshop.cache.refresh(stream, pts)));
        }
        let Some(hit) = pts.and_then(|pts| workshop.cache.find(stream, pts, &look)) else {
            return Ok(false);
        };
        workshop.prefetch_hits += u64::from(hit.was_ahead);
        let shown = hit.shown;
        let pixels = workshop.arenas.pixels(destination, look.frame_bytes())?;
        let mut converted = None;
        let begin = Instant::now();
        match hit.form {
            HitForm::Converted(bytes) => pixels.copy_from_slice(bytes),
            HitForm::Native(picture) if look.frame_bytes() <= CONVERTED_BYTES_MAX => {
                let mut bytes = vec![0; pixels.len()].into_boxed_slice();
                workshop.device.convert(picture, &look, &mut bytes)?;
                pixels.copy_from_slice(&bytes);
                converted = Some(bytes);
            }
            HitForm::Native(picture) => workshop.device.convert(picture, &look, pixels)?,
        }
        workshop.conversion_time += begin.elapsed();
        workshop.arenas.write_times(destination, shown, self.facts.time_base)?;
        if let Some(bytes) = converted {
            workshop.cache.insert(stream, shown, Form::Converted(look, bytes));
        }
        Ok(true)
    }

    /// With an index, all pictures that are left lie behind the same damage or end. Without, others may still
    /// be reached by a seek of their own.
    fn fail(&mut self, failure: &Failure) {
        self.aim = None;
        let lost = match self.start {
            RunStart::Keyframe(_) => self.pending.take_all(),
            RunStart::Demuxer => self.pending.take_first(),
        };
        self.awaited_count -= lost.iter().filter(|wanted| is_awaited(wanted)).count();
        self.outcome.failed.extend(lost.into_iter().map(|wanted| (wanted.picture.id, failure.clone())));
    }

    fn settle_first(&mut self, written: Result<(), Failure>) {
        if let Some(first) = self.pending.take_first().first() {
            self.settle(first, written);
        }
    }

    fn settle(&mut self, wanted: &Wanted, written: Result<(), Failure>) {
        self.has_headway = true;
        self.awaited_count -= usize::from(is_awaited(wanted));
        let id = wanted.picture.id;
        match written {
            Ok(()) => self.outcome.finished.push(id),
            Err(failure) => self.outcome.failed.push((id, failure)),
        }
    }

    /// The picture that `target` means, if it is cached and decoding would bring the same. Of one that begins
    /// after the target nobody knows whether another comes before it; and one that is shown at the target is
    /// only meant if no earlier one still is.
    fn cached_pts(&self, cache: &PictureCache<D::Picture, Look>, target: Target) -> Option<i64> {
        let stream = self.stream();
        let time_base = self.facts.time_base;
        let cursor = wanted::cursor(target, time_base);
        match target {
            Target::AtOrAfter(pts) => cache.contains(stream, pts).then_some(pts),
            Target::PlayedAt(seconds) => cache.find_pts(stream, cursor, |shown| {
                let is_shown = time_base.seconds(shown.pts) <= seconds
                    && seconds < time_base.seconds(shown.end())
                    && time_base.seconds(shown.earlier_end) <= seconds;
                is_shown && self.is_in_run(shown)
            }),
        }
    }

    fn stream(&self) -> StreamKey {
        (self.key.source, self.key.stream)
    }
}

/// False for a picture that is decoded ahead.
fn is_awaited(wanted: &Wanted) -> bool {
    !wanted.picture.destination.is_cache()
}

fn look(rotation: Rotation, wanted: &Wanted) -> Look {
    let destination = &wanted.picture.destination;
    Look {
        rotation,
        transforms: wanted.transforms.clone(),
        width: destination.width,
        height: destination.height,
        dtype: destination.dtype,
    }
}
