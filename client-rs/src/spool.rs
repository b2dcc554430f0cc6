//! [`Spool`]: media that no file holds, on its way into one without a name.
//!
//! Where the bytes come from is the caller's matter.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use reeld_protocol::SealedMemfd;
use reeld_protocol::arena::create_memfd;
use rustix::fs::{Mode, OFlags};

/// Content up to this lies in memory, which the kernel cannot take back while the video is open; what is larger in a
/// file, which it can. Clips of data sets are far below it, films far above.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// Media written piece by piece, by way of [`Write`]: up to 64 MiB in memory, more in a file without a name in
/// `$TMPDIR`. Both are gone when the last video is that was opened from it.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// use std::io::Write;
///
/// let mut spool = reeld_client::Spool::new()?;
/// for piece in std::fs::read("clip.mp4")?.chunks(1000) {
///     spool.write_all(piece)?;
/// }
/// let video = reeld_client::Video::open(spool)?;
/// assert_eq!(video.metadata().frame_count(), Some(50));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Spool {
    file: File,
    is_memory: bool,
    bytes: u64,
    memory_bytes_max: u64,
    folder: PathBuf,
}

impl Spool {
    /// Nothing is written yet.
    ///
    /// # Errors
    /// Where the system has no descriptor left.
    pub fn new() -> io::Result<Spool> {
        Spool::with_memory(MEMORY_BYTES_MAX)
    }

    /// All in memory, however much: for content that lies in memory already.
    ///
    /// # Errors
    /// As [`Spool::new`].
    pub fn in_memory() -> io::Result<Spool> {
        Spool::with_memory(u64::MAX)
    }

    fn with_memory(memory_bytes_max: u64) -> io::Result<Spool> {
        let file = create_memfd("reeld-source", 0)?.into();
        Ok(Spool { file, is_memory: true, bytes: 0, memory_bytes_max, folder: std::env::temp_dir() })
    }

    /// Makes room: what is known to be large goes into a file at once.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub fn expect_bytes(&mut self, bytes: u64) -> io::Result<()> {
        if self.is_memory && bytes > self.memory_bytes_max { self.move_to_file() } else { Ok(()) }
    }

    /// How many bytes were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True while all of it lies in memory.
    pub fn is_memory(&self) -> bool {
        self.is_memory
    }

    fn move_to_file(&mut self) -> io::Result<()> {
        let mut file = tempfile::tempfile_in(&self.folder).map_err(|error| self.explain(&error))?;
        self.file.seek(SeekFrom::Start(0))?;
        let copied = io::copy(&mut Read::by_ref(&mut self.file), &mut file);
        copied.map_err(|error| self.explain(&error))?;
        (self.file, self.is_memory) = (file, false);
        Ok(())
    }

    /// An error of the file, with its place and what can be done.
    fn explain(&self, error: &io::Error) -> io::Error {
        let folder = self.folder.display();
        io::Error::new(error.kind(), format!("spooling to {folder}: {error}; TMPDIR chooses another folder"))
    }

    pub(crate) fn label(&self) -> String {
        let place = if self.is_memory { "in memory" } else { "spooled to a file" };
        format!("{} bytes {place}", self.bytes)
    }

    /// The descriptor for the daemon, and whether it is of sealed memory. Nothing can be written to it any more.
    pub(crate) fn finish(self) -> io::Result<(OwnedFd, bool)> {
        if self.is_memory {
            return Ok((SealedMemfd::seal(self.file.into())?.into_fd(), true));
        }
        // It has no name, so that this is the one way to a descriptor for reading.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let reading = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok((reading.unwrap_or_else(|_| self.file.into()), false))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.expect_bytes(self.bytes.saturating_add(bytes.len() as u64))?;
        let written = self.file.write(bytes);
        let written =
            if self.is_memory { written? } else { written.map_err(|error| self.explain(&error))? };
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{SealFlags, fcntl_get_seals, fcntl_getfl, fstat};

    use super::*;

    fn content(fd: impl AsFd, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        assert_eq!(rustix::io::pread(fd, &mut content, 0).unwrap(), bytes);
        content
    }

    #[test]
    fn little_stays_in_memory_that_nobody_can_change() {
        let mut spool = Spool::with_memory(8).unwrap();
        spool.write_all(b"1234").unwrap();
        spool.write_all(b"5678").unwrap();
        let (fd, is_memory) = spool.finish().unwrap();
        assert!(is_memory && fcntl_get_seals(&fd).unwrap().contains(SealFlags::WRITE));
        assert_eq!(content(&fd, 8), b"12345678");
    }

    #[test]
    fn one_byte_too_many_moves_all_to_a_file_without_a_name() {
        let mut spool = Spool::with_memory(8).unwrap();
        spool.write_all(b"12345678").unwrap();
        spool.write_all(b"9").unwrap();
        assert_eq!(spool.bytes(), 9);
        let (fd, is_memory) = spool.finish().unwrap();
        assert!(!is_memory && fcntl_getfl(&fd).unwrap() & OFlags::RWMODE == OFlags::RDONLY);
        assert_eq!((content(&fd, 9), fstat(&fd).unwrap().st_nlink), (b"123456789".to_vec(), 0));
    }

    #[test]
    fn much_that_is_announced_never_lies_in_memory() {
        let mut spool = Spool::with_memory(8).unwrap();
        spool.expect_bytes(9).unwrap();
        assert!(!spool.is_memory());
        let mut spool = Spool::in_memory().unwrap();
        spool.expect_bytes(u64::MAX).unwrap();
        assert!(spool.is_memory());
    }

    #[test]
    fn folder_that_is_not_there_is_an_error_with_its_name() {
        let mut spool = Spool::with_memory(1).unwrap();
        spool.folder = "/no/such/folder".into();
        let error = spool.write_all(b"12").unwrap_err();
        assert!(error.to_string().contains("/no/such/folder") && error.to_string().contains("TMPDIR"));
    }
}
