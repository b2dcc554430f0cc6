//! Pictures that are decoded ahead: they go into the cache alone, and come out of it as FFmpeg has them.

use reeld_protocol::message::Dtype;
use tempfile::TempDir;

use super::{Broker, H264, SOURCE, STREAM, clip, frames, start_of, video, wanted};
use crate::link::{
    Destination, EngineReply, EngineReport, EngineRequest, Run, RunStart, Target, WantedId, WantedPicture,
};

fn ahead(id: u64, target: Target) -> WantedPicture {
    WantedPicture { id: WantedId(id), target, destination: Destination::CACHE }
}

/// Runs in as many turns as it takes, or as those that are awaited take. What was finished, what failed, and what was done.
fn run(
    broker: &mut Broker,
    start: RunStart,
    pictures: &[WantedPicture],
) -> (Vec<u64>, Vec<u64>, EngineReport) {
    let (mut all_finished, mut all_failed, mut sum) = (Vec::new(), Vec::new(), EngineReport::default());
    let mut left = pictures.to_vec();
    let is_awaited = |picture: &WantedPicture| !picture.destination.is_cache();
    let has_awaited = pictures.iter().any(is_awaited);
    while left.iter().any(|picture| is_awaited(picture) || !has_awaited) {
        let (job, wanted, looks) = (broker.next_job(), left.clone(), broker.looks.clone());
        let run = Run { source: SOURCE, stream: STREAM, start, wanted, looks, thread_count: 0 };
        broker.send(&EngineRequest::Decode { job, run }, None);
        let EngineReply::RunEnded { finished, failed, report, .. } = broker.receive().0 else { panic!() };
        let failed: Vec<WantedId> = failed.into_iter().map(|(id, _)| id).collect();
        left.retain(|picture| !finished.contains(&picture.id) && !failed.contains(&picture.id));
        all_finished.extend(finished.iter().map(|id| id.0));
        all_failed.extend(failed.iter().map(|id| id.0));
        sum.pictures_decoded += report.pictures_decoded;
        sum.cache_hits += report.cache_hits;
        sum.prefetch_hits += report.prefetch_hits;
        sum.pictures_prefetched += report.pictures_prefetched;
    }
    (all_finished, all_failed, sum)
}

#[test]
fn picture_decoded_ahead_is_served_from_the_cache() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x90:d=2", H264);
    let mut broker = Broker::new(64 << 20);
    broker.add_source(&path);
    let media = broker.probe().unwrap();
    let header = video(&media).clone();
    let index = broker.scan();
    let reference = frames(&path, &header, "rgb24", 3);
    let (start, pts) =
        (start_of(&index, 25), |position: usize| Target::AtOrAfter(index.entries[position].pts));

    let hints = [ahead(1, pts(23)), ahead(2, pts(27))];
    let (finished, failed, report) = run(&mut broker, start, &hints);
    assert_eq!((finished, failed), (vec![1, 2], vec![]));
    assert_eq!((report.pictures_prefetched, report.cache_hits), (2, 0));
    // Again: they are there.
    let (finished, _, report) = run(&mut broker, start, &hints);
    assert_eq!(finished, [1, 2]);
    assert_eq!((report.pictures_decoded, report.pictures_prefetched, report.cache_hits), (0, 0, 0));

    let asked = [wanted(3, &header, pts(23), Dtype::Uint8), wanted(4, &header, pts(27), Dtype::Uint8)];
    for expected_hits in [2, 0] {
        let (_, _, report) = run(&mut broker, start, &asked);
        assert_eq!((report.pictures_decoded, report.cache_hits), (0, 2));
        assert_eq!(report.prefetch_hits, expected_hits);
    }
    assert!(broker.pixels(&asked[0]) == reference[23] && broker.pixels(&asked[1]) == reference[27]);
}

#[test]
fn picture_that_is_awaited_too_counts_as_asked_for() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x90:d=1", H264);
    let mut broker = Broker::new(64 << 20);
    broker.add_source(&path);
    let media = broker.probe().unwrap();
    let header = video(&media).clone();
    let index = broker.scan();
    let (start, target) = (start_of(&index, 7), Target::AtOrAfter(index.entries[7].pts));
    let asked = wanted(2, &header, target, Dtype::Uint8);
    let (_, failed, report) = run(&mut broker, start, &[ahead(1, target), asked]);
    assert_eq!((failed, report.pictures_prefetched), (vec![], 0));
    assert!(broker.pixels(&asked) == frames(&path, &header, "rgb24", 3)[7]);
}

#[test]
fn pictures_on_the_way_to_an_awaited_one_are_kept_and_no_others_are_fetched() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x90:d=2", H264);
    let mut broker = Broker::new(64 << 20);
    broker.add_source(&path);
    let media = broker.probe().unwrap();
    let header = video(&media).clone();
    let index = broker.scan();
    let reference = frames(&path, &header, "rgb24", 3);
    let (start, pts) =
        (start_of(&index, 25), |position: usize| Target::AtOrAfter(index.entries[position].pts));

    // Every picture on the way, those that nothing refers to as well.
    let along: Vec<WantedPicture> = (20..26).map(|position| ahead(position as u64, pts(position))).collect();
    let asked = wanted(26, &header, pts(26), Dtype::Uint8);
    let (finished, failed, report) = run(&mut broker, start, &[&along[..], &[asked]].concat());
    assert_eq!((finished, failed), ((20..27).collect(), vec![]));
    assert_eq!((report.pictures_prefetched, report.pictures_decoded), (6, 7));
    assert!(broker.pixels(&asked) == reference[26]);

    // From where the decoder is, one of these lies ahead; the other would take a way of its own.
    let asked = wanted(30, &header, pts(30), Dtype::Uint8);
    let pictures = [ahead(21, pts(21)), ahead(27, pts(27)), asked, ahead(35, pts(35))];
    assert_eq!(run(&mut broker, start, &pictures).0, [27, 30]);
    assert!(broker.pixels(&asked) == reference[30]);
}

#[test]
fn picture_behind_the_end_fails() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "clip.mp4", "testsrc2=s=160x90:d=1", H264);
    let mut broker = Broker::new(64 << 20);
    broker.add_source(&path);
    broker.probe().unwrap();
    let index = broker.scan();
    let hint = ahead(1, Target::AtOrAfter(i64::MAX / 2));
    assert_eq!(run(&mut broker, start_of(&index, 0), &[hint]).1, [1]);
}
