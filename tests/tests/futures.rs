//! The asynchronous face, without a runtime but the smallest.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use reeld_client::{AsyncClient, AsyncVideo, Error, Frames, OpenOptions, RequestOptions, Wanted};
use reeld_tests::{Daemon, Reference, block_on, clip};

const CLIP: &str = "h264_bframes.mp4";

async fn open(client: &AsyncClient) -> AsyncVideo {
    client.open(clip(CLIP), OpenOptions::default()).await.unwrap()
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Frames, Error>> + Send + 'a>>;

/// All answers, while all are waited for at once.
async fn all(mut futures: Vec<Answer<'_>>) -> Vec<Result<Frames, Error>> {
    let mut answers: Vec<Option<Result<Frames, Error>>> = futures.iter().map(|_| None).collect();
    poll_fn(move |context| {
        for (future, answer) in futures.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *answer = Some(ready);
            }
        }
        if answers.iter().all(Option::is_some) {
            return Poll::Ready(answers.iter_mut().filter_map(Option::take).collect());
        }
        Poll::Pending
    })
    .await
}

#[test]
fn awaited_frames_are_ffmpegs() {
    let daemon = Daemon::start();
    let client = AsyncClient::from(daemon.client());
    let reference = Reference::new(&clip(CLIP), 320, 180);
    block_on(async {
        let video = open(&client).await;
        assert_eq!(video.metadata().frame_count(), Some(50));
        assert!(video.frames_at(&[3, -1]).await.unwrap()[..] == reference.frames([3, -1])[..]);
        assert!(video.frames_in_range(4..6).await.unwrap()[..] == reference.frames([4, 5])[..]);
        assert!(video.frame_played_at(0.5).await.unwrap()[..] == *reference.frame(12));
        assert!(video.frames_played_at(&[1.0]).await.unwrap()[..] == *reference.frame(25));
        assert!(video.frames_played_in_range(0.0, 0.08).await.unwrap()[..] == reference.frames([0, 1])[..]);
        assert!(matches!(video.frames_at(&[50]).await, Err(Error::FrameIndex(_))));
        assert_eq!(client.status().await.unwrap().client_count, 1);
    });
}

#[test]
fn forty_requests_at_once_are_all_answered() {
    let daemon = Daemon::start();
    let client = AsyncClient::from(daemon.client());
    let reference = Reference::new(&clip(CLIP), 320, 180);
    block_on(async {
        let video = open(&client).await;
        let indices: Vec<i64> = (0..40).collect();
        let ask = |index: &i64| {
            Box::pin(video.frames(Wanted::Indices(vec![*index]), RequestOptions::default())) as Answer<'_>
        };
        let answers = all(indices.iter().map(ask).collect()).await;
        for (index, answer) in indices.iter().zip(answers) {
            assert!(answer.unwrap()[..] == *reference.frame(*index), "frame {index}");
        }
    });
}

#[test]
fn futures_and_blocking_calls_share_a_connection() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    let reference = Reference::new(&clip(CLIP), 320, 180);
    std::thread::scope(|scope| {
        let (video, reference) = (&video, &reference);
        for thread in 0..4 {
            scope.spawn(move || {
                for index in 0..50 {
                    let index = (index + thread * 11) % 50;
                    let frames = if thread % 2 == 0 {
                        video.frame_at(index).unwrap()
                    } else {
                        block_on(AsyncVideo::from(video.clone()).frames_at(&[index])).unwrap()
                    };
                    assert!(frames[..] == *reference.frame(index), "frame {index}");
                }
            });
        }
    });
}

#[test]
fn batch_and_reconnection_work_for_futures() {
    let mut daemon = Daemon::start();
    let client = AsyncClient::from(daemon.client());
    let reference = Reference::new(&clip(CLIP), 320, 180);
    block_on(async {
        let (one, other) = (open(&client).await, open(&client).await);
        daemon.kill();
        daemon.start_again();
        let parts = [(&one, Wanted::Indices(vec![1])), (&other, Wanted::PlayedAt(0.5))];
        let frames = client.frames(&parts, RequestOptions::default()).await.unwrap();
        assert!(frames.part(0).unwrap().pixels() == reference.frame(1));
        assert!(frames.part(1).unwrap().pixels() == reference.frame(12));
    });
}

#[test]
fn dropped_future_leaves_nothing() {
    let daemon = Daemon::start();
    let client = AsyncClient::from(daemon.client());
    block_on(async {
        let slow = client.open(clip("slow.mp4"), OpenOptions::default()).await.unwrap();
        let mut wish = Box::pin(slow.frames_at(&[-1]));
        poll_fn(|context| {
            assert!(wish.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    });
    drop(client);
    daemon.await_rest();
}
