//! Tests of what is decoded ahead: when an engine is at it, what becomes of it, and what it never does to others.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::cell::Cell;
use std::time::Duration;

use proptest::test_runner::{Config, TestRunner};
use reeld_protocol::Transforms;
use reeld_protocol::message::{Dtype, GetFrames, Notice, Part, Prefetch, Request, SeekMode, Wanted};

use super::client::{Expected, ExpectedPart};
use super::engine::Conclusion;
use super::world::{self, World};
use super::{CLIENTS_MAX, CONCLUSIONS};

/// Of the first file: forty frames, a keyframe every ten.
const FRAME_COUNT: u64 = 40;
const GOP: u64 = 10;

/// Clients that have the first file open.
async fn scene(client_count: usize) -> World {
    let mut world = World::new(1);
    for client in 0..client_count {
        world.connect(0).await;
        world.open(client, 0, SeekMode::Exact, false);
    }
    world.answer_everything().await;
    world
}

async fn hint(world: &mut World, client: usize, wanted: Wanted) {
    let (source, _) = world.sources_of(client).unwrap()[0];
    world.tell(client, &Notice::Prefetch(Prefetch { source, wanted }));
    world.settle().await;
    world.check();
}

async fn hint_all(world: &mut World, client: usize) {
    hint(world, client, Wanted::IndexRange { start: 0, stop: FRAME_COUNT, step: 1 }).await;
}

async fn ask(world: &mut World, client: usize, frame: u64) {
    let (source, file) = world.sources_of(client).unwrap()[0];
    let file = &world.files[file];
    let (height, width, dtype) = (file.height, file.width, Dtype::Uint8);
    let stamps = vec![file.stamp(frame)];
    let expected = ExpectedPart { stamps, transforms: Transforms::default(), height, width, dtype };
    let wanted = Wanted::Indices(vec![frame as i64]);
    let part = Part { source, wanted, dtype, transforms: Vec::new() };
    let request =
        Request::GetFrames(GetFrames { parts: vec![part], priority: i8::MIN, timeout_millis: None });
    world.ask(client, &request, Expected::Frames(vec![expected]), &[]);
    world.settle().await;
    world.check();
}

async fn answer_one(world: &mut World, conclusion: Conclusion) {
    world.conclude(0, conclusion);
    world.hear_engine(0);
    world.settle().await;
    world.check();
}

#[test]
fn hinted_frames_are_decoded_while_nobody_waits_and_are_served_then() {
    world::runtime().block_on(async {
        let mut world = scene(1).await;
        hint(&mut world, 0, Wanted::Indices(vec![3, -1, 3])).await;
        assert_eq!(world.at_work(), [(0, 1)]);
        world.answer_everything().await;
        let totals = world.totals();
        assert_eq!((totals.hints_accepted, totals.hints_dropped, world.hints_waiting()), (3, 0, 0));
        ask(&mut world, 0, 3).await;
        world.answer_everything().await;
        world.finish().await;
    });
}

#[test]
fn request_goes_before_all_hints_whatever_its_priority() {
    world::runtime().block_on(async {
        let mut world = scene(2).await;
        hint_all(&mut world, 0).await;
        assert_eq!(world.at_work(), [(0, GOP as usize)]);
        ask(&mut world, 1, 35).await;
        // The audit sees that the engine was told to end its run. It does, in the middle.
        answer_one(&mut world, Conclusion::Yielded).await;
        let waiting_count = FRAME_COUNT - GOP / 2 - 1;
        assert_eq!((world.at_work(), world.hints_waiting()), (vec![(1, 5)], waiting_count));
        // Those of 30 to 34 are kept on the way, and not decoded once more.
        answer_one(&mut world, Conclusion::Done).await;
        assert_eq!((world.totals().frames_delivered, world.hints_waiting()), (1, waiting_count - 5));
        assert_eq!(world.at_work()[0].0, 0);
        world.answer_everything().await;
        assert_eq!(world.hints_waiting(), 0);
        world.finish().await;
    });
}

#[test]
fn flood_of_hints_never_comes_before_a_request() {
    world::runtime().block_on(async {
        let mut world = scene(3).await;
        for frame in 0..FRAME_COUNT {
            for client in 0..2 {
                hint_all(&mut world, client).await;
            }
            ask(&mut world, 2, frame).await;
            // Of one engine: what it was at, and what was asked for. Nothing is between them.
            for conclusion in [Conclusion::Yielded, Conclusion::Done] {
                if world.totals().frames_delivered == frame {
                    answer_one(&mut world, conclusion).await;
                }
            }
            assert_eq!(world.totals().frames_delivered, frame + 1);
        }
        world.finish().await;
    });
}

#[test]
fn request_joins_the_hinted_run_in_progress() {
    world::runtime().block_on(async {
        let mut world = scene(2).await;
        hint_all(&mut world, 0).await;
        ask(&mut world, 1, 7).await;
        assert_eq!(world.at_work(), [(1, GOP as usize)]);
        assert_eq!(world.totals().joined, 1);
        // It has passed it by: the request is a run of its own, before all hints.
        answer_one(&mut world, Conclusion::Yielded).await;
        assert_eq!(world.at_work(), [(1, 1)]);
        world.finish().await;
    });
}

#[test]
fn hints_of_a_client_that_goes_are_forgotten() {
    world::runtime().block_on(async {
        let mut world = scene(2).await;
        hint_all(&mut world, 0).await;
        world.disconnect(0, false).await;
        assert_eq!(world.hints_waiting(), 0);
        answer_one(&mut world, Conclusion::Yielded).await;
        assert_eq!(world.at_work(), []);
        world.finish().await;
    });
}

#[test]
fn hints_that_are_wrong_are_dropped_and_nobody_is_told() {
    world::runtime().block_on(async {
        let mut world = scene(1).await;
        hint(&mut world, 0, Wanted::Indices(vec![0, FRAME_COUNT as i64])).await;
        hint(&mut world, 0, Wanted::IndexRange { start: 0, stop: 5, step: 0 }).await;
        hint(&mut world, 0, Wanted::PlayedAt(f64::NAN)).await;
        assert_eq!((world.totals().hints_accepted, world.at_work().len()), (0, 0));
        assert_eq!(world.totals().hints_dropped, 2 + 5 + 1);
        world.finish().await;
    });
}

#[test]
fn hint_that_ends_its_engine_or_leads_nowhere_is_not_tried_again() {
    world::runtime().block_on(async {
        for conclusion in [None, Some(Conclusion::Stalled), Some(Conclusion::Failed)] {
            let mut world = scene(1).await;
            hint(&mut world, 0, Wanted::Indices(vec![3])).await;
            match conclusion {
                Some(conclusion) => answer_one(&mut world, conclusion).await,
                None => world.engine_ends(0, 11),
            }
            assert_eq!((world.hints_waiting(), world.at_work().len()), (0, 0));
            world.finish().await;
        }
    });
}

/// What one step of a program that is all about hints does.
async fn stir(world: &mut World, step: u8, client: usize, number: usize) {
    let there = world.sources_of(client).is_some();
    let frame = number as u64 * 7 % FRAME_COUNT;
    let source = number % 2;
    match step {
        0 => world.disconnect(client, number.is_multiple_of(2)).await,
        1..=4 if !there => {
            world.connect(client as u32 % 2).await;
            world.open(client, source, SeekMode::Exact, false);
            world.open(client, 0, SeekMode::Approximate, false);
            world.answer_everything().await;
        }
        1 => hint(world, client, Wanted::IndexRange { start: 0, stop: 12, step: 1 }).await,
        2 => hint(world, client, Wanted::Indices(vec![frame as i64 % 12, -1])).await,
        3 => hint(world, client, Wanted::PlayedAt(frame as f64 % 12.0)).await,
        4 | 5 if there => ask(world, client, frame % 12).await,
        6 => world.pass(Duration::from_secs(61)),
        7 => world.engine_ends(number, 11),
        8 => {
            if let Some(source) = world.forget_source(client, number) {
                world.tell(client, &Notice::CloseSource(source));
            }
        }
        9..=13 => {
            world.conclude(number, CONCLUSIONS[usize::from(step) * 31 % CONCLUSIONS.len()]);
            world.hear_engine(number);
        }
        _ => world.conclude(number, CONCLUSIONS[number % CONCLUSIONS.len()]),
    }
    world.settle().await;
    world.scribble();
    world.check();
}

#[test]
fn no_order_of_hints_and_requests_breaks_the_broker() {
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let total = Cell::new((0, 0, 0));
    let steps = proptest::collection::vec((0..16u8, 0..CLIENTS_MAX, 0..12usize), 0..120);
    runner
        .run(&steps, |steps| {
            let outcome = world::runtime().block_on(async {
                let mut world = scene(2).await;
                for (step, client, number) in steps {
                    stir(&mut world, step, client, number).await;
                }
                world.finish().await
            });
            let (replies, hints, crashes) = total.get();
            total.set((
                replies + outcome.frames_replies,
                hints + outcome.hints_accepted,
                crashes + outcome.crashes,
            ));
            Ok(())
        })
        .unwrap();
    let (replies, hints, crashes) = total.get();
    assert!(replies > 500 && hints > 2000 && crashes > 100, "{:?}", total.get());
}

#[test]
fn hints_that_nobody_follows_make_room_after_a_minute() {
    world::runtime().block_on(async {
        let mut world = scene(1).await;
        hint(&mut world, 0, Wanted::Indices(vec![3])).await;
        world.answer_everything().await;
        assert_eq!(world.hinting_clients(), 1);
        world.pass(Duration::from_secs(61));
        assert_eq!(world.hinting_clients(), 0);
        world.finish().await;
    });
}
