//! Shared memory as both sides see it: [`Arena`], a memfd that is mapped once for reading and writing, and
//! [`SealedMemfd`], bulk input that can no longer change.
//!
//! Who may use which part of an arena is not written in it: that is the daemon's private knowledge.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// What advice about memory is given for. Where pages are larger, such advice may be refused.
const PAGE_BYTES: u64 = 4096;

/// What is wrong with a memfd that a peer sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// It could shrink under us, which would kill the process that touches it.
    #[error("the memory file is not sealed against {missing}")]
    NotSealed {
        /// What is still possible.
        missing: &'static str,
    },
    /// Not as long as announced.
    #[error("the memory file has {actual} bytes, but {announced} were announced")]
    WrongSize {
        /// What the message says.
        announced: u64,
        /// What the file has.
        actual: u64,
    },
    /// Reaches beyond the end.
    #[error("bytes {offset}..{offset}+{bytes} lie outside a memory file of {length} bytes")]
    OutOfBounds {
        /// The first byte.
        offset: u64,
        /// How many.
        bytes: u64,
        /// The file's length.
        length: u64,
    },
    /// The system refused.
    #[error("shared memory: {0}")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for ArenaError {
    fn from(errno: rustix::io::Errno) -> Self {
        ArenaError::Io(errno.into())
    }
}

/// Makes a memfd that can be sealed. It has no name in the file system and goes with its last descriptor and
/// mapping.
pub fn create_memfd(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know NOEXEC_SEAL.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

fn length_of(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_size as u64)
}

/// A new arena's memfd, sealed against shrinking and growing.
pub fn create_arena(bytes: u64) -> io::Result<OwnedFd> {
    let fd = create_memfd("reeld-arena", bytes)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// A mapping of an arena, for reading and writing, until it is dropped.
#[derive(Debug)]
pub struct Arena {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; what is done through its pointers is unsafe at their use.
unsafe impl Send for Arena {}
// SAFETY: as above; `Arena` itself hands out nothing but an address.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps an arena after checking that it cannot change its size.
    pub fn map(fd: impl AsFd, announced_bytes: u64) -> Result<Arena, ArenaError> {
        let fd = fd.as_fd();
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        for (seal, missing) in [(SealFlags::SHRINK, "shrinking"), (SealFlags::GROW, "growing")] {
            if !seals.contains(seal) {
                return Err(ArenaError::NotSealed { missing });
            }
        }
        let actual = length_of(fd)?;
        if actual != announced_bytes || actual == 0 {
            return Err(ArenaError::WrongSize { announced: announced_bytes, actual });
        }
        let bytes = usize::try_from(actual).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let address =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Arena { address, bytes })
    }

    /// Where the mapping begins.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// The mapping's length.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Where a stretch of the arena begins, if all of it lies inside.
    pub fn slice(&self, offset: u64, bytes: u64) -> Result<NonNull<u8>, ArenaError> {
        let length = self.bytes as u64;
        match offset.checked_add(bytes) {
            // SAFETY: offset <= length, so the result is inside the mapping or one past its end.
            Some(end) if end <= length => Ok(unsafe { self.address.add(offset as usize) }),
            Some(_) | None => Err(ArenaError::OutOfBounds { offset, bytes, length }),
        }
    }

    /// Makes the kernel provide all pages now, for writing, rather than at each first touch. Only a hint:
    /// kernels before 5.14 cannot, and then pages come as they are touched.
    pub fn populate(&self) {
        self.populate_part(0, self.bytes as u64);
    }

    /// As `populate`, for the pages of a stretch, which is cut at the arena's end.
    pub fn populate_part(&self, offset: u64, bytes: u64) {
        let begin = offset - offset % PAGE_BYTES;
        let end = offset.saturating_add(bytes).min(self.bytes as u64);
        if let (Ok(address), Some(bytes)) = (self.slice(begin, 0), end.checked_sub(begin)) {
            let address: *mut c_void = address.as_ptr().cast();
            // SAFETY: the range lies in our own mapping; populating changes no content.
            let _ = unsafe { rustix::mm::madvise(address, bytes as usize, Advice::LinuxPopulateWrite) };
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every pointer into it is documented to die before it.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// Bytes in a memfd that nobody can change any more.
#[derive(Debug)]
pub struct SealedMemfd {
    fd: OwnedFd,
    bytes: u64,
}

impl SealedMemfd {
    const SEALS: SealFlags =
        SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

    /// Copies bytes into a new memfd and seals it.
    pub fn new(name: &str, content: &[u8]) -> io::Result<SealedMemfd> {
        let fd = create_memfd(name, content.len() as u64)?;
        let mut written = 0;
        while written < content.len() {
            written += rustix::io::pwrite(&fd, &content[written..], written as u64)?;
        }
        rustix::fs::fcntl_add_seals(&fd, Self::SEALS)?;
        Ok(SealedMemfd { fd, bytes: content.len() as u64 })
    }

    /// Seals a memfd that was written piece by piece. Nobody may have it mapped for writing.
    pub fn seal(fd: OwnedFd) -> io::Result<SealedMemfd> {
        rustix::fs::fcntl_add_seals(&fd, Self::SEALS)?;
        let bytes = length_of(fd.as_fd())?;
        Ok(SealedMemfd { fd, bytes })
    }

    /// Accepts a memfd from a peer if nobody can change its bytes or length.
    pub fn from_peer(fd: OwnedFd) -> Result<SealedMemfd, ArenaError> {
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        let needed =
            [(SealFlags::SHRINK, "shrinking"), (SealFlags::GROW, "growing"), (SealFlags::WRITE, "writing")];
        for (seal, missing) in needed {
            if !seals.contains(seal) {
                return Err(ArenaError::NotSealed { missing });
            }
        }
        let bytes = length_of(fd.as_fd())?;
        Ok(SealedMemfd { fd, bytes })
    }

    /// The length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads a stretch of the content.
    pub fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, ArenaError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(ArenaError::OutOfBounds { offset, bytes, length: self.bytes });
        }
        let mut content = vec![0; bytes as usize];
        let mut read = 0;
        while read < content.len() {
            match rustix::io::pread(&self.fd, &mut content[read..], offset + read as u64)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                more => read += more,
            }
        }
        Ok(content)
    }

    /// Reads 8-byte values: `count` of them from `offset` on, in the byte order of the wire.
    pub fn read_words(&self, offset: u64, count: u64) -> Result<Vec<[u8; 8]>, ArenaError> {
        let content = self.read(offset, count.saturating_mul(8))?;
        let (words, _) = content.as_chunks::<8>();
        Ok(words.to_vec())
    }

    /// The file, for sending.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_an_arena_show_the_same_bytes() {
        let fd = create_arena(8192).unwrap();
        let (one, two) = (Arena::map(&fd, 8192).unwrap(), Arena::map(&fd, 8192).unwrap());
        one.populate();
        // SAFETY: both addresses lie inside live mappings; nobody else uses them.
        unsafe {
            one.slice(5000, 1).unwrap().write(42);
            assert_eq!(two.slice(5000, 1).unwrap().read(), 42);
        }
    }

    #[test]
    fn slice_outside_the_arena_is_an_error() {
        let fd = create_arena(4096).unwrap();
        let arena = Arena::map(&fd, 4096).unwrap();
        assert!(arena.slice(4096, 0).is_ok());
        assert!(arena.slice(4095, 2).is_err());
        assert!(arena.slice(u64::MAX, 2).is_err());
    }

    #[test]
    fn arena_of_another_length_is_refused() {
        let fd = create_arena(4096).unwrap();
        assert!(matches!(Arena::map(&fd, 8192), Err(ArenaError::WrongSize { actual: 4096, .. })));
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let fd = create_memfd("test", 4096).unwrap();
        assert!(matches!(Arena::map(&fd, 4096), Err(ArenaError::NotSealed { .. })));
        assert!(matches!(SealedMemfd::from_peer(fd), Err(ArenaError::NotSealed { .. })));
    }

    #[test]
    fn file_that_is_no_memfd_is_an_error() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(matches!(SealedMemfd::from_peer(file.into()), Err(ArenaError::Io(_))));
    }

    #[test]
    fn words_come_back_as_they_went() {
        let content: Vec<u8> = [1i64, -2, 3].iter().flat_map(|value| value.to_le_bytes()).collect();
        let peer = SealedMemfd::from_peer(SealedMemfd::new("test", &content).unwrap().into_fd()).unwrap();
        let words = peer.read_words(8, 2).unwrap();
        assert_eq!(words, [(-2i64).to_le_bytes(), 3i64.to_le_bytes()]);
        assert!(peer.read_words(8, 3).is_err());
        assert!(peer.read_words(0, u64::MAX).is_err());
    }
}
