//! Is this descriptor a file that its sender may read, and which file is it? The calls here can hang on a
//! foreign file system, so they run on the helper pool, never on the loop's thread.
//!
//! Nothing is read from the file here.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use reeld_protocol::SealedMemfd;
use reeld_protocol::error::{ErrorCode, WireError};
use rustix::fs::{FileType, OFlags};

use super::mappings::Mapping;
use crate::link::FileIdentity;

/// A file that passed the checks.
#[derive(Debug)]
pub struct SourceFile {
    /// Open for reading, perhaps also for writing; never written to.
    pub fd: OwnedFd,
    /// Which file it is.
    pub identity: FileIdentity,
    /// The frames that its client says it has, if it said so.
    pub mapping: Option<Mapping>,
}

/// Checks a descriptor that a client sent, and reads the mapping that came with it. `label` is what messages call
/// the file.
pub fn check(
    fd: OwnedFd,
    mapping: Option<OwnedFd>,
    is_memory: bool,
    label: &str,
) -> Result<SourceFile, WireError> {
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| unreadable(label, error))?;
    let access = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) || access == OFlags::WRONLY {
        let reason = format!("{label}: the file must be opened for reading");
        return Err(WireError::new(ErrorCode::InvalidRequest, reason));
    }
    let file = File::from(fd);
    let stat = file.metadata().map_err(|error| unreadable(label, error))?;
    let kind = FileType::from_raw_mode(stat.mode());
    if kind != FileType::RegularFile {
        return Err(WireError::new(ErrorCode::Media, format!("{label}: {}", not_a_file(kind))));
    }
    if stat.size() == 0 {
        return Err(WireError::new(ErrorCode::Media, format!("{label}: the file is empty")));
    }
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let identity = FileIdentity {
        device: stat.dev(),
        inode: stat.ino(),
        size_bytes: stat.size(),
        modified_nanos: nanos(stat.mtime(), stat.mtime_nsec()),
        changed_nanos: nanos(stat.ctime(), stat.ctime_nsec()),
    };
    let fd = OwnedFd::from(file);
    let fd = if is_memory { sealed(fd, label)? } else { fd };
    let mapping = mapping.map(Mapping::read).transpose()?;
    Ok(SourceFile { fd, identity, mapping })
}

fn sealed(fd: OwnedFd, label: &str) -> Result<OwnedFd, WireError> {
    match SealedMemfd::from_peer(fd) {
        Ok(memory) => Ok(memory.into_fd()),
        Err(error) => Err(WireError::new(ErrorCode::InvalidRequest, format!("{label}: {error}"))),
    }
}

fn unreadable(label: &str, error: impl std::fmt::Display) -> WireError {
    WireError::new(ErrorCode::Media, format!("{label}: cannot be examined: {error}"))
}

fn not_a_file(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "is a directory, not a media file",
        FileType::Fifo => "is a named pipe, not a media file; pass its content as bytes",
        FileType::Socket => "is a socket, not a media file",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device, not a media file",
        FileType::RegularFile | FileType::Symlink | FileType::Unknown => "is not a regular file",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn code_of(fd: impl Into<OwnedFd>, is_memory: bool) -> ErrorCode {
        check(fd.into(), None, is_memory, "test").unwrap_err().code
    }

    #[test]
    fn regular_file_is_accepted_with_its_identity() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, b"twelve bytes").unwrap();
        let one = check(file.reopen().unwrap().into(), None, false, "a").unwrap();
        let other = check(file.reopen().unwrap().into(), None, false, "b").unwrap();
        assert_eq!(one.identity, other.identity);
        assert_eq!(one.identity.size_bytes, 12);
    }

    #[test]
    fn descriptor_that_cannot_be_read_is_an_invalid_request() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write_only = OpenOptions::new().write(true).open(&file).unwrap();
        assert_eq!(code_of(write_only, false), ErrorCode::InvalidRequest);
        let path_only = rustix::fs::open(file.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert_eq!(code_of(path_only, false), ErrorCode::InvalidRequest);
    }

    #[test]
    fn directory_device_and_empty_file_are_not_media() {
        assert_eq!(code_of(File::open("/").unwrap(), false), ErrorCode::Media);
        assert_eq!(code_of(File::open("/dev/zero").unwrap(), false), ErrorCode::Media);
        assert_eq!(code_of(tempfile::tempfile().unwrap(), false), ErrorCode::Media);
    }

    #[test]
    fn memory_that_can_still_change_is_refused() {
        let memory = SealedMemfd::new("test", b"bytes").unwrap().into_fd();
        assert!(check(memory, None, true, "memory").is_ok());
        let open = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&open, b"bytes").unwrap();
        assert_eq!(code_of(open, true), ErrorCode::InvalidRequest);
    }
}
