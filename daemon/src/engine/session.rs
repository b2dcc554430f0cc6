//! One live codec context, kept warm at its position in a stream. A session moves forward sample by sample;
//! it knows what it can still reach that way and what needs a seek.
//!
//! What does not live here: the list of what is wanted, and conversion; see `wanted` and `run`.

use std::cmp::Ordering;

use reeld_protocol::metadata::Rational;

use super::device::{Decoder, Device, Picture, Received, Sent};
use super::failure::Failure;
use super::media::{self, References, Rotation};
use super::timeless::Timeless;
use super::wanted::{self, Pending, Shown};
use super::way::Way;
use crate::ffi::{MediaInput, Packet, Stream};
use crate::link::{RunStart, Target};

/// The MPEG program stream demuxer starts in the middle of samples after a seek.
const MISALIGNED_FORMAT: &str = "mpeg";

/// So many frames are worth several codec threads. Each costs a frame that is decoded ahead and not wanted, and what
/// was decoded with another number of threads cannot be gone on with.
const LONG_WAY_FRAMES: i64 = 12;

/// More pictures than any decoder holds back, with one thread or many.
const HELD_MAX: usize = 64;

/// A demuxer and a decoder of one stream, and where they are.
pub struct Session<D: Device> {
    input: MediaInput,
    decoder: D::Decoder,
    thread_count: u16,
    packet: Packet,
    stream: usize,
    facts: StreamFacts,
    position: Position,
    references: References,
    /// Present from a seek until it is known to have led to the right place.
    landing: Option<Landing>,
    is_misaligned_after_seek: bool,
    /// True from a seek to the first sample that the decoder takes, for the format above.
    may_be_misaligned: bool,
    /// For a format without times, in which there is no seek.
    timeless: Option<Timeless>,
    /// The pts of the samples whose pictures the decoder has and did not put out yet.
    held: Vec<i64>,
    /// The target of the last seek, if it went further back than where decoding for it begins. Kept here, as a run may
    /// need several turns for the way.
    gone_back_for: Option<Target>,
    /// Memory of the last one that came out.
    picture_bytes: u64,
}

/// What does not change while a stream is read.
#[derive(Clone, Copy, Debug)]
pub struct StreamFacts {
    /// Length of a tick in seconds.
    pub time_base: Rational,
    /// How its pictures are turned.
    pub rotation: Rotation,
    start_ticks: i64,
    frames_per_second: Option<f64>,
}

/// One step forward.
pub enum Step<P> {
    /// The next picture in presentation order, and when it is shown.
    Picture(P, Shown),
    /// The decoder took a sample and has no picture yet.
    Fed,
    /// A sample was left out, as its picture is not wanted.
    Skipped,
    /// Samples are damaged. What a decoder makes up for what is missing may depend on pictures that were left out, and
    /// on its threads. From the next seek on there is one, and nothing is left out.
    Damaged,
    /// The stream is over.
    End,
}

/// Where a session is.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// Nowhere: just opened, or at the end. Only a seek leads out.
    Unset,
    /// On its way.
    Live(Way),
}

impl<D: Device> Session<D> {
    /// Opens a decoder on a freshly opened input.
    pub fn open(
        device: &mut D,
        mut input: MediaInput,
        stream: usize,
        thread_count: u16,
    ) -> Result<Self, Failure> {
        let description = input.stream(stream).ok_or(Failure::NoSuchStream { stream })?;
        let codec = description.codec_name();
        let facts = StreamFacts::new(&input, stream)?;
        let references = References::new(&codec, description.decoder_header());
        let best = input.best_video_stream(Some(stream)).ok_or(Failure::NoDecoder { stream, codec })?;
        let decoder = device.open_decoder(&input, best, thread_count)?;
        input.keep_only(stream);
        let is_misaligned_after_seek = input.format_name() == MISALIGNED_FORMAT;
        let timeless = timeless(&input, stream);
        Ok(Session {
            input,
            decoder,
            thread_count,
            packet: Packet::new()?,
            stream,
            facts,
            position: Position::Unset,
            references,
            landing: None,
            is_misaligned_after_seek,
            may_be_misaligned: false,
            timeless,
            held: Vec::new(),
            gone_back_for: None,
            picture_bytes: 0,
        })
    }

    /// False if only an input that is opened anew leads to `target`: the format has no seek, and `target` was passed.
    pub fn can_seek_to(&self, target: Target) -> bool {
        let is_ahead = match self.position {
            Position::Unset => false,
            Position::Live(way) => way.has_not_passed(target, self.facts.time_base),
        };
        self.timeless.as_ref().is_none_or(|timeless| is_ahead || !timeless.has_begun())
    }

    /// True if going forward leads to `target` and is no detour compared with a seek.
    pub fn is_before(&self, start: RunStart, target: Target) -> bool {
        !self.is_cut() && self.was_before(start, target)
    }

    /// True if its decoder was made to put out all that it had: only a seek leads on.
    pub fn is_cut(&self) -> bool {
        matches!(self.position, Position::Live(way) if way.is_cut)
    }

    /// As `is_before`, had the session not been cut.
    pub fn was_before(&self, start: RunStart, target: Target) -> bool {
        let Position::Live(way) = self.position else {
            return false;
        };
        if !way.has_not_passed(target, self.facts.time_base) {
            return false;
        }
        if self.timeless.is_some() {
            return true;
        }
        match start {
            RunStart::Keyframe(keyframe) => way.is_at(keyframe),
            RunStart::Demuxer => {
                let cursor = wanted::cursor(target, self.facts.time_base);
                // A seek for this very target was made already. Without this, a run that needs several turns
                // from where it has landed would begin each of them with the same seek, for ever.
                way.origin == cursor || self.is_nearer_than_seek(way, cursor)
            }
        }
    }

    /// The last picture that came out, for choosing the nearest of several sessions.
    pub fn last_pts(&self) -> Option<i64> {
        match self.position {
            Position::Unset => None,
            Position::Live(way) => way.last.map(|last| last.pts),
        }
    }

    /// True if no picture on the way is worth keeping: there is no seek, but samples are left out on any way.
    pub fn has_only_lone_pictures(&self) -> bool {
        self.timeless.as_ref().is_some_and(Timeless::is_intra_only)
    }

    /// Begins anew on a freshly opened input of the same file.
    pub fn reopen(&mut self, device: &mut D, mut input: MediaInput) -> Result<(), Failure> {
        input.keep_only(self.stream);
        self.input = input;
        self.timeless = timeless(&self.input, self.stream);
        self.open_decoder(device)
    }

    fn open_decoder(&mut self, device: &mut D) -> Result<(), Failure> {
        let stream = self.stream;
        let codec = self.input.stream(stream).ok_or(Failure::NoSuchStream { stream })?.codec_name();
        let best = self.input.best_video_stream(Some(stream)).ok_or(Failure::NoDecoder { stream, codec })?;
        self.position = Position::Unset;
        self.held.clear();
        self.references.forget_position();
        self.decoder = device.open_decoder(&self.input, best, self.thread_count)?;
        Ok(())
    }

    /// Has so many codec threads from the next seek on, if the way there and on to `last` is long enough for them to
    /// help each other; else one.
    pub fn prepare(
        &mut self,
        device: &mut D,
        start: RunStart,
        (first, last): (Target, Target),
        thread_count: u16,
    ) -> Result<(), Failure> {
        let [first, last] = [first, last].map(|target| wanted::cursor(target, self.facts.time_base));
        let begin = match start {
            RunStart::Keyframe(keyframe) => Some(keyframe),
            RunStart::Demuxer => self.input.keyframe_before(self.stream, first),
        };
        // Without times, the way leads from the file's begin.
        let begin = begin.filter(|_| self.timeless.is_none());
        let way = begin.and_then(|begin| self.facts.frame_count_between(begin, last));
        let is_long = way.is_none_or(|count| count >= LONG_WAY_FRAMES);
        let thread_count = if is_long && !self.references.is_distrusted() { thread_count } else { 1 };
        if thread_count == self.thread_count {
            return Ok(());
        }
        self.thread_count = thread_count;
        self.open_decoder(device)
    }

    /// Goes to where decoding for `target` begins, if it can.
    pub fn seek(&mut self, start: RunStart, target: Target) -> Result<(), Failure> {
        if let Some(timeless) = &mut self.timeless {
            if !timeless.has_begun() {
                timeless.begin();
                self.position = Position::Live(Way::from(i64::MIN));
            }
            return Ok(());
        }
        self.gone_back_for = None;
        let cursor = wanted::cursor(target, self.facts.time_base);
        let (origin, keyframe) = match start {
            RunStart::Keyframe(keyframe) => (keyframe, Some(keyframe)),
            RunStart::Demuxer => (cursor, None),
        };
        self.go_to(origin)?;
        self.position = Position::Live(Way::from(origin));
        self.landing = Some(Landing {
            origin,
            cursor,
            keyframe,
            is_exact: true,
            was_early: false,
            attempt: 0,
            has_begun: false,
        });
        Ok(())
    }

    /// Goes to where decoding begins one keyframe or more before the one that `start` names: from that one, a decoder may
    /// not recover before the stream is over. False if there is no earlier one.
    pub fn seek_further_back(&mut self, start: RunStart, target: Target) -> Result<bool, Failure> {
        if self.timeless.is_some() || self.gone_back_for == Some(target) {
            return Ok(false);
        }
        self.seek(start, target)?;
        self.gone_back_for = Some(target);
        if let Some(landing) = &mut self.landing {
            landing.is_exact = false;
            // Where seeks overshoot, an earlier point may lead to the same one.
            landing.keyframe = landing.keyframe.map(|keyframe| keyframe - 1);
        }
        Ok(self.land_earlier())
    }

    /// What it would take to be here again, in pictures, and how many more a decoder takes in before it puts out the
    /// one that is wanted: what is lost and what is saved by cutting.
    pub fn cost_of_cut(&self) -> (u64, u64) {
        let way = match self.position {
            Position::Unset => 0,
            Position::Live(way) => way.count + self.held.len() as u64,
        };
        (way, u64::try_from(self.decoder.held_back_count()).unwrap_or(0))
    }

    /// Memory that it holds, about: nothing before its first picture.
    pub fn bytes(&self) -> u64 {
        self.decoder.weight_in_pictures().saturating_mul(self.picture_bytes)
    }

    /// Goes one step forward. Pictures before `next_wanted` need not come out, if it is given. If `last_ones` are given
    /// and the decoder has all of them, it gets no more samples and puts out what it has. After an error the session is
    /// of no more use.
    pub fn step(
        &mut self,
        next_wanted: Option<Target>,
        last_ones: Option<&Pending>,
    ) -> Result<Step<D::Picture>, Failure> {
        let Position::Live(mut way) = self.position else {
            return Ok(Step::End);
        };
        match self.decoder.receive()? {
            Received::Picture(picture) => {
                let number = self.timeless.as_mut().and_then(Timeless::number);
                let pts = number.unwrap_or_else(|| picture.pts_ticks());
                self.held.retain(|held| *held != pts);
                let shown = way.show(pts, picture.duration_ticks());
                if let Some(landing) = self.landing.as_mut().filter(|landing| landing.is_missed_by(shown)) {
                    // From the keyframe, the decoder has not recovered soon enough.
                    landing.is_exact &= landing.was_early;
                    if self.land_earlier() {
                        return Ok(Step::Fed);
                    }
                }
                self.landing = None;
                self.picture_bytes = picture.bytes() as u64;
                self.position = Position::Live(way);
                if self.decoder.has_complained() {
                    self.references.distrust();
                    if self.may_have_guessed(way) {
                        return Ok(Step::Damaged);
                    }
                }
                Ok(Step::Picture(picture, shown))
            }
            Received::NeedsSample if !way.is_draining => {
                if last_ones.is_some_and(|last_ones| self.has_all(last_ones)) {
                    (way.is_draining, way.is_cut) = (true, true);
                    self.position = Position::Live(way);
                    self.decoder.send_end()?;
                    return Ok(Step::Fed);
                }
                self.feed(&mut way, next_wanted)
            }
            Received::NeedsSample | Received::End if way.is_cut => {
                // A picture is missing although the decoder had its sample.
                self.references.distrust();
                Ok(Step::Damaged)
            }
            Received::NeedsSample | Received::End => {
                if self.landing.is_some() && self.land_earlier() {
                    return Ok(Step::Fed);
                }
                self.position = Position::Unset;
                Ok(Step::End)
            }
        }
    }

    fn feed(&mut self, way: &mut Way, next_wanted: Option<Target>) -> Result<Step<D::Picture>, Failure> {
        if !self.read_own_sample()? {
            way.is_draining = true;
            self.position = Position::Live(*way);
            self.decoder.send_end()?;
            return Ok(Step::Fed);
        }
        match self.landing.as_mut().map(|landing| landing.judge(&self.packet)) {
            Some(Verdict::TooEarly) => return Ok(Step::Fed),
            Some(Verdict::TooLate) if self.land_earlier() => return Ok(Step::Fed),
            Some(Verdict::TooLate | Verdict::Right) | None => {}
        }
        let was_distrusted = self.references.is_distrusted();
        let skipped = self.skippable(next_wanted);
        if !was_distrusted && self.references.is_distrusted() && self.may_have_guessed(*way) {
            return Ok(Step::Damaged);
        }
        if let Some(skipped) = skipped {
            way.pass(skipped);
            way.has_skipped = true;
            self.position = Position::Live(*way);
            return Ok(Step::Skipped);
        }
        match self.decoder.send(&self.packet)? {
            Sent::Accepted => self.may_be_misaligned = false,
            Sent::Invalid if self.may_be_misaligned => return Ok(Step::Fed),
            // What it takes may have come with a keyframe that was passed over.
            Sent::Invalid if self.landing.is_some_and(|landing| landing.was_early) && self.land_earlier() => {
                return Ok(Step::Fed);
            }
            Sent::Invalid => return Err(crate::ffi::Decoder::invalid_sample().into()),
        }
        if let Some(timeless) = &mut self.timeless {
            timeless.expect(self.packet.pts_or_dts());
        }
        if let Some(pts) = self.packet.pts().filter(|_| !self.packet.is_discarded()) {
            // Damaged samples bring no picture.
            if self.held.len() == HELD_MAX {
                self.held.remove(0);
            }
            self.held.push(pts);
        }
        if self.packet.is_keyframe() && !self.packet.is_discarded() {
            let pts = self.packet.pts_or_dts();
            way.keyframe = Some(way.keyframe.map_or(pts, |keyframe| keyframe.max(pts)));
        }
        self.position = Position::Live(*way);
        Ok(Step::Fed)
    }

    /// True if what the decoder makes up for missing samples may not be what it would be on another way.
    fn may_have_guessed(&self, way: Way) -> bool {
        way.has_skipped || way.is_cut || self.thread_count > 1
    }

    /// True if the decoder is certain to put out all of these without another sample: one sample is one picture here.
    fn has_all(&self, wanted: &Pending) -> bool {
        self.timeless.is_none() && self.references.are_trusted() && wanted.are_all_among(&self.held)
    }

    /// The picture that the sample at hand would bring, if neither it nor any that depends on it is wanted. What
    /// is wanted are `next_wanted` and later ones. Only a picture before all of them is left out, and none behind
    /// the last: a session that has arrived can go on from picture to picture.
    fn skippable(&mut self, next_wanted: Option<Target>) -> Option<Shown> {
        let is_unreferenced = self.references.is_unreferenced(self.packet.data());
        let target = next_wanted.filter(|_| !self.may_be_misaligned && !self.packet.is_discarded())?;
        let pts = match &self.timeless {
            Some(timeless) if timeless.is_intra_only() && !self.references.is_distrusted() => {
                self.packet.pts_or_dts()
            }
            None if is_unreferenced && !self.packet.is_keyframe() => self.packet.pts()?,
            Some(_) | None => return None,
        };
        let shown = Shown { pts, duration: self.packet.duration_ticks(), earlier_end: i64::MIN };
        let time_base = self.facts.time_base;
        let is_before = shown.pts < wanted::cursor(target, time_base) && !shown.satisfies(target, time_base);
        is_before.then_some(shown)
    }

    /// False at the end of the file.
    fn read_own_sample(&mut self) -> Result<bool, Failure> {
        while self.input.read(&mut self.packet)? {
            if self.packet.stream_index() == self.stream {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Seeks once more, to an earlier point. False where there is none left.
    fn land_earlier(&mut self) -> bool {
        while let Some(landing) = self.landing.as_mut() {
            let Some(point) = landing.next_point(self.facts) else {
                self.landing = None;
                return false;
            };
            let origin = landing.origin;
            // A container may refuse a point before its begin; then the next attempt is made.
            if self.go_to(point).is_ok() {
                self.position = Position::Live(Way::from(origin));
                return true;
            }
        }
        false
    }

    fn go_to(&mut self, ticks: i64) -> Result<(), Failure> {
        self.position = Position::Unset;
        self.input.seek(self.stream, ticks)?;
        self.decoder.flush();
        self.held.clear();
        self.references.forget_position();
        self.may_be_misaligned = self.is_misaligned_after_seek;
        Ok(())
    }

    /// Without an index of ours, the container's own tells whether a keyframe lies between here and there. If
    /// one does, a seek pays off unless it is nearer than what a seek would throw away. TorchCodec's rule.
    fn is_nearer_than_seek(&self, way: Way, cursor: i64) -> bool {
        let here = way.last.map_or(way.origin, |last| last.pts);
        if cursor < here {
            return false;
        }
        let marks =
            (self.input.keyframe_mark(self.stream, here), self.input.keyframe_mark(self.stream, cursor));
        match marks {
            (Some(mark_here), Some(mark_there)) if mark_here == mark_there => true,
            (Some(_), Some(_)) => self
                .facts
                .frame_count_between(here, cursor)
                .is_some_and(|count| count <= self.decoder.held_back_count()),
            (None, _) | (_, None) => false,
        }
    }
}

fn timeless(input: &MediaInput, stream: usize) -> Option<Timeless> {
    let is_intra_only = input.stream(stream).is_some_and(Stream::is_intra_only);
    input.is_timeless().then(|| Timeless::new(is_intra_only))
}

impl StreamFacts {
    /// Reads them from the header.
    pub fn new(input: &MediaInput, stream: usize) -> Result<Self, Failure> {
        let description = input.stream(stream).ok_or(Failure::NoSuchStream { stream })?;
        let time_base = description.time_base();
        Ok(StreamFacts {
            time_base,
            rotation: Rotation::from_degrees(description.rotation_degrees()),
            start_ticks: description.start_ticks().unwrap_or(0),
            frames_per_second: media::frames_per_second(description),
        })
    }

    /// An estimate; none where the header has no frame rate.
    fn frame_count_between(&self, here: i64, there: i64) -> Option<i64> {
        let begin_seconds = self.time_base.seconds(self.start_ticks);
        let frames_per_second = self.frames_per_second?;
        let frame_at =
            |ticks| ((self.time_base.seconds(ticks) - begin_seconds) * frames_per_second).floor() as i64;
        Some(frame_at(there).saturating_sub(frame_at(here)))
    }
}

/// A seek that is not yet known to have led to the right place. Demuxers overshoot: MPEG-TS seeks by decoding
/// times, and any container may call a picture a keyframe from which a decoder recovers only later. Then the
/// first picture that comes out lies behind the one that is wanted, and an earlier point is tried.
#[derive(Clone, Copy, Debug)]
struct Landing {
    /// The tick that was sought first.
    origin: i64,
    /// What the seek is for.
    cursor: i64,
    /// The keyframe that must not be passed, if it is known.
    keyframe: Option<i64>,
    /// Where the point is an earlier one, samples up to that keyframe are only read.
    is_exact: bool,
    /// An earlier keyframe was passed over for that.
    was_early: bool,
    /// How many other points were tried.
    attempt: usize,
    /// A keyframe's sample was found after the seek.
    has_begun: bool,
}

/// What a sample says about the seek before it.
enum Verdict {
    /// Decoding cannot begin here. Skipped, as it would only bring broken pictures.
    TooEarly,
    /// The keyframe was passed.
    TooLate,
    /// Decoding goes on.
    Right,
}

impl Landing {
    /// Seconds before the origin that are tried, one after the other. Steps of four: the usual overshoot is a
    /// few frames, the usual distance of keyframes below ten seconds.
    const STEPS_BACK_SECONDS: [f64; 3] = [1.0, 4.0, 16.0];

    fn judge(&mut self, packet: &Packet) -> Verdict {
        if self.has_begun {
            return Verdict::Right;
        }
        if !packet.is_keyframe() {
            return Verdict::TooEarly;
        }
        match self.keyframe.map(|keyframe| packet.pts_or_dts().cmp(&keyframe)) {
            Some(Ordering::Greater) => return Verdict::TooLate,
            Some(Ordering::Less) if self.is_exact && self.attempt > 0 => {
                self.was_early = true;
                return Verdict::TooEarly;
            }
            Some(Ordering::Less | Ordering::Equal) | None => {}
        }
        self.has_begun = true;
        Verdict::Right
    }

    /// True if the first picture lies behind what is wanted.
    fn is_missed_by(&self, first: Shown) -> bool {
        first.pts > self.cursor
    }

    /// The next point to try; none once the stream's begin was tried.
    fn next_point(&mut self, facts: StreamFacts) -> Option<i64> {
        let (origin, last) = (self.origin, Self::STEPS_BACK_SECONDS.len() + 1);
        // Well before it: decoding times are smaller than the pts of the first picture.
        let before_begin = facts.start_ticks.saturating_sub(facts.time_base.nearest_ticks(1.0));
        let point = |attempt: usize| match attempt.checked_sub(1) {
            None => origin,
            Some(step) => Self::STEPS_BACK_SECONDS.get(step).map_or(origin.min(before_begin), |seconds| {
                origin.saturating_sub(facts.time_base.nearest_ticks(*seconds))
            }),
        };
        if std::mem::take(&mut self.was_early) && self.is_exact {
            // The keyframe has not come, or the decoder needs more before it.
            (self.is_exact, self.has_begun) = (false, false);
            return Some(point(self.attempt));
        }
        let was_at_begin = self.attempt > 0 && point(self.attempt) <= before_begin;
        if self.attempt == last || was_at_begin {
            return None;
        }
        self.attempt += 1;
        self.has_begun = false;
        Some(point(self.attempt))
    }
}
