//! The files that this engine may read: their descriptors, what they were when they were opened, and inputs
//! that are open already.
//!
//! What does not live here: paths, and the decision how long a file is of interest; the broker's.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::failure::Failure;
use super::session::StreamFacts;
use crate::ffi::{Deadline, FfmpegError, Findings, MediaInput};
use crate::link::{CatalogId, ContentDigest, FileIdentity};

/// The longest that FFmpeg may look for streams in a file. It reads 5 MB at most, but from a slow or hostile
/// file system that can take for ever.
const OPEN_SECONDS_MAX: u64 = 30;

/// How much of each end of a file its fingerprint covers: headers lie there, and what grows grows there.
const DIGESTED_BYTES: u64 = 64 << 10;

/// Inputs that wait for a session. A header may have megabytes of sample tables.
const FRESH_MAX: usize = 4;

/// All files that the broker has named.
#[derive(Default)]
pub struct Sources {
    sources: HashMap<CatalogId, Source>,
    /// Opened, but nothing was read from them: the next session takes its file's. The latest is the last.
    fresh_inputs: VecDeque<(CatalogId, MediaInput)>,
}

struct Source {
    file: Option<OwnedFd>,
    identity: FileIdentity,
    /// For opening it again.
    findings: Option<Findings>,
    facts: HashMap<usize, StreamFacts>,
}

impl Sources {
    /// One more file. Without its descriptor, it is known as a file that did not come over.
    pub fn add(&mut self, id: CatalogId, file: Option<OwnedFd>, identity: FileIdentity) {
        self.sources.insert(id, Source { file, identity, findings: None, facts: HashMap::new() });
    }

    /// Closes a file. Sessions have their own descriptors.
    pub fn remove(&mut self, id: CatalogId) {
        self.sources.remove(&id);
        self.fresh_inputs.retain(|(fresh, _)| *fresh != id);
    }

    /// An open input, to be looked at. It stays fresh.
    pub fn input(&mut self, id: CatalogId) -> Result<&MediaInput, Failure> {
        let input = self.take_input(id)?;
        if self.fresh_inputs.len() >= FRESH_MAX {
            self.fresh_inputs.pop_front();
        }
        self.fresh_inputs.push_back((id, input));
        Ok(&self.fresh_inputs[self.fresh_inputs.len() - 1].1)
    }

    /// An open input that nobody has read from, to be owned.
    pub fn take_input(&mut self, id: CatalogId) -> Result<MediaInput, Failure> {
        let place = self.fresh_inputs.iter().position(|(fresh, _)| *fresh == id);
        match place.and_then(|place| self.fresh_inputs.remove(place)) {
            Some((_, input)) => Ok(input),
            None => self.source(id)?.open(),
        }
    }

    /// As `take_input`, for a scan: where opening again is cheap, a fresh input is left for a session.
    pub fn take_input_to_scan(&mut self, id: CatalogId) -> Result<MediaInput, Failure> {
        let source = self.source(id)?;
        if source.findings.is_some() { source.open() } else { self.take_input(id) }
    }

    /// Closes what was opened but not used yet.
    pub fn close_fresh(&mut self) {
        self.fresh_inputs.clear();
    }

    /// What does not change in a stream.
    pub fn facts(&mut self, id: CatalogId, stream: usize) -> Result<StreamFacts, Failure> {
        if let Some(facts) = self.source(id)?.facts.get(&stream) {
            return Ok(*facts);
        }
        let facts = StreamFacts::new(self.input(id)?, stream)?;
        self.source(id)?.facts.insert(stream, facts);
        Ok(facts)
    }

    /// Refuses a file whose content was changed since the broker looked at it. A new name, a new mode or one
    /// link less changes the inode and not what was read through it: that is no reason to stop a training.
    pub fn check_unchanged(&mut self, id: CatalogId) -> Result<(), Failure> {
        let source = self.source(id)?;
        let file = source.file.as_ref().ok_or(Failure::NoDescriptors)?;
        if content_of(file.as_fd())? == (source.identity.size_bytes, source.identity.modified_nanos) {
            Ok(())
        } else {
            Err(Failure::SourceChanged)
        }
    }

    /// A fingerprint of the content, by which an index on disk is found again.
    pub fn digest(&mut self, id: CatalogId) -> Result<ContentDigest, Failure> {
        let source = self.source(id)?;
        let file = source.file.as_ref().ok_or(Failure::NoDescriptors)?;
        let size_bytes = source.identity.size_bytes;
        let length = size_bytes.min(DIGESTED_BYTES);
        let mut hash = Sha256::new();
        for offset in [0, size_bytes - length] {
            let mut bytes = vec![0; length as usize];
            read_at(file, &mut bytes, offset)?;
            hash.update(bytes);
        }
        Ok(ContentDigest(hash.finalize().into()))
    }

    fn source(&mut self, id: CatalogId) -> Result<&mut Source, Failure> {
        self.sources.get_mut(&id).ok_or(Failure::UnknownSource(id))
    }
}

impl Source {
    fn open(&mut self) -> Result<MediaInput, Failure> {
        let file = self.file.as_ref().ok_or(Failure::NoDescriptors)?;
        let file = file.try_clone().map_err(|error| match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Failure::NoDescriptors,
            _ => FfmpegError::from_io("open the file", &error).into(),
        })?;
        let deadline = Deadline::default();
        deadline.set(Some(Instant::now() + Duration::from_secs(OPEN_SECONDS_MAX)));
        let input = match &self.findings {
            Some(findings) => MediaInput::open_again(file, &deadline, findings)?,
            None => MediaInput::open(file, &deadline)?,
        };
        deadline.set(None);
        if self.findings.is_none() {
            self.findings = input.findings();
        }
        Ok(input)
    }
}

/// Fills the buffer from an offset. A file that ends before was cut since it was opened.
fn read_at(file: &OwnedFd, mut bytes: &mut [u8], mut offset: u64) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match rustix::io::pread(file, &mut *bytes, offset) {
            Ok(0) => return Err(Failure::SourceChanged),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(FfmpegError::from_io("read the file", &error.into()).into()),
        }
    }
    Ok(())
}

/// Length, and when the content was last changed.
fn content_of(file: BorrowedFd<'_>) -> Result<(u64, i128), Failure> {
    let stat =
        rustix::fs::fstat(file).map_err(|error| FfmpegError::from_io("look at the file", &error.into()))?;
    let modified_nanos = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    Ok((u64::try_from(stat.st_size).unwrap_or(0), modified_nanos))
}
