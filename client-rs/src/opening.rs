//! [`Opening`]: a video that is being opened, to be waited for in pieces.
//!
//! Only files that cannot hang are opened in this way: see `nearby.rs`. All others are the matter of
//! [`Client::open`].

use std::path::Path;
use std::time::Duration;

use crate::call::Call;
use crate::client::{Client, source_of};
use crate::error::Error;
use crate::options::OpenOptions;
use crate::source::SourceFile;
use crate::video::Video;

/// A video that the daemon was asked to open. Dropping it closes it again.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// use std::path::Path;
/// use std::time::Duration;
/// use reeld_client::{Client, OpenOptions};
///
/// let client = Client::connect()?;
/// let (path, options) = (Path::new("clip.mp4"), OpenOptions::new());
/// let video = match client.begin_open(path, &options) {
///     Some(opening) => loop {
///         if let Some(video) = opening.wait_timeout(Duration::from_millis(50)) {
///             break video?;
///         }
///     },
///     None => client.open(path, options)?,
/// };
/// assert_eq!(video.metadata().duration_seconds(), Some(2.0));
/// # Ok::<(), reeld_client::Error>(())
/// ```
#[must_use = "dropping it closes the video again"]
pub struct Opening {
    client: Client,
    file: SourceFile,
    options: OpenOptions,
    call: Call,
}

impl Opening {
    pub(crate) fn begin(client: &Client, path: &Path, options: &OpenOptions) -> Option<Opening> {
        if options.mapping.is_some() {
            // It is long, and goes another way.
            return None;
        }
        let file = SourceFile::open_at_once(path)?;
        let call = client.start_open(file.clone(), options.clone()).ok()?;
        Some(Opening { client: client.clone(), file, options: options.clone(), call })
    }

    /// Waits for the video, at most that long. None where it is not open by then, and also where a signal came: then
    /// look after it and call again. The video is given once.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub fn wait_timeout(&self, patience: Duration) -> Option<Result<Video, Error>> {
        let opened = self.call.wait_answered_timeout(patience)?.and_then(source_of);
        Some(opened.and_then(|opened| {
            Video::opened(self.client.clone(), self.file.clone(), self.options.clone(), opened)
        }))
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening").field("label", &self.file.label).finish_non_exhaustive()
    }
}
