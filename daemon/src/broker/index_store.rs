//! [`IndexStore`]: indexes on disk, so that a file is scanned once per host and not once per daemon.
//! `docs/index-format.md` describes the files.
//!
//! Every call here may wait for a disk, so none of them is made on the loop's thread. What an index says is
//! `link::index`'s; whose it is and when it is asked for, `opening`'s.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use reeld_protocol::ids::StreamIndex;
use sha2::{Digest, Sha256};

use super::helpers::Line;
use super::job::User;
use crate::link::index::Index;
use crate::link::{ContentDigest, FileIdentity};

/// Changes with everything that would make an old file wrong: its form, and what a scan finds.
const MAGIC: [u8; 8] = *b"REELDST\x01";

const DIGEST_BYTES: usize = 32;

const HEADER_BYTES: usize = MAGIC.len() + 2 * DIGEST_BYTES;

/// A file that was written to so short a time before it was scanned may be written to again without a new
/// time of change: its index is not kept. Two seconds is the coarsest clock of a file system in use.
const RACY: Duration = Duration::from_secs(2);

/// An unfinished file that is older was left behind by a daemon that was killed.
const UNFINISHED_KEPT: Duration = Duration::from_secs(3600);

const INDEX_SUFFIX: &str = "index";

/// Names an index: which stream of which content, for whom, as which demuxer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexKey {
    uid: u32,
    digest: [u8; DIGEST_BYTES],
}

impl IndexKey {
    /// None where the index must not be kept: users that the kernel cannot map are nobody in particular, and a
    /// file that is being written changes under its index.
    pub fn new(
        user: User,
        identity: &FileIdentity,
        content: &ContentDigest,
        stream: StreamIndex,
        demuxer: &str,
    ) -> Option<IndexKey> {
        if user.connection.is_some() || is_racy(identity, SystemTime::now()) {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(MAGIC);
        hash.update(identity.device.to_le_bytes());
        hash.update(identity.inode.to_le_bytes());
        hash.update(identity.size_bytes.to_le_bytes());
        hash.update(identity.modified_nanos.to_le_bytes());
        hash.update(identity.changed_nanos.to_le_bytes());
        hash.update(content.0);
        hash.update(stream.0.to_le_bytes());
        hash.update(demuxer.as_bytes());
        Some(IndexKey { uid: user.uid, digest: hash.finalize().into() })
    }

    /// Whom a disk that does not answer holds up.
    pub fn line(&self) -> Line {
        Line::User(self.uid)
    }
}

fn is_racy(identity: &FileIdentity, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::try_from((now.saturating_sub(RACY)).as_nanos()).is_ok_and(|limit| identity.modified_nanos > limit)
}

/// A folder of indexes with a limit on its size.
#[derive(Debug)]
pub struct IndexStore {
    folder: PathBuf,
    bytes_max: u64,
    /// What this daemon has written since the folder was last looked through.
    written_bytes: AtomicU64,
    unfinished_count: AtomicU64,
    has_complained: AtomicBool,
}

impl IndexStore {
    /// Nothing is touched before the first index is asked for.
    pub fn new(folder: PathBuf, bytes_max: u64) -> IndexStore {
        IndexStore {
            folder,
            bytes_max,
            written_bytes: AtomicU64::new(u64::MAX),
            unfinished_count: AtomicU64::new(0),
            has_complained: AtomicBool::new(false),
        }
    }

    /// The index, if it is there and whole. One that is not is removed.
    pub fn load(&self, key: &IndexKey) -> Option<Index> {
        let path = self.path(key);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.complain(&path, &error);
                return None;
            }
        };
        let mut bytes = Vec::new();
        if let Err(error) = (&file).take(self.bytes_max).read_to_end(&mut bytes) {
            self.complain(&path, &error);
            return None;
        }
        let index = unpack(key, &bytes);
        if index.is_some() {
            // The time of the last use: the oldest goes first.
            let _ = file.set_modified(SystemTime::now());
        } else {
            tracing::warn!(path = %path.display(), "a stored index is damaged and is made anew");
            let _ = fs::remove_file(&path);
        }
        index
    }

    /// Keeps an index, given in its binary form. A failure costs the next daemon a scan, and is logged once.
    pub fn save(&self, key: &IndexKey, index: &[u8]) {
        let bytes = (HEADER_BYTES + index.len()) as u64;
        if bytes > self.bytes_max {
            return;
        }
        let path = self.path(key);
        if let Err(error) = self.write(key, &path, index) {
            return self.complain(&path, &error);
        }
        // Unknown at first, so that the folder is looked through once.
        let written = self.written_bytes.load(Ordering::Relaxed).saturating_add(bytes);
        self.written_bytes.store(written, Ordering::Relaxed);
        if written > self.bytes_max / 8
            && let Err(error) = self.make_room()
        {
            self.complain(&self.folder, &error);
        }
    }

    fn write(&self, key: &IndexKey, path: &Path, index: &[u8]) -> io::Result<()> {
        let Some(folder) = path.parent() else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let count = self.unfinished_count.fetch_add(1, Ordering::Relaxed);
        let unfinished = path.with_extension(format!("{}-{count}.unfinished", std::process::id()));
        let written = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&unfinished).and_then(
            |mut file| {
                file.write_all(&header(key, index))?;
                file.write_all(index)
            },
        );
        // Another daemon of this user may store the same index at the same time: either is right.
        written.and_then(|()| fs::rename(&unfinished, path)).inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    /// Removes what was used longest ago until seven eighths of the limit are left, so that the folder is looked
    /// through seldom.
    fn make_room(&self) -> io::Result<()> {
        let mut stored = Vec::new();
        for folder in fs::read_dir(&self.folder)? {
            let folder = folder?;
            if folder.file_type()?.is_dir() {
                self.look_through(&folder.path(), &mut stored)?;
            }
        }
        stored.sort_unstable_by(|one, other| other.cmp(one));
        let kept_max = self.bytes_max / 8 * 7;
        let mut bytes = 0;
        for (_, length, path) in stored {
            bytes += length;
            if bytes > kept_max {
                fs::remove_file(&path)?;
            }
        }
        self.written_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn look_through(&self, folder: &Path, stored: &mut Vec<(SystemTime, u64, PathBuf)>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // Another daemon may have removed it just now.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let used_at = metadata.modified()?;
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(INDEX_SUFFIX) => stored.push((used_at, metadata.len(), path)),
                Some("unfinished") if used_at.elapsed().is_ok_and(|age| age > UNFINISHED_KEPT) => {
                    fs::remove_file(&path)?;
                }
                // Not ours, or another daemon is at it.
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn path(&self, key: &IndexKey) -> PathBuf {
        let mut name: String = key.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        name.push('.');
        name.push_str(INDEX_SUFFIX);
        self.folder.join(key.uid.to_string()).join(name)
    }

    /// Once: a folder that cannot be used stays so.
    fn complain(&self, path: &Path, error: &io::Error) {
        if !self.has_complained.swap(true, Ordering::Relaxed) {
            tracing::warn!(path = %path.display(), %error, "indexes cannot be kept; files are scanned again");
        }
    }
}

fn header(key: &IndexKey, index: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    header[MAGIC.len()..][..DIGEST_BYTES].copy_from_slice(&key.digest);
    header[MAGIC.len() + DIGEST_BYTES..].copy_from_slice(&Sha256::digest(index));
    header
}

fn unpack(key: &IndexKey, bytes: &[u8]) -> Option<Index> {
    let (found, index) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    if *found != header(key, index) {
        return None;
    }
    Index::from_bytes(index).ok()
}

#[cfg(test)]
mod tests {
    use reeld_protocol::metadata::Rational;

    use super::*;
    use crate::link::index::IndexEntry;

    const USER: User = User { uid: 1000, connection: None };

    fn key(inode: u64) -> IndexKey {
        let identity = FileIdentity { device: 1, inode, size_bytes: 10, modified_nanos: 0, changed_nanos: 0 };
        IndexKey::new(USER, &identity, &ContentDigest([7; 32]), StreamIndex(0), "libavformat 1").unwrap()
    }

    fn index(frame_count: i64) -> Index {
        let entry = |pts| IndexEntry { pts, duration: 1, position: 0, is_key: true, is_reference: true };
        Index::new(Rational { numerator: 1, denominator: 30 }, (0..frame_count).map(entry).collect())
    }

    fn stored_count(folder: &Path) -> usize {
        fs::read_dir(folder.join("1000")).map_or(0, Iterator::count)
    }

    #[test]
    fn index_comes_back_as_it_went_and_only_under_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = IndexStore::new(folder.path().to_owned(), 1 << 20);
        assert_eq!(store.load(&key(1)), None);
        store.save(&key(1), &index(5).to_bytes());
        assert_eq!(store.load(&key(1)), Some(index(5)));
        assert_eq!(store.load(&key(2)), None);
        assert_eq!(stored_count(folder.path()), 1);
    }

    #[test]
    fn file_with_any_byte_changed_or_missing_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = IndexStore::new(folder.path().to_owned(), 1 << 20);
        store.save(&key(1), &index(2).to_bytes());
        let path = store.path(&key(1));
        let whole = fs::read(&path).unwrap();
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(store.load(&key(1)), None, "byte {position}");
            assert!(!path.exists());
            fs::write(&path, &whole[..position]).unwrap();
            assert_eq!(store.load(&key(1)), None, "{position} bytes");
        }
    }

    #[test]
    fn index_under_the_name_of_another_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let store = IndexStore::new(folder.path().to_owned(), 1 << 20);
        store.save(&key(1), &index(2).to_bytes());
        fs::rename(store.path(&key(1)), store.path(&key(2))).unwrap();
        assert_eq!(store.load(&key(2)), None);
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let one = (HEADER_BYTES + index(100).to_bytes().len()) as u64;
        let store = IndexStore::new(folder.path().to_owned(), 8 * one);
        for inode in 0..8 {
            store.save(&key(inode), &index(100).to_bytes());
            let age = Duration::from_secs(1000 - inode);
            let file = File::options().append(true).open(store.path(&key(inode))).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        assert!(store.load(&key(0)).is_some(), "used just now");
        store.save(&key(8), &index(100).to_bytes());
        assert_eq!(stored_count(folder.path()), 7);
        let is_kept = |inode| store.path(&key(inode)).exists();
        assert!(is_kept(0) && is_kept(8) && !is_kept(1) && !is_kept(2));
    }

    #[test]
    fn unfinished_file_of_a_killed_daemon_goes_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = IndexStore::new(folder.path().to_owned(), 1 << 20);
        store.save(&key(1), &index(2).to_bytes());
        let [old, new] = ["a.unfinished", "b.unfinished"].map(|name| folder.path().join("1000").join(name));
        fs::write(&new, "x").unwrap();
        File::create(&old).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        store.make_room().unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn folder_that_cannot_be_written_costs_nothing_but_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let store = IndexStore::new(file.clone(), 1 << 20);
        store.save(&key(1), &index(2).to_bytes());
        assert_eq!(store.load(&key(1)), None);
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn file_that_was_just_written_and_users_without_a_name_have_no_key() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as i128;
        let identity = |modified_nanos| FileIdentity {
            device: 1,
            inode: 1,
            size_bytes: 1,
            modified_nanos,
            changed_nanos: now,
        };
        let key = |user, modified_nanos| {
            IndexKey::new(user, &identity(modified_nanos), &ContentDigest([0; 32]), StreamIndex(0), "")
        };
        assert!(key(USER, now - 3_000_000_000).is_some());
        assert!(key(USER, now - 1_000_000_000).is_none());
        assert!(key(User { uid: 65_534, connection: Some(1) }, 0).is_none());
    }
}
