//! Frames lie in shared memory, go back when they are dropped, and may be kept beyond the quota.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use reeld_client::{Client, Error, Frames, OpenOptions, RequestOptions, Video, Wanted};
use reeld_tests::{Daemon, Reference, clip, eventually, twenty_clips};

/// 125 frames of 640 x 360: 82 MiB of pixels, ten times the quota.
const LARGE: &str = "ten_quotas.mp4";
const QUOTA: [&str; 2] = ["--client-memory-mib", "8"];

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

#[test]
fn frames_are_not_copied_on_this_side() {
    let daemon = Daemon::start();
    let video = open(&daemon.client(), LARGE);
    let frames: Vec<Frames> = (0..3).map(|index| video.frame_at(index).unwrap()).collect();
    for frame in &frames {
        let address = frame.part(0).unwrap().address().as_ptr() as usize;
        assert!(frame.arena_addresses().unwrap().contains(&address));
    }
    assert_eq!(video.client().statistics().leases_held, 3);
}

#[test]
fn frames_of_ten_quotas_can_be_kept() {
    let daemon = Daemon::with(&QUOTA);
    let path = clip(LARGE);
    let video = open(&daemon.client(), LARGE);
    let kept: Vec<Frames> = (0..125).map(|index| video.frame_at(index).unwrap()).collect();
    let reference = Reference::new(&path, 640, 360);
    for (index, frame) in kept.iter().enumerate() {
        assert!(frame[..] == *reference.frame(index as i64), "frame {index}");
    }
    let statistics = video.client().statistics();
    assert_eq!(statistics.frames_copied_out + statistics.leases_held, 125);
    assert!(statistics.leased_bytes <= statistics.quota_bytes / 2, "{statistics:?}");
}

#[test]
fn eight_threads_may_keep_frames_of_one_quota_together() {
    let daemon = Daemon::with(&QUOTA);
    let video = open(&daemon.client(), LARGE);
    let reference = Reference::new(&clip(LARGE), 640, 360);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (video, reference) = (&video, &reference);
            scope.spawn(move || {
                let indices: Vec<i64> = (0..25).map(|step| (thread * 16 + step * 5) % 125).collect();
                let kept: Vec<_> = indices.iter().map(|index| video.frame_at(*index).unwrap()).collect();
                for (index, frame) in indices.iter().zip(&kept) {
                    assert!(frame[..] == *reference.frame(*index), "frame {index}");
                }
            });
        }
    });
}

#[test]
fn requests_made_ahead_of_the_quota_all_succeed() {
    let daemon = Daemon::with(&QUOTA);
    let video = open(&daemon.client(), LARGE);
    let reference = Reference::new(&clip(LARGE), 640, 360);
    let request = |first: i64| {
        video.submit(Wanted::Indices(vec![first, first + 1]), RequestOptions::default()).unwrap()
    };
    let pending: Vec<_> = (0..60).map(|number| request(number * 2)).collect();
    for (number, pending) in pending.into_iter().enumerate().rev() {
        let first = number as i64 * 2;
        let frames = pending.wait().unwrap();
        assert!(frames[..] == reference.frames([first, first + 1])[..], "request {number}");
    }
}

#[test]
fn result_above_the_quota_is_no_slots_and_names_the_quota() {
    let daemon = Daemon::with(&QUOTA);
    let video = open(&daemon.client(), LARGE);
    let error = video.frames_in_range(0..20).unwrap_err();
    assert!(matches!(error, Error::NoSlots(_)), "{error:?}");
    assert!(error.to_string().contains("8.0 MiB"), "{error}");
    assert_eq!(video.frame_at(3).unwrap().frame_count(), 1);
}

#[test]
fn dropped_frames_go_back_without_another_request() {
    let daemon = Daemon::start();
    let (watcher, client) = (daemon.client(), daemon.client());
    let video = open(&client, "h264_bframes.mp4");
    let frames: Vec<_> = (0..5).map(|index| video.frame_at(index).unwrap()).collect();
    assert_eq!(watcher.status().unwrap().lease_count, 5);
    std::thread::spawn(move || drop(frames)).join().unwrap();
    eventually("no leases", || (watcher.status().unwrap().lease_count == 0).then_some(()));
    drop((client, video, watcher));
    assert_eq!(daemon.await_rest().totals.stray_releases, 0);
}

#[test]
fn video_closed_before_the_first_frame_does_not_keep_frames_from_going_back() {
    let daemon = Daemon::start();
    let (watcher, client) = (daemon.client(), daemon.client());
    // What is given back before there is any lease once put the housekeeper to sleep for ever.
    drop(open(&client, "h264_bframes.mp4"));
    drop(open(&client, "h264_bframes.mp4").frame_at(0).unwrap());
    eventually("no leases", || (watcher.status().unwrap().lease_count == 0).then_some(()));
}

#[test]
fn frames_outlive_their_client() {
    let daemon = Daemon::start();
    let path = clip("h264_bframes.mp4");
    let frames = open(&daemon.client(), "h264_bframes.mp4").frame_at(20).unwrap();
    daemon.await_rest();
    assert!(frames[..] == *Reference::new(&path, 320, 180).frame(20));
}

#[test]
fn frames_are_writable_and_belong_to_their_request_alone() {
    let daemon = Daemon::start();
    let video = open(&daemon.client(), "h264_bframes.mp4");
    let mut painted = video.frame_at(4).unwrap();
    painted.pixels_mut(0).unwrap().fill(0);
    let fresh = video.frame_at(4).unwrap();
    assert!(painted.iter().all(|value| *value == 0));
    assert!(fresh[..] == *Reference::new(&clip("h264_bframes.mp4"), 320, 180).frame(4));
}

#[test]
fn batch_of_many_videos_comes_in_one_slot() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let paths = twenty_clips();
    let videos = paths.each_ref().map(|path| client.open(path, OpenOptions::default()).unwrap());
    let parts: Vec<_> = videos.iter().map(|video| (video, Wanted::Indices(vec![7, -1]))).collect();
    let frames = client.submit(&parts, RequestOptions::default()).unwrap().wait().unwrap();
    assert_eq!((frames.part_count(), client.statistics().leases_held), (20, 1));
    for (part, path) in frames.parts().zip(&paths) {
        let reference = Reference::new(path, 160, 96);
        assert!(part.pixels() == reference.frames([7, -1]), "{}", path.display());
        assert_eq!(part.pts_seconds(), [7.0 / 25.0, 29.0 / 25.0]);
    }
}

#[test]
fn video_of_another_client_cannot_be_part_of_a_request() {
    let daemon = Daemon::start();
    let (one, other) = (daemon.client(), daemon.client());
    let video = open(&one, "h264_bframes.mp4");
    let result = other.submit(&[(&video, Wanted::PlayedAt(0.0))], RequestOptions::default());
    assert!(matches!(result, Err(Error::InvalidRequest(_))));
}
