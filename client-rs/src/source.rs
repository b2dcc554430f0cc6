//! [`MediaSource`], what a caller opens, and `SourceFile`, the descriptor that it becomes.
//!
//! Nothing is parsed here, and nothing is read: the daemon gets the descriptor.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reeld_protocol::SealedMemfd;
use reeld_protocol::frame::OutgoingFd;
use rustix::fs::{FileType, Mode, OFlags};

use crate::error::Error;
use crate::nearby;
use crate::spool::Spool;

/// Where media come from.
#[derive(Debug)]
pub enum MediaSource {
    /// A file that this process may read. Only its descriptor reaches the daemon.
    Path(PathBuf),
    /// An open file and how messages shall call it.
    File(File, String),
    /// A whole file in memory. It is copied once, into memory that the daemon reads.
    Bytes(Vec<u8>),
    /// A whole file that was written piece by piece. It is not copied again.
    Spool(Spool),
}

impl From<&Path> for MediaSource {
    fn from(path: &Path) -> Self {
        MediaSource::Path(path.to_owned())
    }
}

impl From<PathBuf> for MediaSource {
    fn from(path: PathBuf) -> Self {
        MediaSource::Path(path)
    }
}

impl From<&PathBuf> for MediaSource {
    fn from(path: &PathBuf) -> Self {
        MediaSource::Path(path.clone())
    }
}

impl From<&str> for MediaSource {
    fn from(path: &str) -> Self {
        MediaSource::Path(path.into())
    }
}

impl From<String> for MediaSource {
    fn from(path: String) -> Self {
        MediaSource::Path(path.into())
    }
}

impl From<&OsStr> for MediaSource {
    fn from(path: &OsStr) -> Self {
        MediaSource::Path(path.into())
    }
}

impl From<File> for MediaSource {
    fn from(file: File) -> Self {
        MediaSource::File(file, "an open file".into())
    }
}

impl From<Vec<u8>> for MediaSource {
    fn from(bytes: Vec<u8>) -> Self {
        MediaSource::Bytes(bytes)
    }
}

impl From<&[u8]> for MediaSource {
    fn from(bytes: &[u8]) -> Self {
        MediaSource::Bytes(bytes.to_vec())
    }
}

impl From<Spool> for MediaSource {
    fn from(spool: Spool) -> Self {
        MediaSource::Spool(spool)
    }
}

/// The longest label that is sent, in bytes: as long as a path may be.
const LABEL_BYTES_MAX: usize = 4096;

/// An open source on this side. It outlives connections: after a fork or a restart of the daemon the same
/// descriptor is sent again.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub(crate) fd: OutgoingFd,
    pub(crate) label: String,
    pub(crate) is_memory: bool,
    first_seen: Option<Version>,
}

/// What tells a file from a later version of itself, as the daemon sees it: the descriptor is kept, so that
/// it is the same file, and a new name or mode of it changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    size_bytes: i64,
    modified_seconds: i64,
    modified_nanos: i64,
}

impl SourceFile {
    pub(crate) fn open(source: MediaSource) -> Result<SourceFile, Error> {
        let (fd, label, is_memory) = match source {
            MediaSource::Path(path) => (open_path(&path)?, path.to_string_lossy().into_owned(), false),
            MediaSource::File(file, label) => (file.into(), label, false),
            MediaSource::Bytes(bytes) => {
                let label = format!("{} bytes in memory", bytes.len());
                let memfd =
                    SealedMemfd::new("reeld-source", &bytes).map_err(|error| Error::io(&label, error))?;
                (memfd.into_fd(), label, true)
            }
            MediaSource::Spool(spool) => {
                let label = spool.label();
                let (fd, is_memory) = spool.finish().map_err(|error| Error::io(&label, error))?;
                (fd, label, is_memory)
            }
        };
        // Sealed memory cannot change. A file that cannot be examined is left to the daemon to refuse.
        let first_seen = if is_memory { None } else { version(fd.as_fd()).ok() };
        Ok(SourceFile { fd: Arc::new(fd), label: shorten(label), is_memory, first_seen })
    }

    /// A file of which the kernel alone has all that is asked; none where anything might have to be waited for.
    pub(crate) fn open_at_once(path: &Path) -> Option<SourceFile> {
        let fd = nearby::open_at_once(path)?;
        let first_seen = version(fd.as_fd()).ok();
        let label = shorten(path.to_string_lossy().into_owned());
        Some(SourceFile { fd: Arc::new(fd), label, is_memory: false, first_seen })
    }

    /// Whether another daemon would find what the first one found. Metadata may be equal where the content
    /// is not, so comparing those alone is not enough. May take long on a file system that does.
    pub(crate) fn check_unchanged(&self) -> Result<(), Error> {
        let Some(first_seen) = self.first_seen else { return Ok(()) };
        match version(self.fd.as_fd()) {
            Ok(now) if now == first_seen => Ok(()),
            Ok(_) => Err(self.changed()),
            Err(error) => Err(Error::io(&self.label, error)),
        }
    }

    /// All bytes, if they are not more than that. Leaves the position that the descriptor shares with others.
    pub(crate) fn content(&self, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
        let failed = |errno: rustix::io::Errno| Error::io(&self.label, errno);
        let length = rustix::fs::fstat(&self.fd).map_err(failed)?.st_size as u64;
        if length > bytes_max {
            return Ok(None);
        }
        let mut content = vec![0; length as usize];
        let mut read = 0;
        while read < content.len() {
            match rustix::io::pread(&self.fd, &mut content[read..], read as u64) {
                Ok(0) => return Err(self.changed()),
                Ok(more) => read += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        self.check_unchanged()?;
        Ok(Some(content))
    }

    pub(crate) fn changed(&self) -> Error {
        Error::SourceChanged(format!("{} was changed after it was opened; open it again", self.label))
    }
}

/// Opens a file for reading, without waiting: a FIFO without a writer would hold an ordinary open for ever.
fn open_path(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::io(path, errno))?;
    check_regular(fd.as_fd()).map_err(|error| Error::io(path, error))?;
    rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(|errno| Error::io(path, errno))?;
    nearby::note(&fd);
    Ok(fd)
}

fn version(fd: impl AsFd) -> io::Result<Version> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(Version {
        size_bytes: stat.st_size,
        modified_seconds: stat.st_mtime,
        modified_nanos: stat.st_mtime_nsec as i64,
    })
}

fn check_regular(fd: impl AsFd) -> io::Result<()> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not a regular file, but a {}; copy it to a file or pass its bytes", name_of(other)),
        )),
    }
}

fn name_of(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        FileType::RegularFile | FileType::Directory | FileType::Symlink | FileType::Unknown => "special file",
    }
}

fn shorten(mut label: String) -> String {
    if label.len() > LABEL_BYTES_MAX {
        let is_boundary = |end: &usize| label.is_char_boundary(*end);
        label.truncate((0..=LABEL_BYTES_MAX).rev().find(is_boundary).unwrap_or(0));
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifo_without_a_writer_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let error = SourceFile::open(path.into()).unwrap_err();
        assert!(error.to_string().contains("pipe"), "{error}");
    }

    #[test]
    fn directory_is_an_error_that_says_so() {
        let error = SourceFile::open("/".into()).unwrap_err();
        assert!(
            matches!(error, Error::Io { ref source, .. } if source.kind() == io::ErrorKind::IsADirectory)
        );
    }

    #[test]
    fn missing_file_is_an_error_with_its_path() {
        let error = SourceFile::open("/no/such/file.mp4".into()).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/file.mp4: "));
    }

    #[test]
    fn opened_file_blocks_again_and_long_labels_are_cut() {
        let file = SourceFile::open("/proc/self/exe".into()).unwrap();
        let flags = rustix::fs::fcntl_getfl(&file.fd).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
        let labelled = MediaSource::File(File::open("/proc/self/exe").unwrap(), "ü".repeat(4000));
        assert_eq!(SourceFile::open(labelled).unwrap().label.len(), LABEL_BYTES_MAX);
    }
}
