//! [`AsyncClient`] and [`AsyncVideo`]: the same as `Client` and `Video`, for futures.
//!
//! No particular runtime is needed: futures are woken by a thread of this library that reads while one
//! waits. There is nothing here that the blocking side does not have.

use reeld_protocol::message::Wanted;
use reeld_protocol::status::Status;

use crate::client::{Client, status_of};
use crate::error::Error;
use crate::frames::Frames;
use crate::offload::offload;
use crate::options::{FrameRange, OpenOptions, RequestOptions};
use crate::source::MediaSource;
use crate::video::Video;
use crate::video_metadata::VideoMetadata;

/// A [`Client`] for futures. Cheap to clone.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// # use reeld_tests::block_on;
/// use reeld_client::{AsyncClient, OpenOptions};
///
/// # block_on(async {
/// let client = AsyncClient::connect().await?;
/// let video = client.open("clip.mp4", OpenOptions::new()).await?;
/// let frames = video.frames_at(&[0, 25]).await?;
/// assert_eq!(frames.frame_count(), 2);
/// # Ok::<(), reeld_client::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct AsyncClient {
    client: Client,
}

impl From<Client> for AsyncClient {
    fn from(client: Client) -> Self {
        AsyncClient { client }
    }
}

impl AsyncClient {
    /// As [`Client::connect`].
    ///
    /// # Errors
    /// As there.
    pub async fn connect() -> Result<AsyncClient, Error> {
        offload(Client::connect).await.map(AsyncClient::from)
    }

    /// The blocking face of the same connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// As [`Client::open`].
    ///
    /// # Errors
    /// As there.
    pub async fn open(
        &self,
        source: impl Into<MediaSource>,
        options: OpenOptions,
    ) -> Result<AsyncVideo, Error> {
        let (client, source) = (self.client.clone(), source.into());
        // Opening a file may take long: on NFS, or where the daemon has to scan it first.
        let video = offload(move || client.open(source, options)).await?;
        Ok(AsyncVideo { video })
    }

    /// As [`Client::submit`], until the frames are there.
    ///
    /// # Errors
    /// As there, and as [`crate::Pending::wait`].
    pub async fn frames(
        &self,
        parts: &[(&AsyncVideo, Wanted)],
        options: RequestOptions,
    ) -> Result<Frames, Error> {
        let parts: Vec<_> =
            parts.iter().map(|(video, wanted)| (video.video.clone(), wanted.clone())).collect();
        submit(&self.client, parts, options).await
    }

    /// As [`Client::status`].
    ///
    /// # Errors
    /// As there.
    pub async fn status(&self) -> Result<Status, Error> {
        let call = self.client.start_status()?;
        status_of(std::future::poll_fn(|context| call.poll(context)).await?)
    }
}

/// A [`Video`] for futures. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AsyncVideo {
    video: Video,
}

impl From<Video> for AsyncVideo {
    fn from(video: Video) -> Self {
        AsyncVideo { video }
    }
}

impl AsyncVideo {
    /// The blocking face of the same video.
    pub fn video(&self) -> &Video {
        &self.video
    }

    /// As [`Video::metadata`].
    pub fn metadata(&self) -> &VideoMetadata {
        self.video.metadata()
    }

    /// As [`Video::frames_at`].
    ///
    /// # Errors
    /// As there.
    pub async fn frames_at(&self, indices: &[i64]) -> Result<Frames, Error> {
        self.frames(Wanted::Indices(indices.to_vec()), RequestOptions::default()).await
    }

    /// As [`Video::frames_in_range`].
    ///
    /// # Errors
    /// As there.
    pub async fn frames_in_range(&self, range: impl Into<FrameRange>) -> Result<Frames, Error> {
        self.frames(range.into().into(), RequestOptions::default()).await
    }

    /// As [`Video::frame_played_at`].
    ///
    /// # Errors
    /// As there.
    pub async fn frame_played_at(&self, seconds: f64) -> Result<Frames, Error> {
        self.frames(Wanted::PlayedAt(seconds), RequestOptions::default()).await
    }

    /// As [`Video::frames_played_at`].
    ///
    /// # Errors
    /// As there.
    pub async fn frames_played_at(&self, seconds: &[f64]) -> Result<Frames, Error> {
        self.frames(Wanted::PlayedAtEach(seconds.to_vec()), RequestOptions::default()).await
    }

    /// As [`Video::frames_played_in_range`].
    ///
    /// # Errors
    /// As there.
    pub async fn frames_played_in_range(&self, start: f64, stop: f64) -> Result<Frames, Error> {
        self.frames(Wanted::PlayedInRange { start, stop }, RequestOptions::default()).await
    }

    /// Frames of any kind of wish, with options.
    ///
    /// # Errors
    /// As [`Video::submit`] and [`crate::Pending::wait`].
    pub async fn frames(&self, wanted: Wanted, options: RequestOptions) -> Result<Frames, Error> {
        submit(self.video.client(), vec![(self.video.clone(), wanted)], options).await
    }
}

/// Sends from this thread, except where that means waiting until other requests have gone out.
async fn submit(
    client: &Client,
    parts: Vec<(Video, Wanted)>,
    options: RequestOptions,
) -> Result<Frames, Error> {
    if client.has_room() {
        return client.submit_now(parts, options.priority, options.deadline())?.await;
    }
    let client = client.clone();
    let deadline = options.deadline();
    let send = move || {
        client.wait_for_room(deadline)?;
        client.submit_now(parts, options.priority, deadline)
    };
    offload(send).await?.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futures_may_move_between_threads() {
        fn is_send<T: Send>(_: &T) {}
        let _ = |client: AsyncClient, video: AsyncVideo| {
            is_send(&client.open("clip.mp4", OpenOptions::new()));
            is_send(&client.status());
            is_send(&client.frames(&[], RequestOptions::new()));
            is_send(&video.frames_at(&[]));
            is_send(&AsyncClient::connect());
        };
    }

    #[test]
    fn handles_may_be_shared_by_threads() {
        fn is_shareable<T: Send + Sync>() {}
        is_shareable::<Client>();
        is_shareable::<Video>();
        is_shareable::<Frames>();
        is_shareable::<crate::Pending>();
    }
}
