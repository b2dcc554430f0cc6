//! The files that clients have open, and what is known of them: one entry per file and user, whoever opened
//! it first. An entry keeps the file open, so that its inode cannot become another file's.
//!
//! Nothing is read here: headers and indexes come from engines.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// Files that nobody has open, at most: each holds a file descriptor, and they take a quarter of all at most.
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

    /// What engines were asked for will not come.
    pub fn forget_pending(&mut self) {
        self.indexes.retain(|_, known| matches!(known, Knowledge::Present(_)));
        if matches!(self.media, Knowledge::Pending) {
            self.media = Knowledge::Unknown;
        }
    }

    /// How many have it open.
    pub fn handle_count(&self) -> u64 {
        self.handle_count
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

/// How much is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatalogCounts {
    /// Files.
    pub files: usize,
    /// Files that nobody has open.
    pub idle: usize,
    /// Streams that were scanned.
    pub indexes: usize,
    /// Bytes of what the scans found.
    pub index_bytes: u64,
}

/// All files.
#[derive(Debug)]
pub struct Catalog {
    entries: BTreeMap<CatalogId, Entry>,
    by_identity: HashMap<(User, FileIdentity), CatalogId>,
    /// Files that nobody has open and that are kept for whoever comes back, the oldest first.
    idle: BTreeSet<(Instant, CatalogId)>,
    /// Bytes of their indexes, by file.
    idle_bytes: HashMap<CatalogId, u64>,
    idle_bytes_sum: u64,
    /// Files that nobody has open and nobody can find again.
    spent: BTreeSet<CatalogId>,
    next_id: u64,
    idle_count_max: usize,
}

impl Catalog {
    /// No files yet. `descriptors_max` is how many the daemon may have open.
    pub fn new(descriptors_max: usize) -> Catalog {
        Catalog {
            entries: BTreeMap::new(),
            by_identity: HashMap::new(),
            idle: BTreeSet::new(),
            idle_bytes: HashMap::new(),
            idle_bytes_sum: 0,
            spent: BTreeSet::new(),
            next_id: 0,
            idle_count_max: IDLE_COUNT_MAX.min(descriptors_max / 4),
        }
    }

    /// Files that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// For the dump of the state.
    pub fn counts(&self) -> CatalogCounts {
        let mut counts = CatalogCounts { files: self.entries.len(), ..CatalogCounts::default() };
        for entry in self.entries.values() {
            counts.idle += usize::from(entry.handle_count == 0);
            counts.indexes +=
                entry.indexes.values().filter(|known| matches!(known, Knowledge::Present(_))).count();
            counts.index_bytes += entry.index_bytes();
        }
        counts
    }

    /// One file.
    pub fn get(&self, source: CatalogId) -> Option<&Entry> {
        self.entries.get(&source)
    }

    /// One file.
    pub fn get_mut(&mut self, source: CatalogId) -> Option<&mut Entry> {
        self.entries.get_mut(&source)
    }

    /// All files, for the audit.
    pub fn iter(&self) -> impl Iterator<Item = (CatalogId, &Entry)> {
        self.entries.iter().map(|(&source, entry)| (source, entry))
    }

    /// Takes a handle on a file: the entry that its user shares, or a new one. Memory is never shared. A
    /// descriptor that is not needed comes back, because closing it may take time.
    pub fn acquire(
        &mut self,
        user: User,
        identity: FileIdentity,
        fd: OwnedFd,
        label: &str,
        is_memory: bool,
        now: Instant,
    ) -> (CatalogId, Option<OwnedFd>) {
        let shared = self.by_identity.get(&(user, identity)).copied().filter(|_| !is_memory);
        if let Some(source) = shared
            && let Some(entry) = self.entries.get_mut(&source)
        {
            entry.handle_count += 1;
            self.keep_no_longer(source);
            return (source, Some(fd));
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
        (source, None)
    }

    /// Gives a handle back.
    pub fn release(&mut self, source: CatalogId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&source) {
            entry.handle_count = entry.handle_count.saturating_sub(1);
            entry.idle_since = now;
            if entry.handle_count > 0 {
                return;
            }
            if !entry.is_shared {
                self.spent.insert(source);
                return;
            }
            let bytes = entry.index_bytes();
            self.idle.insert((now, source));
            self.idle_bytes_sum += bytes;
            self.idle_bytes.insert(source, bytes);
        }
    }

    fn keep_no_longer(&mut self, source: CatalogId) {
        if let Some(bytes) = self.idle_bytes.remove(&source) {
            self.idle_bytes_sum -= bytes;
            let since = self.entries.get(&source).map(|entry| entry.idle_since);
            if let Some(since) = since {
                self.idle.remove(&(since, source));
            }
        }
    }

    /// The file turned out to be another one, or unreadable: whoever opens it next starts afresh.
    pub fn unshare(&mut self, source: CatalogId) {
        if let Some(entry) = self.entries.get_mut(&source) {
            entry.is_shared = false;
            if entry.handle_count == 0 {
                self.spent.insert(source);
            }
            if self.by_identity.get(&(entry.user, entry.identity)) == Some(&source) {
                self.by_identity.remove(&(entry.user, entry.identity));
            }
        }
    }

    /// Forgets all files that nobody has open, and returns them; see [`Catalog::evict`].
    pub fn evict_idle(&mut self) -> Vec<(CatalogId, Entry)> {
        let idle = self.idle.iter().map(|(_, source)| *source).chain(self.spent.iter().copied());
        let idle: Vec<CatalogId> = idle.collect();
        idle.into_iter().filter_map(|source| self.remove(source)).collect()
    }

    fn remove(&mut self, source: CatalogId) -> Option<(CatalogId, Entry)> {
        self.keep_no_longer(source);
        self.unshare(source);
        self.spent.remove(&source);
        self.entries.remove(&source).map(|entry| (source, entry))
    }

    /// True if files have to be forgotten now, however old they are.
    pub fn has_surplus(&self) -> bool {
        !self.spent.is_empty()
            || self.idle.len() > self.idle_count_max
            || self.idle_bytes_sum > IDLE_INDEX_BYTES_MAX
    }

    /// Forgets files that nobody has open and that are too old, too many or too large, at most `count_max`,
    /// and returns them: engines have to forget them too, and closing them may take time.
    pub fn evict(&mut self, now: Instant, count_max: usize) -> Vec<(CatalogId, Entry)> {
        let mut evicted = Vec::new();
        while evicted.len() < count_max {
            let is_old = |since: Instant| now.saturating_duration_since(since) >= IDLE_KEPT;
            let source = match (self.spent.pop_first(), self.idle.first()) {
                (Some(spent), _) => spent,
                (None, Some(&(since, oldest))) if is_old(since) || self.has_surplus() => oldest,
                (None, _) => break,
            };
            evicted.extend(self.remove(source));
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
        catalog.acquire(user, identity(inode), fd, "a", is_memory, now).0
    }

    #[test]
    fn same_file_of_the_same_user_is_one_entry() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        assert_eq!(open(&mut catalog, USER, 1, false, now), one);
        assert_ne!(open(&mut catalog, USER, 2, false, now), one);
    }

    #[test]
    fn users_share_nothing() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        assert_ne!(open(&mut catalog, User { uid: 1001, connection: None }, 1, false, now), one);
        assert_ne!(open(&mut catalog, User { uid: 1000, connection: Some(4) }, 1, false, now), one);
    }

    #[test]
    fn memory_is_never_shared() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        assert_ne!(open(&mut catalog, USER, 1, true, now), open(&mut catalog, USER, 1, true, now));
    }

    #[test]
    fn idle_file_is_found_again_until_its_time_is_over() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        assert!(catalog.evict(now + 2 * IDLE_KEPT, 9).is_empty(), "it is open");
        catalog.release(one, now);
        assert!(catalog.evict(now, 9).is_empty());
        assert_eq!(open(&mut catalog, USER, 1, false, now), one);
        catalog.release(one, now);
        assert_eq!(catalog.evict(now + IDLE_KEPT, 9).len(), 1);
        assert_ne!(open(&mut catalog, USER, 1, false, now), one);
    }

    #[test]
    fn unshared_file_goes_with_its_last_handle() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        catalog.unshare(one);
        assert_ne!(open(&mut catalog, USER, 1, false, now), one);
        catalog.release(one, now);
        assert_eq!(catalog.evict(now, 9).len(), 1);
    }

    #[test]
    fn oldest_of_too_many_idle_files_go_first_and_a_few_at_a_time() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        let step = Duration::from_micros(1);
        for number in 0..IDLE_COUNT_MAX as u32 + 3 {
            let source = open(&mut catalog, USER, number.into(), false, now);
            catalog.release(source, now + step * number);
        }
        let evicted = |catalog: &mut Catalog| -> Vec<u64> {
            catalog.evict(now, 2).into_iter().map(|(_, entry)| entry.identity.inode).collect()
        };
        assert_eq!(evicted(&mut catalog), [0, 1]);
        assert!(catalog.has_surplus());
        assert_eq!(evicted(&mut catalog), [2]);
        assert!(!catalog.has_surplus());
    }

    #[test]
    fn file_that_is_opened_again_is_not_idle() {
        let (mut catalog, now) = (Catalog::new(4096), Instant::now());
        let one = open(&mut catalog, USER, 1, false, now);
        catalog.release(one, now);
        open(&mut catalog, USER, 1, false, now);
        assert!(catalog.evict(now + 2 * IDLE_KEPT, 9).is_empty());
        assert!(catalog.idle.is_empty() && catalog.idle_bytes.is_empty());
    }
}
