//! [`Video`]: an open video stream, from which frames are asked for by index and by time.
//!
//! Nothing is decoded in this process.

use std::sync::{Arc, Mutex, PoisonError};

use reeld_protocol::message::{Dtype, KEY_FRAMES_PER_REPLY_MAX, Prefetch, SeekMode, SourceOpened, Wanted};
use reeld_protocol::{SourceId, Transform, Transforms};

use crate::ask;
use crate::calls::{Answer, Expected};
use crate::client::Client;
use crate::connection::Connection;
use crate::error::Error;
use crate::fork::PerProcess;
use crate::frames::Frames;
use crate::link::{SLICE, SubmitError};
use crate::options::{FrameRange, OpenOptions, RequestOptions};
use crate::pending::Pending;
use crate::prefetch;
use crate::source::{MediaSource, SourceFile};
use crate::video_metadata::VideoMetadata;

/// An open video stream. A clone is cheap and means the same stream.
///
/// A `Video` survives the daemon: after a restart of the daemon, and in a forked child, it opens its file
/// again by itself, through the descriptor that it keeps.
///
/// Results are [`Frames`] of N × H × W × 3 values: red, green and blue, `u8` unless
/// [`OpenOptions::dtype`] says otherwise, and for each frame its pts and duration in seconds.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// use reeld_client::Video;
///
/// let video = Video::open("clip.mp4")?;
/// let metadata = video.metadata();
/// assert_eq!((metadata.width(), metadata.height()), (320, 180));
/// assert_eq!(metadata.duration_seconds(), Some(2.0));
///
/// let by_index = video.frames_in_range((0, 50, 10))?;
/// assert_eq!(by_index.part(0).map(|part| part.shape()), Some([5, 180, 320, 3]));
/// let by_time = video.frame_played_at(0.4)?;
/// assert_eq!(by_time[..], video.frame_at(10)?[..]);
/// # Ok::<(), reeld_client::Error>(())
/// ```
#[derive(Clone)]
pub struct Video {
    shared: Arc<Shared>,
    transforms: Transforms,
    frame_size: (u32, u32),
}

struct Shared {
    client: Client,
    file: SourceFile,
    options: OpenOptions,
    metadata: VideoMetadata,
    dtype: Dtype,
    quota_bytes: u64,
    opened: PerProcess<Mutex<Option<Opened>>>,
}

/// A source as one connection knows it.
struct Opened {
    connection: Arc<Connection>,
    source: SourceId,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.connection.close_source(self.source);
    }
}

impl Video {
    /// Opens a file with the process-wide client, [`Client::shared`], and default options.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened here, [`Error::Media`] if it is no video,
    /// [`Error::DaemonUnavailable`] if there is no daemon and none can be started.
    pub fn open(source: impl Into<MediaSource>) -> Result<Video, Error> {
        Client::shared()?.open(source, OpenOptions::default())
    }

    /// Opens a file with the process-wide client.
    ///
    /// # Errors
    /// As [`Video::open`]; [`Error::InvalidRequest`] if there is no such stream.
    pub fn open_with(source: impl Into<MediaSource>, options: OpenOptions) -> Result<Video, Error> {
        Client::shared()?.open(source, options)
    }

    pub(crate) fn new(client: Client, source: MediaSource, options: OpenOptions) -> Result<Video, Error> {
        if options.mapping.is_some() && options.seek_mode == SeekMode::Approximate {
            let message = "a mapping says exactly where frames are: leave SeekMode::Approximate out";
            return Err(Error::InvalidRequest(message.into()));
        }
        let file = SourceFile::open(source)?;
        let opened = client.open_source(file.clone(), options.clone())?;
        Video::opened(client, file, options, opened)
    }

    /// One that a connection has opened.
    pub(crate) fn opened(
        client: Client,
        file: SourceFile,
        options: OpenOptions,
        (connection, opened): (Arc<Connection>, SourceOpened),
    ) -> Result<Video, Error> {
        let source = opened.source;
        let metadata = VideoMetadata::new(opened)?;
        let (dtype, frame_size) =
            (options.dtype.resolve(metadata.video()), (metadata.height(), metadata.width()));
        let quota_bytes = connection.ledger().quota_bytes();
        let opened = PerProcess::<Mutex<Option<Opened>>>::new();
        *lock(&opened) = Some(Opened { connection, source });
        let shared = Shared { client, file, options, metadata, dtype, quota_bytes, opened };
        Ok(Video { shared: Arc::new(shared), transforms: Transforms::default(), frame_size })
    }

    /// What is known of the file and the stream.
    pub fn metadata(&self) -> &VideoMetadata {
        &self.shared.metadata
    }

    /// The client that it was opened with.
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// The most bytes that results of this process may have together, as the daemon said when the video was
    /// opened.
    pub fn quota_bytes(&self) -> u64 {
        self.shared.quota_bytes
    }

    /// How it was opened.
    pub fn options(&self) -> &OpenOptions {
        &self.shared.options
    }

    /// How messages call the file: its path, unless it was opened in another way.
    pub fn label(&self) -> &str {
        &self.shared.file.label
    }

    /// The same stream with frames that the daemon transforms before it delivers them: scaled, or cut to what
    /// is needed, after they were turned upright. That takes less memory than whole frames, and less time than
    /// doing it afterwards. Transforms come after those that the video has already, at most 8 altogether.
    ///
    /// Nothing is opened anew, and requests for several views of one video share what was decoded.
    ///
    /// ```
    /// # reeld_tests::enter_example_folder();
    /// use reeld_client::{Transform, Video};
    ///
    /// let video = Video::open("clip.mp4")?;
    /// let small = video.transformed(&[
    ///     Transform::Resize { height: 90, width: 160 },
    ///     Transform::CenterCrop { height: 64, width: 64 },
    /// ])?;
    /// assert_eq!(small.frame_at(10)?.part(0).map(|part| part.shape()), Some([1, 64, 64, 3]));
    /// assert_eq!((small.metadata().height(), small.frame_height()), (180, 64));
    /// # Ok::<(), reeld_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if they are too many, a size is 0 or too large, or a crop does not lie within
    /// the frames that it is to be cut from.
    pub fn transformed(&self, transforms: &[Transform]) -> Result<Video, Error> {
        let all = [self.transforms.as_slice(), transforms].concat();
        let metadata = self.metadata();
        let checked = Transforms::new(all).and_then(|transforms| {
            let frame_size = transforms.size_after((metadata.height(), metadata.width()))?;
            Ok(Video { shared: Arc::clone(&self.shared), transforms, frame_size })
        });
        checked.map_err(|error| Error::InvalidRequest(format!("{}: {error}", self.label())))
    }

    /// What is done to the frames before they are delivered.
    pub fn transforms(&self) -> &[Transform] {
        self.transforms.as_slice()
    }

    /// Rows of the frames that are returned: after rotation and all transforms.
    pub fn frame_height(&self) -> u32 {
        self.frame_size.0
    }

    /// Columns of the frames that are returned: after rotation and all transforms.
    pub fn frame_width(&self) -> u32 {
        self.frame_size.1
    }

    /// Type of the values of returned pixels.
    pub fn dtype(&self) -> Dtype {
        self.shared.dtype
    }

    /// The content of the source, read through the descriptor that was passed; none where it has more bytes than that.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::SourceChanged`] if it was changed after it was opened.
    pub fn content(&self, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
        self.shared.file.content(bytes_max)
    }

    /// One frame by index; negative ones count from the end.
    ///
    /// # Errors
    /// As [`Video::frames_at`].
    pub fn frame_at(&self, index: i64) -> Result<Frames, Error> {
        self.frames_at(&[index])
    }

    /// Frames by index, in that order, duplicates included. Negative indices count from the end.
    ///
    /// # Errors
    /// [`Error::FrameIndex`] if there is no such frame; [`Error::NoSlots`] if the result does not fit
    /// beside the frames that this process keeps; [`Error::Media`] if the file is damaged there.
    pub fn frames_at(&self, indices: &[i64]) -> Result<Frames, Error> {
        self.fetch(Wanted::Indices(indices.to_vec()))
    }

    /// Frames by index: `0..10`, or `(0, 100, 10)` for every tenth below 100.
    ///
    /// # Errors
    /// As [`Video::frames_at`]; [`Error::InvalidRequest`] if the step is 0.
    pub fn frames_in_range(&self, range: impl Into<FrameRange>) -> Result<Frames, Error> {
        self.fetch(range.into().into())
    }

    /// The frame that is on display at a time in seconds: pts <= time < pts + duration.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`] if the time lies outside the stream or is not a number.
    pub fn frame_played_at(&self, seconds: f64) -> Result<Frames, Error> {
        self.fetch(Wanted::PlayedAt(seconds))
    }

    /// For each time in seconds the frame that is on display then.
    ///
    /// # Errors
    /// As [`Video::frame_played_at`].
    pub fn frames_played_at(&self, seconds: &[f64]) -> Result<Frames, Error> {
        self.fetch(Wanted::PlayedAtEach(seconds.to_vec()))
    }

    /// All frames that are on display at some moment of [start, stop), in seconds.
    ///
    /// # Errors
    /// As [`Video::frame_played_at`].
    pub fn frames_played_in_range(&self, start: f64, stop: f64) -> Result<Frames, Error> {
        self.fetch(Wanted::PlayedInRange { start, stop })
    }

    /// The indices of the frames that decoding can begin at, ascending. Frames near behind one of them are
    /// cheap to get. Asks the daemon each time.
    ///
    /// # Errors
    /// [`Error::Unsupported`] in approximate mode, which does not know them.
    pub fn key_frames(&self) -> Result<Vec<u64>, Error> {
        let mut all = Vec::new();
        loop {
            let from = all.last().map_or(0, |last| last + 1);
            let some = self.shared.client.key_frames(self, from)?;
            if some.first().is_some_and(|&first| first < from) || !some.is_sorted_by(|one, other| one < other)
            {
                return Err(Error::Protocol("keyframes that do not ascend".into()));
            }
            let count = some.len();
            all.extend(some);
            if count < KEY_FRAMES_PER_REPLY_MAX {
                return Ok(all);
            }
        }
    }

    /// Asks for frames and does not wait for them.
    ///
    /// ```
    /// # reeld_tests::enter_example_folder();
    /// use reeld_client::{RequestOptions, Video, Wanted};
    ///
    /// let video = Video::open("clip.mp4")?;
    /// let ahead: Vec<_> = (0..4)
    ///     .map(|index| video.submit(Wanted::Indices(vec![index]), RequestOptions::new()))
    ///     .collect::<Result<_, _>>()?;
    /// for pending in ahead {
    ///     assert_eq!(pending.wait()?.frame_count(), 1);
    /// }
    /// # Ok::<(), reeld_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub fn submit(&self, wanted: Wanted, options: RequestOptions) -> Result<Pending, Error> {
        self.shared.client.submit(&[(self, wanted)], options)
    }

    /// Tells the daemon which frames will be asked for, by this process or by others of the same user. Where nobody
    /// waits for anything else, they are decoded ahead and kept; asking for them then takes no decoding, whatever their
    /// transforms and dtype are to be. Never waits, and brings no frames.
    ///
    /// It is a hint. The daemon drops what is too much (a quarter of the picture caches for one client, and at most 4096
    /// frames), and forgets it when this client goes. Where the daemon is away, nothing happens.
    ///
    /// ```
    /// # reeld_tests::enter_example_folder();
    /// use reeld_client::{Video, Wanted};
    ///
    /// let video = Video::open("clip.mp4")?;
    /// video.prefetch(Wanted::Indices(vec![30, 31, -1]))?;
    /// assert_eq!(video.frames_at(&[30, 31, -1])?.frame_count(), 3);
    /// # Ok::<(), reeld_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As asking for the frames, as far as that is known here: [`Error::FrameIndex`], [`Error::TimeOutOfRange`],
    /// [`Error::InvalidRequest`] for a range that is none. Then nothing is prefetched.
    pub fn prefetch(&self, wanted: Wanted) -> Result<(), Error> {
        prefetch::check(&wanted, self.metadata())?;
        if let Some(connection) = self.shared.client.open_connection()
            && let Some(source) = self.source_at_once(&connection)
        {
            connection.hint(Prefetch { source, wanted: prefetch::shortened(wanted) });
        }
        Ok(())
    }

    fn fetch(&self, wanted: Wanted) -> Result<Frames, Error> {
        self.submit(wanted, RequestOptions::default())?.wait()
    }

    /// The source's name on a connection, if no waiting is necessary to know it.
    pub(crate) fn source_at_once(&self, connection: &Connection) -> Option<SourceId> {
        let opened = self.shared.opened.get().try_lock().ok()?;
        let known = opened.as_ref()?;
        (known.connection.serial() == connection.serial()).then_some(known.source)
    }

    /// The source's name on a connection: known already, or after opening the file there. `is_wanted` is
    /// asked now and then while that lasts.
    pub(crate) fn source_on(
        &self,
        connection: &Arc<Connection>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<SourceId, Error> {
        // Held while waiting for the daemon, against the usual rule: whoever else asks needs the same answer.
        let mut opened = lock(&self.shared.opened);
        if let Some(known) = opened.as_ref()
            && known.connection.serial() == connection.serial()
        {
            return Ok(known.source);
        }
        let file = &self.shared.file;
        file.check_unchanged()?;
        let answer = reopen(connection, file, &self.shared.options, is_wanted)?;
        let source = answer.source;
        let reopened = Opened { connection: Arc::clone(connection), source };
        if VideoMetadata::new(answer)? != self.shared.metadata {
            return Err(file.changed());
        }
        *opened = Some(reopened);
        Ok(source)
    }
}

/// Opens a file on one connection and no other. Waits as long as that is wanted.
fn reopen(
    connection: &Arc<Connection>,
    file: &SourceFile,
    options: &OpenOptions,
    is_wanted: &dyn Fn() -> bool,
) -> Result<SourceOpened, Error> {
    let (request, fds) = ask::open_source(file, options);
    let key = match connection.submit(&request, fds, Expected::SourceOpened, None) {
        Ok(key) => key,
        Err(SubmitError::Closed) => return Err(Error::unavailable("the daemon closed the connection")),
        Err(SubmitError::Failed(error)) => return Err(error),
    };
    let outcome = loop {
        match connection.wait(key, Some(SLICE)) {
            Some(outcome) => break outcome,
            None if is_wanted() => {}
            None => break Err(Error::Cancelled("nobody waits for the video any more".into())),
        }
    };
    connection.abandon(key);
    match outcome? {
        Answer::SourceOpened(opened) => Ok(*opened),
        Answer::Frames(_) | Answer::Status(_) | Answer::KeyFrames(_) | Answer::Ticket(_) => {
            Err(Error::Protocol("an answer of another kind".into()))
        }
    }
}

fn lock(opened: &PerProcess<Mutex<Option<Opened>>>) -> std::sync::MutexGuard<'_, Option<Opened>> {
    opened.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Video {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Video").field("label", &self.label()).finish_non_exhaustive()
    }
}
