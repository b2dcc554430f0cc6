//! [`SilentFileSystem`]: a FUSE mount with one file that can be opened, and that answers nothing from the moment
//! on when it is told to be silent. The kernel's protocol by hand, as little of it as that takes.
//!
//! It needs root and `/dev/fuse`. The mount is in a namespace of the calling thread and goes with it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

const HEADER_BYTES: usize = 40;
const ROOT: u64 = 1;
const FILE: u64 = 2;
const NAME: &str = "clip.mp4";

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// The mount and the thread that serves it.
#[derive(Debug)]
pub struct SilentFileSystem {
    folder: TempDir,
    is_silent: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    /// Closed after the end of the mount: before that it might hang.
    files: Vec<OwnedFd>,
}

impl SilentFileSystem {
    /// Mounts it for the calling thread; none where that is not to be had here.
    pub fn mount() -> Option<SilentFileSystem> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let folder = tempfile::tempdir().ok()?;
        // SAFETY: affects this thread's view of the mounts alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return None;
        }
        mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, "").then_some(())?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount(Some("reeld-test"), folder.path(), Some("fuse"), flags, &data).then_some(())?;
        let is_silent = Arc::new(AtomicBool::new(false));
        let server = std::thread::spawn({
            let is_silent = Arc::clone(&is_silent);
            move || serve(device, &is_silent)
        });
        Some(SilentFileSystem { folder, is_silent, server: Some(server), files: Vec::new() })
    }

    /// Opens the file as often as it will be needed.
    pub fn open(&mut self, count: usize) {
        let open = || File::open(self.folder.path().join(NAME)).expect("the file can be opened").into();
        self.files.extend(std::iter::repeat_with(open).take(count));
    }

    /// The file, opened for reading.
    pub fn file(&mut self) -> OwnedFd {
        self.files.pop().expect("enough was opened")
    }

    /// From here on nothing is answered.
    pub fn be_silent(&self) {
        self.is_silent.store(true, Ordering::Release);
    }

    /// Ends all calls with an error, as an administrator would, and the mount with them.
    pub fn abort(&mut self) {
        let path = CString::new(self.folder.path().as_os_str().as_encoded_bytes()).expect("a path");
        // SAFETY: the path is a string that ends with a zero.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for SilentFileSystem {
    fn drop(&mut self) {
        self.abort();
    }
}

fn mount(source: Option<&str>, target: &Path, kind: Option<&str>, flags: libc::c_ulong, data: &str) -> bool {
    let text = |text: &str| CString::new(text).expect("no zero in it");
    let target = CString::new(target.as_os_str().as_encoded_bytes()).expect("a path");
    let (source, kind, data) = (source.map(text), kind.map(text), text(data));
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: all pointers are null or strings that end with a zero and live until the call returns.
    let status = unsafe {
        libc::mount(pointer(&source), target.as_ptr(), pointer(&kind), flags, data.as_ptr().cast())
    };
    status == 0
}

fn serve(mut device: File, is_silent: &AtomicBool) {
    let mut buffer = vec![0; 1 << 20];
    // The end of the connection is an error of the read.
    while let Ok(length) = device.read(&mut buffer) {
        let request = &buffer[..length];
        if length < HEADER_BYTES || is_silent.load(Ordering::Acquire) {
            continue;
        }
        let word =
            |at: usize| u32::from_le_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let unique = [word(8), word(12)];
        let node = u64::from(word(16));
        let body = match word(4) {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            INIT => Ok(words(&[7, 31, 65536, 0, 0, 65536, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            // Nothing is kept valid, so that the kernel asks each time.
            GETATTR => Ok([words(&[0; 4]), attributes(node)].concat()),
            LOOKUP if request[HEADER_BYTES..].starts_with(NAME.as_bytes()) => {
                Ok([words(&[FILE as u32, 0, 1, 0, 0, 0, 0, 0, 0, 0]), attributes(FILE)].concat())
            }
            LOOKUP => Err(libc::ENOENT),
            OPEN => Ok(words(&[0; 4])),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) =
            body.map_or_else(|error| (error.wrapping_neg() as u32, Vec::new()), |body| (0, body));
        let head = words(&[16 + body.len() as u32, error, unique[0], unique[1]]);
        if device.write_all(&[head, body].concat()).is_err() {
            return;
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// inode, size, blocks, three times, their nanoseconds, mode, links, owner, and so on: 88 bytes.
fn attributes(node: u64) -> Vec<u8> {
    let is_root = node == ROOT;
    let mode = if is_root { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
    let mut words = [0; 22];
    (words[0], words[2], words[15], words[16], words[20]) = (node as u32, 100_000, mode, 1, 4096);
    self::words(&words)
}
