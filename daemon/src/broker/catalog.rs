//! The files that clients have open, and what is known of them: one entry per file and user, whoever opened
//! it first. An entry keeps the file open, so that its inode cannot become another file's.
//!
//! Nothing is read here: headers and indexes come from engines.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::ids::StreamIndex;
use reeld_protocol::metadata::MediaMetadata;

use super::job::User;
use crate::link::index::Index;
use crate::link::{CatalogId, ContentDigest, FileIdentity};

/// Files that nobody has open stay known for this long: a data set that is opened anew for each sample
/// finds its indexes again.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Files that nobody has open, at most: each holds a file descriptor.
const IDLE_COUNT_MAX: usize = 1024;

/// Bytes of indexes of files that nobody has open, at most.
const IDLE_INDEX_BYTES_MAX: u64 = 256 << 20;

/// Something that an engine finds out once and everybody shares.
#[derive(Debug)]
pub enum Knowledge<T> {
    /// Nobody has asked yet.
    Unknown,
    /// An engine was asked.
    Pending,
    /// This.
    Present(T),
}

/// One file of one user.
#[derive(Debug)]
pub struct Entry {
    /// Whose.
    pub user: User,
    /// Which file.
    pub identity: FileIdentity,
    /// Open for reading.
    pub fd: Arc<OwnedFd>,
    /// What messages call it.
    pub label: String,
    /// What the file begins and ends with, once an engine has looked.
    pub content: Option<ContentDigest>,
    /// What the header says.
    pub media: Knowledge<Arc<MediaMetadata>>,
    /// By stream: all frames.
    pub indexes: HashMap<StreamIndex, Knowledge<Arc<Index>>>,
    handle_count: u64,
    idle_since: Instant,
    is_shared: bool,
    is_memory: bool,
}

impl Entry {
    /// True for memory that a client sent: nobody else ever means the same.
    pub fn is_memory(&self) -> bool {
        self.is_memory
    }

    fn index_bytes(&self) -> u64 {
        let bytes = |known: &Knowledge<Arc<Index>>| match known {
            Knowledge::Present(index) => {
                (index.entries.len() * size_of::<crate::link::index::IndexEntry>()) as u64
            }
            Knowledge::Unknown | Knowledge::Pending => 0,
        };
        self.indexes.values().map(bytes).sum()
    }
}

/// All files.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: BTreeMap<CatalogId, Entry>,
    by_identity: HashMap<(User, FileIdentity), CatalogId>,
    next_id: u64,
}

impl Catalog {
    /// Files that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// One file.
    pub fn get(&self, source: CatalogId) -> Option<&Entry> {
        self.entries.get(&source)
    }

    /// One file.
    pub fn get_mut(&mut self, source: CatalogId) -> Option<&mut Entry> {
        self.entries.get_mut(&source)
    }

    /// Takes a handle on a file: the entry that its user shares, or a new one. Memory is never shared.
    pub fn acquire(
        &mut self,
        user: User,
        identity: FileIdentity,
        fd: OwnedFd,
        label: &str,
        is_memory: bool,
        now: Instant,
    ) -> CatalogId {
        let shared = self.by_identity.get(&(user, identity)).copied().filter(|_| !is_memory);
        if let Some(source) = shared
            && let Some(entry) = self.entries.get_mut(&source)
        {
            entry.handle_count += 1;
            return source;
        }
        let source = CatalogId(self.next_id);
        self.next_id += 1;
        if !is_memory {
            self.by_identity.insert((user, identity), source);
        }
        let entry = Entry {
            user,
            identity,
            fd: Arc::new(fd),
            label: label.to_owned(),
            content: None,
            media: Knowledge::Unknown,
            indexes: HashMap::new(),
            handle_count: 1,
            idle_since: now,
            is_shared: !is_memory,
            is_memory,
        };
        self.entries.insert(source, entry);
        source
    }

    /// Gives a handle back.
    pub fn release(&mut self, source: CatalogId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&source) {
            entry.handle_count = entry.handle_count.saturating_sub(1);
            entry.idle_since = now;
        }
    }

    /// The file turned out to be another one, or unreadable: whoever opens it next starts afresh.
    pub fn unshare(&mut self, source: CatalogId) {
        if let Some(entry) = self.entries.get_mut(&source) {
            entry.is_shared = false;
            if self.by_identity.get(&(entry.user, entry.identity)) == Some(&source) {
                self.by_identity.remove(&(entry.user, entry.identity));
            }
        }
    }

    /// Forgets files that nobody has open and that are too old, too many or too large, and returns them:
    /// engines have to forget them too, and closing them may take time.
    pub fn evict(&mut self, now: Instant) -> Vec<(CatalogId, Entry)> {
        let idle = self.entries.iter().filter(|(_, entry)| entry.handle_count == 0);
        let mut idle: Vec<(Instant, CatalogId)> =
            idle.map(|(&source, entry)| (entry.idle_since, source)).collect();
        idle.sort_unstable_by(|one, other| other.cmp(one));
        let mut evicted = Vec::new();
        let mut index_bytes = 0;
        for (position, (idle_since, source)) in idle.into_iter().enumerate() {
            let Some(entry) = self.entries.get(&source) else { continue };
            index_bytes += entry.index_bytes();
            let is_kept = entry.is_shared
                && position < IDLE_COUNT_MAX
                && index_bytes <= IDLE_INDEX_BYTES_MAX
                && now.duration_since(idle_since) < IDLE_KEPT;
            if !is_kept {
                self.unshare(source);
                evicted.extend(self.entries.remove(&source).map(|entry| (source, entry)));
            }
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: User = User { uid: 1000, connection: None };

    fn identity(inode: u64) -> FileIdentity {
        FileIdentity { device: 1, inode, size_bytes: 10, modified_nanos: 0, changed_nanos: 0 }
    }

    fn open(catalog: &mut Catalog, user: User, inode: u64, is_memory: bool, now: Instant) -> CatalogId {
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        catalog.acquire(user, identity(inode), fd, "a", is_memory, now)
    }

    #[test]
    fn same_file_of_the_same_user_is_one_entry() {
        let (mut catalog, now) = (Catalog::default(), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        assert_eq!(open(&mut catalog, USER, 1, false, now), one);
        assert_ne!(open(&mut catalog, USER, 2, false, now), one);
    }

    #[test]
    fn users_share_nothing() {
        let (mut catalog, now) = (Catalog::default(), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        assert_ne!(open(&mut catalog, User { uid: 1001, connection: None }, 1, false, now), one);
        assert_ne!(open(&mut catalog, User { uid: 1000, connection: Some(4) }, 1, false, now), one);
    }

    #[test]
    fn memory_is_never_shared() {
        let (mut catalog, now) = (Catalog::default(), Instant::now());
        assert_ne!(open(&mut catalog, USER, 1, true, now), open(&mut catalog, USER, 1, true, now));
    }

    #[test]
    fn idle_file_is_found_again_until_its_time_is_over() {
        let (mut catalog, now) = (Catalog::default(), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        assert!(catalog.evict(now + 2 * IDLE_KEPT).is_empty(), "it is open");
        catalog.release(one, now);
        assert!(catalog.evict(now).is_empty());
        assert_eq!(open(&mut catalog, USER, 1, false, now), one);
        catalog.release(one, now);
        assert_eq!(catalog.evict(now + IDLE_KEPT).len(), 1);
        assert_ne!(open(&mut catalog, USER, 1, false, now), one);
    }

    #[test]
    fn unshared_file_goes_with_its_last_handle() {
        let (mut catalog, now) = (Catalog::default(), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        catalog.unshare(one);
        assert_ne!(open(&mut catalog, USER, 1, false, now), one);
        catalog.release(one, now);
        assert_eq!(catalog.evict(now).len(), 1);
    }
}
