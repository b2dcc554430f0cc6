//! The broker without processes: clients and engines that do, in one thread, whatever a program of random bytes says,
//! each checked against a simple model. Compiled for tests, which run some hundred programs, and for fuzzing.
//!
//! | file      | what                                                        |
//! |-----------|-------------------------------------------------------------|
//! | `mod`     | a program: bytes as decisions, and what they decide         |
//! | `world`   | the broker and everyone around it; what must always hold    |
//! | `client`  | one client, and what it must get                            |
//! | `engine`  | one engine, and what it must be asked                       |
//! | `hints`   | tests of what is decoded ahead                              |
//! | `media`   | the files                                                   |
//!
//! What is real: all of the broker, its sockets, the memory. What is not: the loop's select, signals, listening, and
//! time, which passes when the program says so.

#![allow(clippy::expect_used, reason = "what fails here is what the simulation looks for")]

mod client;
mod engine;
#[cfg(test)]
mod hints;
mod media;
mod world;

use std::time::Duration;

use reeld_protocol::ids::{LeaseId, SourceId};
use reeld_protocol::message::{
    Dtype, GetFrames, GetKeyFrames, MemoryRange, Notice, Part, Prefetch, Request, SeekMode, Wanted,
};
use reeld_protocol::{Transform, Transforms};

use rustix::io::Errno;

use client::{Expected, ExpectedPart};
use engine::Conclusion;
use media::SimulatedFile;
use world::World;

const CLIENTS_MAX: usize = 4;

/// Decisions, one byte each, until there are none left. Then everything is 0.
#[derive(Debug)]
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number below a limit, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.next().unwrap_or(0)) % limit
    }
}

/// What came of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests for frames that were answered with frames.
    pub frames_replies: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Engines that ended at work.
    pub crashes: u64,
    /// Tickets that were redeemed.
    pub tickets_redeemed: u64,
    /// Frames that were hinted at and accepted.
    pub hints_accepted: u64,
}

/// Runs a program and checks at every step what must always hold, and in the end that nothing is left.
pub fn run(program: &[u8]) -> Outcome {
    // The memory of the simulation: so small that it is always in short supply.
    const CLIENT_MEMORY_MIB: u64 = 1;
    let mut program = Program(program);
    let runtime = world::runtime();
    runtime.block_on(async {
        let mut world = World::new(CLIENT_MEMORY_MIB);
        while let Some(decision) = program.next() {
            step(&mut world, decision, &mut program).await;
            world.settle().await;
            world.check();
        }
        world.finish().await
    })
}

async fn step(world: &mut World, decision: u8, program: &mut Program<'_>) {
    let client = program.below(CLIENTS_MAX);
    match decision % 32 {
        0 | 1 => world.connect(program.below(2) as u32).await,
        2 | 3 => open(world, client, program),
        4..=9 => get_frames(world, client, program),
        11 if decision / 32 > 3 => world.redeem_ticket(client, program.below(4)),
        12 if decision / 32 > 3 => hand_over(world, client, program).await,
        10 | 11 => give_back(world, client, program.below(8)),
        12 => guess_leases(world, client, program.below(4)),
        13 if decision / 32 > 2 => prefetch(world, client, program),
        13 => cancel(world, client, program.below(8)),
        14 => close_source(world, client, program.below(4)),
        15 => world.disconnect(client, program.below(2) == 0).await,
        16..=18 => world.deliver_result(program.below(4)),
        19 | 20 => {
            let (engine, failure) = (program.below(4), FAILURES[usize::from(decision / 32)]);
            if !world.start_one(engine, failure) {
                world.engine_is_ready(engine);
            }
        }
        21..=23 => {
            let engine = program.below(4);
            world.conclude(engine, CONCLUSIONS[program.below(CONCLUSIONS.len())]);
            world.hear_engine(engine);
        }
        24 => world.conclude(program.below(4), CONCLUSIONS[program.below(CONCLUSIONS.len())]),
        25 => world.hear_engine(program.below(4)),
        26 => world.engine_ends(program.below(4), ENDS[usize::from(decision / 32)]),
        27 => world.engine_fails(program.below(4), program.below(2) == 0).await,
        28 if decision / 32 == 7 => world.hold_starts(),
        28 => world.scribble(),
        29 => world.pass(Duration::from_millis([1, 999, 5_000, 31_000, 61_000][program.below(5)])),
        30 => match decision / 32 {
            0 => world.ask(client, &Request::Status, Expected::Status, &[]),
            1 => get_key_frames(world, client, program),
            2 => world.name_session(client),
            3 => world.end_session(program.below(CLIENTS_MAX)),
            4 | 5 => world.issue_ticket(client, program.below(8)),
            6 => prefetch(world, client, program),
            _ => world.redeem_ticket(client, program.below(8)),
        },
        _ => flood(world, client, program),
    }
}

/// Most jobs are done; so the first is listed more than once.
const CONCLUSIONS: [Conclusion; 12] = [
    Conclusion::Done,
    Conclusion::Done,
    Conclusion::Done,
    Conclusion::Done,
    Conclusion::Done,
    Conclusion::Yielded,
    Conclusion::Yielded,
    Conclusion::Stalled,
    Conclusion::Failed,
    Conclusion::HalfFailed,
    Conclusion::SourceChanged,
    Conclusion::Overdone,
];

/// Why an engine that was ordered cannot be started, where it cannot.
const FAILURES: [Option<Errno>; 8] =
    [None, None, None, None, None, None, Some(Errno::NOMEM), Some(Errno::MFILE)];

/// How engines end, as the kernel tells it: by a fault, by somebody else's signal, by themselves.
const ENDS: [i32; 8] = [11, 11, 11, 11, 9, 9, 9, 0];

fn open(world: &mut World, client: usize, program: &mut Program<'_>) {
    let file = program.below(world.files.len());
    let seek_mode = match program.below(4) {
        0 => SeekMode::Approximate,
        1 => SeekMode::Mapped,
        _ => SeekMode::Exact,
    };
    world.open(client, file, seek_mode, program.below(4) == 3);
}

fn get_frames(world: &mut World, client: usize, program: &mut Program<'_>) {
    let Some(sources) = world.sources_of(client) else { return };
    let mut words = Vec::new();
    let mut expected = Some(Vec::new());
    let mut parts = Vec::new();
    for _ in 0..=program.below(3) {
        let choice = program.below(sources.len() + 1);
        let Some(&(source, file)) = sources.get(choice) else {
            let (source, wanted, dtype) = (SourceId(99), Wanted::PlayedAt(0.0), Dtype::Uint8);
            parts.push(Part { source, wanted, dtype, transforms: Vec::new() });
            expected = None;
            continue;
        };
        let file = &world.files[file];
        let style = program.below(4);
        let dtype = if style == 0 { Dtype::Float32 } else { Dtype::Uint8 };
        let (wanted, frames) = choose_frames(program, file.frame_count, &mut words);
        let transforms = choose_transforms(style, frames.as_ref().map_or(0, Vec::len), file);
        parts.push(Part { source, wanted, dtype, transforms: transforms.clone() });
        let checked = Transforms::new(transforms);
        let sized = checked.and_then(|all| all.size_after((file.height, file.width)).map(|size| (all, size)));
        expected =
            expected.zip(frames).zip(sized.ok()).map(|((mut expected, frames), (transforms, size))| {
                let (height, width) = size;
                let stamps = frames.iter().map(|&frame| file.stamp(frame)).collect();
                expected.push(ExpectedPart { stamps, transforms, height, width, dtype });
                expected
            });
    }
    let priority = [0, 0, 0, 1, -1, i8::MIN, i8::MAX][program.below(7)];
    let timeout_millis = [None, None, None, Some(0), Some(1000), Some(u64::MAX)][program.below(6)];
    let request = Request::GetFrames(GetFrames { parts, priority, timeout_millis });
    world.ask(client, &request, expected.map_or(Expected::Error, Expected::Frames), &words);
}

fn get_key_frames(world: &mut World, client: usize, program: &mut Program<'_>) {
    let Some(sources) = world.sources_of(client) else { return };
    let &(source, file) = &sources[program.below(sources.len())];
    let (file, from) = (&world.files[file], program.below(50) as u64);
    let key_frames = (from..file.frame_count).filter(|frame| frame.is_multiple_of(file.gop)).collect();
    let request = Request::GetKeyFrames(GetKeyFrames { source, from });
    world.ask(client, &request, Expected::KeyFrames(key_frames), &[]);
}

/// What shall be done to the pictures: something else for each number of frames. Now and then a crop of more than
/// there is.
fn choose_transforms(style: usize, count: usize, file: &SimulatedFile) -> Vec<Transform> {
    let (count, height, width) = (count as u32, file.height, file.width);
    match style {
        2 => vec![Transform::Crop { top: count % 4 / 3, left: count % (width + 1), height, width: 1 }],
        3 => vec![
            Transform::Resize { height: 1 + count % 3, width },
            Transform::CenterCrop { height: 1, width },
        ],
        _ => Vec::new(),
    }
}

/// A selection in one of its shapes, and the frames that it means; none where it is not valid.
fn choose_frames(
    program: &mut Program<'_>,
    count: u64,
    words: &mut Vec<[u8; 8]>,
) -> (Wanted, Option<Vec<u64>>) {
    let shape = program.below(9);
    let first = program.below(count as usize) as u64;
    let behind = first + 1 + program.below((count - first) as usize) as u64;
    let some: Vec<u64> = (first..behind).rev().chain([first]).collect();
    let times: Vec<f64> = some.iter().map(|&frame| frame as f64 + 0.25).collect();
    let offset_bytes = 8 * words.len() as u64;
    let memory = MemoryRange { offset_bytes, count: some.len() as u64 };
    match shape {
        0 => (Wanted::Indices(some.iter().map(|&frame| frame as i64).collect()), Some(some)),
        1 => (Wanted::Indices(some.iter().map(|&frame| frame as i64 - count as i64).collect()), Some(some)),
        2 => {
            let step = 1 + program.below(5) as u64;
            let frames = (first..behind).step_by(step as usize).collect();
            (Wanted::IndexRange { start: first, stop: behind, step }, Some(frames))
        }
        3 => (Wanted::PlayedAt(first as f64 + 0.5), Some(vec![first])),
        4 => (Wanted::PlayedAtEach(times), Some(some)),
        5 => {
            let frames = (first..behind).collect();
            (Wanted::PlayedInRange { start: first as f64 + 0.5, stop: behind as f64 - 0.25 }, Some(frames))
        }
        6 => {
            words.extend(some.iter().map(|frame| frame.to_le_bytes()));
            (Wanted::IndicesInMemory(memory), Some(some))
        }
        7 => {
            words.extend(times.iter().map(|time| time.to_le_bytes()));
            (Wanted::PlayedAtEachInMemory(memory), Some(some))
        }
        _ => (Wanted::Indices(vec![0, count as i64]), None),
    }
}

/// A client hands a lease on, and another, or itself, takes it over at once.
async fn hand_over(world: &mut World, client: usize, program: &mut Program<'_>) {
    world.issue_ticket(client, program.below(8));
    world.settle().await;
    world.check();
    world.redeem_ticket(program.below(CLIENTS_MAX), 0);
}

fn give_back(world: &mut World, client: usize, number: usize) {
    if let Some(lease) = world.give_up(client, number) {
        world.tell(client, &Notice::Release(vec![lease]));
    }
}

/// Leases that were given back, or are another client's, or were never granted.
fn guess_leases(world: &mut World, client: usize, distance: usize) {
    let guessed = world.leases_of_others(client);
    let never_granted = LeaseId(u64::MAX - distance as u64);
    world.tell(client, &Notice::Release([guessed, vec![never_granted]].concat()));
}

fn cancel(world: &mut World, client: usize, number: usize) {
    let request = world.unanswered(client, number).unwrap_or(12345);
    world.tell(client, &Notice::Cancel(request));
}

/// Frames of a source that is open, or of none, which may exist or not.
fn prefetch(world: &mut World, client: usize, program: &mut Program<'_>) {
    let Some(sources) = world.sources_of(client) else { return };
    let &(source, file) = sources.get(program.below(sources.len() + 1)).unwrap_or(&(SourceId(99), 0));
    let count = world.files[file].frame_count;
    let wanted = match program.below(3) {
        0 => Wanted::IndexRange { start: 0, stop: count, step: 1 },
        _ => choose_frames(program, count, &mut Vec::new()).0,
    };
    world.tell(client, &Notice::Prefetch(Prefetch { source, wanted }));
}

fn close_source(world: &mut World, client: usize, number: usize) {
    let source = world.forget_source(client, number).unwrap_or(SourceId(77));
    world.tell(client, &Notice::CloseSource(source));
}

/// Many requests for the same at once.
fn flood(world: &mut World, client: usize, program: &mut Program<'_>) {
    let Some(&(source, file)) = world.sources_of(client).as_ref().and_then(|sources| sources.first()) else {
        return;
    };
    let (file, frame) = (&world.files[file], program.below(world.files[file].frame_count as usize) as u64);
    let (height, width, dtype) = (file.height, file.width, Dtype::Uint8);
    let transforms = Transforms::default();
    let expected = ExpectedPart { stamps: vec![file.stamp(frame)], transforms, height, width, dtype };
    let part = Part { source, wanted: Wanted::PlayedAt(frame as f64), dtype, transforms: Vec::new() };
    let request = Request::GetFrames(GetFrames { parts: vec![part], priority: 0, timeout_millis: None });
    for _ in 0..70 {
        world.ask(client, &request, Expected::Frames(vec![expected.clone()]), &[]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    use reeld_protocol::error::ErrorCode;

    use super::*;

    #[test]
    fn no_program_breaks_the_broker() {
        // Always the same programs, so that the counts below are always the same; fuzzing finds others.
        let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let total = std::cell::Cell::new(Outcome::default());
        runner
            .run(&proptest::collection::vec(any::<u8>(), 0..800), |program| {
                let (one, sum) = (run(&program), total.get());
                total.set(Outcome {
                    frames_replies: sum.frames_replies + one.frames_replies,
                    errors: sum.errors + one.errors,
                    crashes: sum.crashes + one.crashes,
                    tickets_redeemed: sum.tickets_redeemed + one.tickets_redeemed,
                    hints_accepted: sum.hints_accepted + one.hints_accepted,
                });
                Ok(())
            })
            .unwrap();
        // The programs must have come somewhere, or they show nothing.
        let total = total.get();
        assert!(total.frames_replies > 100 && total.errors > 100 && total.crashes > 30, "{total:?}");
        assert!(total.hints_accepted > 30, "{total:?}");
    }

    #[test]
    fn programs_that_fuzzing_starts_from_are_still_fine() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/broker");
        let programs: Vec<_> = std::fs::read_dir(corpus).unwrap().collect();
        let outcomes =
            programs.iter().map(|program| run(&std::fs::read(program.as_ref().unwrap().path()).unwrap()));
        assert!(outcomes.map(|outcome| outcome.frames_replies).sum::<u64>() > 10);
    }

    /// What one step of a program that is all about tickets does: most of a program of random bytes is not.
    async fn hand_around(world: &mut World, step: u8, client: usize, number: usize) {
        let mut program = Program(&[]);
        match step {
            0 => world.connect(client as u32 % 2).await,
            1..=3 => {
                if world.sources_of(client).is_none() {
                    world.open(client, number % world.files.len(), SeekMode::Exact, false);
                    world.answer_everything().await;
                }
                get_frames(world, client, &mut program);
                world.answer_everything().await;
            }
            4 | 5 => world.issue_ticket(client, number),
            6..=8 => world.redeem_ticket(client, number),
            9 | 10 => give_back(world, client, number),
            11 => world.disconnect(client, number.is_multiple_of(2)).await,
            12 => world.name_session(client),
            13 => world.end_session(number),
            14 => world.pass(Duration::from_secs(61)),
            _ => get_frames(world, client, &mut program),
        }
        world.settle().await;
        world.scribble();
        world.check();
    }

    #[test]
    fn no_way_of_handing_frames_around_breaks_the_broker() {
        let mut runner =
            TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let redeemed_count = std::cell::Cell::new(0);
        let steps = proptest::collection::vec((0..16u8, 0..CLIENTS_MAX, 0..8usize), 0..80);
        runner
            .run(&steps, |steps| {
                let outcome = world::runtime().block_on(async {
                    let mut world = World::new(1);
                    for uid in [0, 0, 0, 1] {
                        world.connect(uid).await;
                    }
                    for (step, client, number) in steps {
                        hand_around(&mut world, step, client, number).await;
                    }
                    world.finish().await
                });
                redeemed_count.set(redeemed_count.get() + outcome.tickets_redeemed);
                Ok(())
            })
            .unwrap();
        assert!(redeemed_count.get() > 200, "{}", redeemed_count.get());
    }

    /// One client decodes, hands on and decodes again, while others take over, die and leave children behind.
    #[test]
    fn frames_are_handed_from_client_to_client_while_they_come_and_go() {
        let runtime = world::runtime();
        let outcome = runtime.block_on(async {
            let mut world = World::new(64);
            for _ in 0..3 {
                world.connect(0).await;
            }
            world.open(0, 0, SeekMode::Exact, false);
            world.answer_everything().await;
            let mut program = Program(&[0; 0]);
            for round in 0..40 {
                get_frames(&mut world, 0, &mut program);
                world.answer_everything().await;
                world.name_session(0);
                world.issue_ticket(0, round);
                world.settle().await;
                world.check();
                if round % 3 == 0 {
                    give_back(&mut world, 0, round % 2);
                }
                world.redeem_ticket(1 + round % 2, 0);
                world.settle().await;
                world.scribble();
                world.check();
                if round % 5 == 4 {
                    world.disconnect(1 + round % 2, round.is_multiple_of(2)).await;
                    world.connect(0).await;
                }
            }
            // Twice the same, and by another user.
            world.redeem_ticket(1, 0);
            world.disconnect(2, false).await;
            world.connect(1).await;
            world.issue_ticket(0, 0);
            world.settle().await;
            world.check();
            world.redeem_ticket(2, 0);
            world.disconnect(0, false).await;
            world.settle().await;
            world.check();
            world.redeem_ticket(1, 0);
            world.settle().await;
            world.check();
            world.finish().await
        });
        assert_eq!(outcome.tickets_redeemed, 41);
    }

    #[test]
    fn million_frames_beside_a_million_in_flight_are_over_the_limit() {
        let runtime = world::runtime();
        let code = runtime.block_on(async {
            let mut world = World::new(64);
            world.connect(0).await;
            world.open(0, 0, SeekMode::Approximate, false);
            world.answer_everything().await;
            let (source, _) = world.sources_of(0).unwrap()[0];
            let memory = MemoryRange { offset_bytes: 0, count: 1 << 20 };
            let part = Part {
                source,
                wanted: Wanted::IndicesInMemory(memory),
                dtype: Dtype::Uint8,
                transforms: Vec::new(),
            };
            let request =
                Request::GetFrames(GetFrames { parts: vec![part], priority: 0, timeout_millis: None });
            for _ in 0..2 {
                world.ask(0, &request, Expected::Error, &vec![[0; 8]; 1 << 20]);
            }
            world.settle().await;
            world.deliver_result(0);
            world.deliver_result(0);
            world.settle().await;
            world.last_error(0)
        });
        assert_eq!(code, Some(ErrorCode::LimitReached));
    }
}
