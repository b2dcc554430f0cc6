//! Requests for frames that are not answered yet, and the pictures they wait for.
//!
//! Pure bookkeeping: what is done with it is in `frames` and `running`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use reeld_protocol::Transforms;
use reeld_protocol::ids::{LeaseId, StreamIndex};
use reeld_protocol::message::{Dtype, PartLayout};

use super::blame::Blame;
use super::plan::Located;
use super::queue::Waiter;
use crate::link::{CatalogId, WantedId};

/// Pixels begin at cache lines, which is what vector instructions like best.
const PIXELS_ALIGNMENT: u64 = 64;

/// One part of a request, planned.
#[derive(Clone, Debug)]
pub struct PlannedPart {
    /// The file.
    pub source: CatalogId,
    /// Its stream.
    pub stream: StreamIndex,
    /// One entry per row of the result.
    pub located: Vec<Located>,
    /// Pixels of a decoded picture.
    pub picture_pixels: u64,
    /// What is done to the upright pictures.
    pub transforms: Transforms,
    /// Rows of a frame, after that.
    pub height: u32,
    /// Columns of a frame, after that.
    pub width: u32,
    /// Type of the values.
    pub dtype: Dtype,
    /// Codec threads, a hint.
    pub thread_count: u16,
}

/// A request that is not answered yet.
#[derive(Clone, Debug)]
pub struct FrameRequest {
    /// Its client.
    pub client: u64,
    /// Its name there.
    pub request_id: u64,
    /// What is wanted.
    pub parts: Vec<PlannedPart>,
    /// Higher goes first.
    pub priority: i8,
    /// When the answer is of no use any more, in milliseconds since the daemon's start.
    pub deadline_millis: Option<u64>,
    /// Where each part lies in the slot.
    pub layouts: Vec<PartLayout>,
    /// The slot's length.
    pub slot_bytes: u64,
    /// The slot, once there is one.
    pub lease: Option<LeaseId>,
    /// Pictures that are not in the slot yet.
    pub missing_count: u64,
    /// What engines suffered over its files.
    pub blames: Vec<(CatalogId, Blame)>,
}

impl FrameRequest {
    /// Who waits, for the queue.
    pub fn waiter(&self) -> Waiter {
        Waiter { client: self.client, priority: self.priority, deadline_millis: self.deadline_millis }
    }

    /// Number of frames of all parts.
    pub fn frame_count(&self) -> u64 {
        self.layouts.iter().map(|layout| layout.frame_count).sum()
    }
}

/// A picture on its way, from planning until its engine has answered for it.
#[derive(Clone, Copy, Debug)]
pub struct WantedRecord {
    /// The request; it may be gone by now.
    pub request: u64,
    /// Its client; it may be gone by now.
    pub client: u64,
    /// The slot that the picture is written into.
    pub lease: LeaseId,
}

/// All requests that are not answered yet.
#[derive(Debug, Default)]
pub struct Requests {
    requests: HashMap<u64, FrameRequest>,
    by_name: BTreeMap<(u64, u64), u64>,
    deadlines: BTreeSet<(u64, u64)>,
    wanted: HashMap<WantedId, WantedRecord>,
    next_request: u64,
    next_wanted: u64,
}

impl Requests {
    /// Requests that are not answered yet.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// All requests.
    pub fn keys(&self) -> Vec<u64> {
        self.requests.keys().copied().collect()
    }

    /// All requests, by their names.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &FrameRequest)> {
        self.requests.iter().map(|(&key, request)| (key, request))
    }

    /// Takes note of a request and names it.
    pub fn insert(&mut self, request: FrameRequest) -> u64 {
        self.next_request += 1;
        let key = self.next_request;
        self.by_name.insert((request.client, request.request_id), key);
        self.deadlines.extend(request.deadline_millis.map(|deadline| (deadline, key)));
        self.requests.insert(key, request);
        key
    }

    /// One request.
    pub fn get(&self, request: u64) -> Option<&FrameRequest> {
        self.requests.get(&request)
    }

    /// One request.
    pub fn get_mut(&mut self, request: u64) -> Option<&mut FrameRequest> {
        self.requests.get_mut(&request)
    }

    /// The request that a client calls by this name.
    pub fn find(&self, client: u64, request_id: u64) -> Option<u64> {
        self.by_name.get(&(client, request_id)).copied()
    }

    /// All requests of a client.
    pub fn of_client(&self, client: u64) -> Vec<u64> {
        self.by_name.range((client, 0)..=(client, u64::MAX)).map(|(_, &key)| key).collect()
    }

    /// Frames that a client waits for, as far as they were found: all its requests together, of which the gates
    /// let only a few in.
    pub fn frame_count_of(&self, client: u64) -> u64 {
        let own = self.by_name.range((client, 0)..=(client, u64::MAX));
        own.filter_map(|(_, key)| self.requests.get(key)).map(FrameRequest::frame_count).sum()
    }

    /// Forgets a request. Its pictures at engines stay known until those have answered.
    pub fn remove(&mut self, request: u64) -> Option<FrameRequest> {
        let removed = self.requests.remove(&request)?;
        self.by_name.remove(&(removed.client, removed.request_id));
        if let Some(deadline) = removed.deadline_millis {
            self.deadlines.remove(&(deadline, request));
        }
        Some(removed)
    }

    /// All pictures on their way, for the audit.
    pub fn pictures(&self) -> impl Iterator<Item = (WantedId, WantedRecord)> {
        self.wanted.iter().map(|(&wanted, &record)| (wanted, record))
    }

    /// The next deadline of all.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A request whose deadline has passed.
    pub fn overdue(&self, now_millis: u64) -> Option<u64> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now_millis).map(|(_, request)| *request)
    }

    /// Takes note of a picture and names it.
    pub fn want(&mut self, record: WantedRecord) -> WantedId {
        let wanted = self.name_picture();
        self.wanted.insert(wanted, record);
        wanted
    }

    /// A name for a picture that no request waits for.
    pub fn name_picture(&mut self) -> WantedId {
        self.next_wanted += 1;
        WantedId(self.next_wanted)
    }

    /// One picture on its way.
    pub fn wanted(&self, wanted: WantedId) -> Option<WantedRecord> {
        self.wanted.get(&wanted).copied()
    }

    /// True while somebody waits for this picture in this slot.
    pub fn is_wanted(&self, wanted: WantedId) -> bool {
        self.wanted.get(&wanted).is_some_and(|record| {
            self.requests.get(&record.request).is_some_and(|request| request.lease == Some(record.lease))
        })
    }

    /// Forgets a picture: it is written, or will never be.
    pub fn settle(&mut self, wanted: WantedId) -> Option<WantedRecord> {
        self.wanted.remove(&wanted)
    }
}

/// Where the parts of a result lie in its slot, and the slot's length: all pixels first, then all times. Parts whose
/// frames are alike follow each other without a gap, so that a batch of clips is one block of numbers.
/// None where the result is larger than any memory.
pub fn lay_out(parts: &[PlannedPart]) -> Option<(Vec<PartLayout>, u64)> {
    let mut layouts = Vec::with_capacity(parts.len());
    let mut end: u64 = 0;
    for part in parts {
        let is_alike = |before: &PartLayout| {
            (before.height, before.width, before.dtype) == (part.height, part.width, part.dtype)
        };
        let pixels_offset = match layouts.last() {
            Some(before) if is_alike(before) => end,
            Some(_) | None => end.checked_next_multiple_of(PIXELS_ALIGNMENT)?,
        };
        let layout = PartLayout {
            frame_count: part.located.len() as u64,
            height: part.height,
            width: part.width,
            channels: 3,
            dtype: part.dtype,
            pixels_offset,
            pts_offset: 0,
            durations_offset: 0,
        };
        end = pixels_offset.checked_add(layout.frame_bytes().checked_mul(layout.frame_count)?)?;
        layouts.push(layout);
    }
    for layout in &mut layouts {
        let times_bytes = layout.frame_count.checked_mul(8)?;
        layout.pts_offset = end.checked_next_multiple_of(8)?;
        layout.durations_offset = layout.pts_offset.checked_add(times_bytes)?;
        end = layout.durations_offset.checked_add(times_bytes)?;
    }
    Some((layouts, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{RunStart, Target};

    fn part(frame_count: usize, height: u32, width: u32, dtype: Dtype) -> PlannedPart {
        let located = Located { target: Target::AtOrAfter(0), start: RunStart::Demuxer, decode_count: 1 };
        PlannedPart {
            source: CatalogId(0),
            stream: StreamIndex(0),
            located: vec![located; frame_count],
            picture_pixels: 1,
            transforms: Transforms::default(),
            height,
            width,
            dtype,
            thread_count: 0,
        }
    }

    #[test]
    fn parts_do_not_overlap_and_times_come_behind_all_pixels() {
        let parts = [part(2, 3, 5, Dtype::Uint8), part(0, 3, 5, Dtype::Uint8), part(1, 2, 2, Dtype::Float32)];
        let (layouts, bytes) = lay_out(&parts).unwrap();
        assert_eq!(
            [layouts[0].pixels_offset, layouts[1].pixels_offset, layouts[2].pixels_offset],
            [0, 90, 128]
        );
        assert_eq!((layouts[0].pts_offset, layouts[0].durations_offset), (176, 192));
        assert_eq!((layouts[2].pts_offset, layouts[2].durations_offset), (208, 216));
        assert_eq!(bytes, 224);
    }

    #[test]
    fn result_larger_than_any_memory_is_none() {
        let huge = |frame_count| part(frame_count, u32::MAX, u32::MAX, Dtype::Float32);
        for parts in [vec![huge(1 << 20)], vec![huge(1)], vec![huge(1), huge(1)], vec![huge(0), huge(1)]] {
            assert!(lay_out(&parts).is_none());
        }
    }

    #[test]
    fn request_is_found_by_its_name_until_it_is_answered() {
        let mut requests = Requests::default();
        let request = FrameRequest {
            client: 3,
            request_id: 9,
            parts: vec![],
            priority: 0,
            deadline_millis: Some(50),
            layouts: vec![],
            slot_bytes: 0,
            lease: None,
            missing_count: 0,
            blames: vec![],
        };
        let key = requests.insert(request);
        assert_eq!(requests.find(3, 9), Some(key));
        assert_eq!((requests.overdue(49), requests.overdue(50)), (None, Some(key)));
        requests.remove(key);
        assert_eq!((requests.find(3, 9), requests.next_deadline()), (None, None));
    }
}
