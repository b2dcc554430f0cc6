//! Indexes outlive their daemon: the next one scans no file that the one before has scanned, and never trusts what
//! it finds on disk more than the file itself.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use reeld_client::{OpenOptions, SeekMode};
use reeld_tests::{Daemon, Reference, clip, eventually};
use tempfile::TempDir;

const CLIP: &str = "h264_bframes.mp4";
const OTHER_CLIP: &str = "hevc_8bit.mp4";

struct Scene {
    folder: TempDir,
    file: PathBuf,
    reference: Reference,
}

impl Scene {
    /// A copy of the clip that looks as if it had been there for an hour.
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clip.mp4");
        let scene = Scene { file, reference: Reference::new(&clip(CLIP), 320, 180), folder };
        scene.put(&fs::read(clip(CLIP)).unwrap());
        scene
    }

    fn put(&self, content: &[u8]) {
        fs::write(&self.file, content).unwrap();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        File::options().append(true).open(&self.file).unwrap().set_modified(hour_ago).unwrap();
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn stored(&self) -> Vec<PathBuf> {
        let uid = rustix::process::getuid().as_raw().to_string();
        let Ok(entries) = fs::read_dir(self.cache().join("indexes").join(uid)) else { return Vec::new() };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "index")).collect()
    }

    /// Opens the clip at a new daemon, checks its frames, and says how many scans that took.
    fn scans_at_a_new_daemon(&self, cache: &Path) -> u64 {
        let daemon = Daemon::with(&["--cache-dir", cache.to_str().unwrap()]);
        let client = daemon.client();
        let video = client.open(&self.file, OpenOptions::new()).unwrap();
        assert_eq!(video.metadata().frame_count(), Some(50));
        let frames = video.frames_at(&[0, 31, -1]).unwrap();
        assert!(frames[..] == self.reference.frames([0, 31, -1])[..], "other pixels than ffmpeg's");
        let scans = client.status().unwrap().totals.scans;
        if scans > 0 && cache.is_dir() {
            // It is written after the client was answered.
            eventually("the index is stored", || (!self.stored().is_empty()).then_some(()));
        }
        scans
    }
}

#[test]
fn second_daemon_scans_nothing() {
    let scene = Scene::new();
    fs::create_dir(scene.cache()).unwrap();
    assert_eq!(scene.scans_at_a_new_daemon(&scene.cache()), 1);
    assert_eq!(scene.scans_at_a_new_daemon(&scene.cache()), 0);
    assert_eq!(scene.stored().len(), 1);
}

#[test]
fn damaged_index_is_made_anew() {
    let scene = Scene::new();
    fs::create_dir(scene.cache()).unwrap();
    scene.scans_at_a_new_daemon(&scene.cache());
    let stored = &scene.stored()[0];
    let whole = fs::read(stored).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(stored, damaged).unwrap();
    assert_eq!(scene.scans_at_a_new_daemon(&scene.cache()), 1);
    eventually("the index is whole again", || fs::read(stored).is_ok_and(|now| now == whole).then_some(()));
    assert_eq!(scene.scans_at_a_new_daemon(&scene.cache()), 0);
}

#[test]
fn file_with_another_content_is_scanned() {
    let scene = Scene::new();
    fs::create_dir(scene.cache()).unwrap();
    let content = fs::read(clip(CLIP)).unwrap();
    scene.put(&fs::read(clip(OTHER_CLIP)).unwrap());
    let daemon = Daemon::with(&["--cache-dir", scene.cache().to_str().unwrap()]);
    let other = daemon.client().open(&scene.file, OpenOptions::new()).unwrap();
    drop((other, daemon));
    scene.put(&content);
    assert_eq!(scene.scans_at_a_new_daemon(&scene.cache()), 1);
}

#[test]
fn file_that_was_just_written_is_not_stored() {
    let scene = Scene::new();
    let daemon = Daemon::with(&["--cache-dir", scene.cache().to_str().unwrap()]);
    let client = daemon.client();
    let now = SystemTime::now() + Duration::from_secs(60);
    File::options().append(true).open(&scene.file).unwrap().set_modified(now).unwrap();
    client.open(&scene.file, OpenOptions::new()).unwrap();
    // Whatever is stored for this file is stored before that of one that is opened later by the same helper.
    let old = scene.folder.path().join("old.mp4");
    fs::copy(clip(CLIP), &old).unwrap();
    File::options().append(true).open(&old).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    client.open(&old, OpenOptions::new()).unwrap();
    eventually("the other index is stored", || (!scene.stored().is_empty()).then_some(()));
    assert_eq!(scene.stored().len(), 1);
}

#[test]
fn memory_and_approximate_mode_store_nothing() {
    let scene = Scene::new();
    let daemon = Daemon::with(&["--cache-dir", scene.cache().to_str().unwrap()]);
    let client = daemon.client();
    client.open(fs::read(clip(CLIP)).unwrap(), OpenOptions::new()).unwrap();
    client.open(&scene.file, OpenOptions::new().seek_mode(SeekMode::Approximate)).unwrap();
    client.open(&scene.file, OpenOptions::new()).unwrap();
    eventually("the one index is stored", || (!scene.stored().is_empty()).then_some(()));
    assert_eq!(scene.stored().len(), 1);
}

#[test]
fn folder_that_cannot_be_used_costs_scans_alone() {
    let scene = Scene::new();
    let file = scene.folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert_eq!(scene.scans_at_a_new_daemon(&file), 1);
    assert_eq!(scene.scans_at_a_new_daemon(&file), 1);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn folder_is_for_the_daemon_alone() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let daemon = Daemon::with(&["--cache-dir", scene.cache().to_str().unwrap()]);
    daemon.client().open(&scene.file, OpenOptions::new()).unwrap();
    eventually("the index is stored", || (!scene.stored().is_empty()).then_some(()));
    let mode = fs::metadata(scene.cache().join("indexes")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn no_room_on_disk_means_no_store() {
    let scene = Scene::new();
    let cache = scene.cache();
    let options = ["--cache-dir", cache.to_str().unwrap(), "--index-cache-mib", "0"];
    let daemon = Daemon::with(&options);
    daemon.client().open(&scene.file, OpenOptions::new()).unwrap();
    drop(daemon);
    assert!(!cache.exists());
}
