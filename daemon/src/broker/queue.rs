//! What waits for an engine, and whose turn it is. Pure: no clock, no I/O.
//!
//! Order: priority first; among equals the client that has cost least so far; among one client's work the
//! earliest deadline, then first come. Cost is counted in decoded pixels and charged when work has been
//! done, split among all who joined it. A client that was away starts level with the least of those present,
//! so that nobody saves up a claim.
//!
//! Which engine gets the work is decided by `engines`; what is in it, by `plan`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// What the queue needs to know of a piece of work.
pub trait Work {
    /// Two pieces of work with equal keys can be done as one.
    type Key: Clone + Eq + Hash;

    /// None where the work can be joined with no other.
    fn join_key(&self) -> Option<Self::Key>;

    /// Takes over all of `other`, or gives it back where the two together are too much for one piece.
    fn join(&mut self, other: Self) -> Option<Self>
    where
        Self: Sized;

    /// Everyone who waits for it, most urgent first or not.
    fn waiters(&self) -> Vec<Waiter>;
}

/// Somebody who waits for a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The client's connection.
    pub client: u64,
    /// Higher goes first.
    pub priority: i8,
    /// When the answer is of no use any more, on the caller's clock.
    pub deadline_millis: Option<u64>,
}

/// Where a piece of work stands within its owner's work: the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    reversed_priority: i16,
    deadline_millis: u64,
    sequence: u64,
}

#[derive(Debug, Default)]
struct ClientLine {
    order: BTreeSet<Rank>,
    /// Pixels that were decoded for this client, relative to the others.
    cost_pixels: u64,
}

/// Work that waits for an engine.
#[derive(Debug)]
pub struct Queue<W: Work> {
    items: HashMap<u64, (Rank, u64, W)>,
    joinable: HashMap<W::Key, u64>,
    lines: BTreeMap<u64, ClientLine>,
    /// By client: the work that it waits for, its own and what it joined.
    awaited: BTreeMap<u64, BTreeSet<u64>>,
    next_sequence: u64,
}

/// What became of work that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits on its own.
    Queued,
    /// It became part of other work that waited already.
    Joined,
}

impl<W: Work> Default for Queue<W> {
    fn default() -> Self {
        Queue {
            items: HashMap::new(),
            joinable: HashMap::new(),
            lines: BTreeMap::new(),
            awaited: BTreeMap::new(),
            next_sequence: 0,
        }
    }
}

impl<W: Work> Queue<W> {
    /// Pieces of work that wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Adds work, joining it with what waits under the same key.
    pub fn push(&mut self, work: W) -> Pushed {
        let Some(key) = work.join_key() else {
            self.insert(work, None);
            return Pushed::Queued;
        };
        let Some(sequence) = self.joinable.get(&key).copied() else {
            self.insert(work, Some(key));
            return Pushed::Queued;
        };
        let Some(mut existing) = self.take(sequence) else {
            self.insert(work, Some(key));
            return Pushed::Queued;
        };
        let rejected = existing.join(work);
        let joined = rejected.is_none();
        self.reinsert(existing, sequence, Some(key.clone()));
        if let Some(work) = rejected {
            // The newer piece has room for those who come next.
            self.insert(work, Some(key));
        }
        if joined { Pushed::Joined } else { Pushed::Queued }
    }

    /// The piece of work whose turn it is among those that `is_placeable`.
    pub fn pop(&mut self, mut is_placeable: impl FnMut(&W) -> bool) -> Option<W> {
        let mut best: Option<(i16, u64, u64)> = None;
        for line in self.lines.values() {
            let placeable =
                |rank: &&Rank| self.items.get(&rank.sequence).is_some_and(|(_, _, work)| is_placeable(work));
            let Some(rank) = line.order.iter().find(placeable) else { continue };
            let candidate = (rank.reversed_priority, line.cost_pixels, rank.sequence);
            if best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        }
        self.take(best?.2)
    }

    /// Takes note of work that was done, split among everyone who waited for it.
    pub fn charge(&mut self, waiters: &[Waiter], pixels: u64) {
        let mut clients: Vec<u64> = waiters.iter().map(|waiter| waiter.client).collect();
        clients.sort_unstable();
        clients.dedup();
        let share = pixels / clients.len().max(1) as u64;
        for client in clients {
            let line = self.lines.entry(client).or_default();
            line.cost_pixels = line.cost_pixels.saturating_add(share);
        }
    }

    /// All that waits, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &W> {
        self.items.values().map(|(_, _, work)| work)
    }

    /// Of each client's own work the first piece for which `is_meant` is true.
    pub fn first_of_each(&self, is_meant: impl Fn(&W) -> bool) -> impl Iterator<Item = &W> {
        self.lines.values().filter_map(move |line| {
            let mut own = line.order.iter().filter_map(|rank| self.items.get(&rank.sequence));
            own.find(|(_, _, work)| is_meant(work)).map(|(_, _, work)| work)
        })
    }

    /// Clients of whom it knows something, for the audit.
    pub fn clients(&self) -> impl Iterator<Item = u64> {
        self.lines.keys().chain(self.awaited.keys()).copied()
    }

    /// Takes out the work that a client waits for and for which `is_meant` is true.
    pub fn take_of(&mut self, client: u64, is_meant: impl Fn(&W) -> bool) -> Vec<W> {
        let is_meant = |sequence: &u64| self.items.get(sequence).is_some_and(|(_, _, work)| is_meant(work));
        let sequences: Vec<u64> = self.awaited_by(client).into_iter().filter(is_meant).collect();
        sequences.into_iter().filter_map(|sequence| self.take(sequence)).collect()
    }

    fn awaited_by(&self, client: u64) -> Vec<u64> {
        self.awaited.get(&client).map_or_else(Vec::new, |awaited| awaited.iter().copied().collect())
    }

    /// Lets `change` alter the work that a client waits for, and removes that for which it returns false.
    pub fn retain_of(&mut self, client: u64, mut change: impl FnMut(&mut W) -> bool) {
        for sequence in self.awaited_by(client) {
            let Some(mut work) = self.take(sequence) else { continue };
            if change(&mut work) {
                let key = work.join_key();
                self.reinsert(work, sequence, key);
            }
        }
    }

    /// Forgets what a client has cost. Its work must have been removed before.
    pub fn forget_client(&mut self, client: u64) {
        if self.lines.get(&client).is_some_and(|line| line.order.is_empty()) {
            self.lines.remove(&client);
        }
    }

    fn insert(&mut self, work: W, key: Option<W::Key>) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.reinsert(work, sequence, key);
    }

    fn reinsert(&mut self, work: W, sequence: u64, key: Option<W::Key>) {
        let waiters = work.waiters();
        let owner = waiters.first().map_or(0, |waiter| waiter.client);
        let priority = waiters.iter().map(|waiter| waiter.priority).max().unwrap_or(0);
        let deadline = waiters.iter().filter_map(|waiter| waiter.deadline_millis).min();
        let rank = Rank {
            reversed_priority: -i16::from(priority),
            deadline_millis: deadline.unwrap_or(u64::MAX),
            sequence,
        };
        let floor = self.least_cost_of_the_busy();
        let line = self.lines.entry(owner).or_default();
        if line.order.is_empty() {
            line.cost_pixels = line.cost_pixels.max(floor);
        }
        line.order.insert(rank);
        for waiter in &waiters {
            self.awaited.entry(waiter.client).or_default().insert(sequence);
        }
        if let Some(key) = key {
            self.joinable.insert(key, sequence);
        }
        self.items.insert(sequence, (rank, owner, work));
    }

    fn take(&mut self, sequence: u64) -> Option<W> {
        let (rank, owner, work) = self.items.remove(&sequence)?;
        if let Some(line) = self.lines.get_mut(&owner) {
            line.order.remove(&rank);
        }
        for waiter in work.waiters() {
            if let Some(awaited) = self.awaited.get_mut(&waiter.client) {
                awaited.remove(&sequence);
                if awaited.is_empty() {
                    self.awaited.remove(&waiter.client);
                }
            }
        }
        if let Some(key) = work.join_key()
            && self.joinable.get(&key) == Some(&sequence)
        {
            self.joinable.remove(&key);
        }
        Some(work)
    }

    fn least_cost_of_the_busy(&self) -> u64 {
        let busy = self.lines.values().filter(|line| !line.order.is_empty());
        busy.map(|line| line.cost_pixels).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOIN_MAX: usize = 4;

    #[derive(Clone, Debug, PartialEq)]
    struct Job {
        key: Option<u32>,
        cost: u64,
        waiters: Vec<Waiter>,
        names: Vec<u32>,
    }

    impl Work for Job {
        type Key = u32;

        fn join_key(&self) -> Option<u32> {
            self.key
        }

        fn join(&mut self, other: Job) -> Option<Job> {
            if self.names.len() + other.names.len() > JOIN_MAX {
                return Some(other);
            }
            self.waiters.extend(other.waiters);
            self.names.extend(other.names);
            self.cost = self.cost.max(other.cost);
            None
        }

        fn waiters(&self) -> Vec<Waiter> {
            self.waiters.clone()
        }
    }

    fn job(name: u32, client: u64, cost: u64) -> Job {
        let waiter = Waiter { client, priority: 0, deadline_millis: None };
        Job { key: None, cost, waiters: vec![waiter], names: vec![name] }
    }

    /// Does the job whose turn it is.
    fn serve(queue: &mut Queue<Job>) -> Option<Job> {
        let job = queue.pop(|_| true)?;
        queue.charge(&job.waiters, job.cost);
        Some(job)
    }

    fn drain(queue: &mut Queue<Job>) -> Vec<u32> {
        std::iter::from_fn(|| serve(queue)).flat_map(|job| job.names).collect()
    }

    #[test]
    fn client_with_many_jobs_does_not_starve_one_with_few() {
        let mut queue = Queue::default();
        for name in 0..10 {
            queue.push(job(name, 1, 100));
        }
        queue.push(job(100, 2, 100));
        queue.push(job(101, 2, 100));
        assert_eq!(drain(&mut queue)[..4], [0, 100, 1, 101]);
    }

    #[test]
    fn client_with_cheap_jobs_gets_more_turns() {
        let mut queue = Queue::default();
        for name in 0..4 {
            queue.push(job(name, 1, 300));
            queue.push(job(10 + name, 2, 100));
        }
        assert_eq!(drain(&mut queue), [0, 10, 11, 12, 1, 13, 2, 3]);
    }

    #[test]
    fn client_that_was_away_has_no_claim_saved_up() {
        let mut queue = Queue::default();
        queue.push(job(0, 1, 1000));
        queue.push(job(1, 1, 1000));
        serve(&mut queue);
        queue.push(job(10, 2, 10));
        queue.push(job(11, 2, 10));
        let names = drain(&mut queue);
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], 1, "client 2 comes level with client 1, whose job is older");
    }

    #[test]
    fn higher_priority_goes_first_then_the_earlier_deadline() {
        let mut queue = Queue::default();
        let with = |name, priority, deadline_millis| {
            let mut job = job(name, 1, 1);
            job.waiters[0].priority = priority;
            job.waiters[0].deadline_millis = deadline_millis;
            job
        };
        for job in [with(0, 0, None), with(1, 0, Some(50)), with(2, 0, Some(20)), with(3, 1, None)] {
            queue.push(job);
        }
        assert_eq!(drain(&mut queue), [3, 2, 1, 0]);
    }

    #[test]
    fn joined_work_takes_the_highest_priority_of_its_waiters() {
        let mut queue = Queue::default();
        let keyed = |name, client, priority| {
            let mut job = job(name, client, 1);
            job.key = Some(7);
            job.waiters[0].priority = priority;
            job
        };
        queue.push(job(0, 1, 1));
        assert_eq!(queue.push(keyed(1, 1, 0)), Pushed::Queued);
        assert_eq!(queue.push(keyed(2, 2, 5)), Pushed::Joined);
        assert_eq!(drain(&mut queue), [1, 2, 0]);
    }

    #[test]
    fn cost_of_joined_work_is_split() {
        let mut queue = Queue::default();
        let mut shared = job(0, 1, 100);
        shared.waiters.push(Waiter { client: 2, priority: 0, deadline_millis: None });
        queue.push(shared);
        serve(&mut queue);
        assert_eq!(queue.lines[&1].cost_pixels, 50);
        assert_eq!(queue.lines[&2].cost_pixels, 50);
    }

    #[test]
    fn work_that_cannot_be_placed_is_passed_over() {
        let mut queue = Queue::default();
        queue.push(job(0, 1, 1));
        queue.push(job(1, 1, 1));
        assert_eq!(queue.pop(|job| job.names != [0]).unwrap().names, [1]);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn removed_work_leaves_no_trace() {
        let mut queue = Queue::default();
        let mut keyed = job(0, 1, 1);
        keyed.key = Some(3);
        queue.push(keyed.clone());
        queue.retain_of(1, |_| false);
        queue.forget_client(1);
        assert_eq!((queue.len(), queue.joinable.len(), queue.clients().count()), (0, 0, 0));
        assert_eq!(queue.push(keyed), Pushed::Queued);
    }

    #[test]
    fn work_is_found_by_everyone_who_joined_it() {
        let mut queue = Queue::default();
        let mut shared = job(0, 1, 100);
        shared.waiters.push(Waiter { client: 2, priority: 0, deadline_millis: None });
        queue.push(shared);
        queue.push(job(1, 1, 100));
        // Client 1 has left: what client 2 waits for too becomes its own.
        queue.retain_of(1, |job| {
            job.waiters.retain(|waiter| waiter.client != 1);
            !job.waiters.is_empty()
        });
        queue.forget_client(1);
        assert_eq!(queue.clients().collect::<BTreeSet<_>>(), BTreeSet::from([2]));
        assert_eq!(queue.first_of_each(|_| true).count(), 1);
        assert_eq!(queue.take_of(2, |_| true)[0].names, [0]);
        assert_eq!(queue.len(), 0);
    }

    proptest! {
        #[test]
        fn each_job_comes_out_once_whatever_is_joined_or_passed_over(
            jobs in prop::collection::vec((0..4u64, 1..100u64, prop::option::of(0..5u32), -2..3i8), 0..60),
            pops in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            let mut queue = Queue::default();
            let mut out: Vec<u32> = Vec::new();
            for (name, &(client, cost, key, priority)) in jobs.iter().enumerate() {
                let mut job = job(name as u32, client, cost);
                job.key = key;
                job.waiters[0].priority = priority;
                queue.push(job);
                if pops.get(name).copied().unwrap_or(false) {
                    let popped = queue.pop(|job| job.names[0] % 3 != 0);
                    out.extend(popped.into_iter().flat_map(|job| job.names));
                }
            }
            out.extend(drain(&mut queue));
            out.sort_unstable();
            prop_assert_eq!(out, (0..jobs.len() as u32).collect::<Vec<_>>());
            prop_assert!(queue.joinable.is_empty());
        }

        #[test]
        fn busy_clients_are_served_within_one_job_of_each_other(
            costs in prop::collection::vec((1..100u64, 1..100u64), 20..40),
        ) {
            let mut queue = Queue::default();
            for &(one, other) in &costs {
                queue.push(job(1, 1, one));
                queue.push(job(2, 2, other));
            }
            let mut served = [0u64; 3];
            while queue.lines.values().all(|line| !line.order.is_empty()) {
                let job = serve(&mut queue).unwrap();
                served[job.waiters[0].client as usize] += job.cost;
                prop_assert!(served[1].abs_diff(served[2]) <= 100);
            }
        }
    }
}
