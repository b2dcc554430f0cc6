//! Files that can be opened without a thread for it: those of which the kernel knows by itself where they are and
//! what they are.
//!
//! Calls on a file may hang as long as its file system does, on NFS or FUSE for ever, so they are made in a thread that
//! can be left behind. That costs more than the daemon takes to open a video that it knows. How a file is opened
//! where it may hang is not decided here.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, fstatfs, open, openat2, statx};

/// File systems on a disk of this machine, by the numbers of linux/magic.h: ext2 to ext4, XFS, F2FS.
const LOCAL_KINDS: [u64; 3] = [0xef53, 0x5846_5342, 0xf2f5_2010];

/// Disks that are remembered. Who has more waits a little longer for files on the others.
const DEVICES_MAX: usize = 64;

/// Disks on which files were opened before. Only with `try_lock`: a child may be forked while another thread has it.
static DEVICES: Mutex<Vec<(u32, u32)>> = Mutex::new(Vec::new());

/// Takes note of a file that was opened in any way. May hang as long as its file system does.
pub(crate) fn note(fd: impl AsFd) {
    let is_local = fstatfs(&fd).is_ok_and(|system| LOCAL_KINDS.contains(&(system.f_type as u64)));
    if !is_local {
        return;
    }
    if let (Some(device), Ok(mut devices)) = (device_of(&fd), DEVICES.try_lock())
        && devices.len() < DEVICES_MAX
        && !devices.contains(&device)
    {
        devices.push(device);
    }
}

/// Opens a regular file for reading; none where that might have to wait for anything, or fails.
pub(crate) fn open_at_once(path: &Path) -> Option<OwnedFd> {
    // Only by names that are in memory, and asking no file system: it is just found, not opened.
    let place =
        openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let device = device_of(&place)?;
    if !DEVICES.try_lock().ok()?.contains(&device) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty()).ok()
}

/// The disk of a regular file; none for other files, and for file systems that are on no disk: the number of one of
/// those may be another's later. Asks no file system that is elsewhere.
fn device_of(fd: impl AsFd) -> Option<(u32, u32)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(fd, c"", flags, StatxFlags::TYPE).ok()?;
    let is_regular = rustix::fs::FileType::from_raw_mode(found.stx_mode.into()).is_file();
    (is_regular && found.stx_dev_major != 0).then_some((found.stx_dev_major, found.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn file_opened_at_once_is_the_file_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        note(File::open(&path).unwrap());

        // None on a file system that is not on a disk.
        let content = open_at_once(&path).map(|fd| {
            let mut content = Vec::new();
            File::from(fd).read_to_end(&mut content).unwrap();
            content
        });

        assert!(content.is_none_or(|content| content == b"content"));
    }

    #[test]
    fn only_regular_files_on_disks_are_opened_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"content").unwrap();
        note(File::open(&file).unwrap());
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();

        assert!(open_at_once(folder.path()).is_none());
        assert!(open_at_once(&pipe).is_none());
        assert!(open_at_once(&folder.path().join("missing")).is_none());
        assert!(open_at_once(Path::new("/proc/self/status")).is_none());
    }

    #[test]
    fn memory_is_on_no_disk() {
        let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(device_of(&memory).is_none());
        assert!(device_of(std::io::pipe().unwrap().0).is_none());
    }
}
