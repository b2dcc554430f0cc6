//! Clips from `tests/media/generate`, and [`Reference`]: what the ffmpeg program decodes from them.
//!
//! How clips are made is written there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository")
}

/// A clip by its name in `tests/media/generate`; made if it is not there yet.
pub fn clip(name: &str) -> PathBuf {
    let [path] = clips([name]);
    path
}

/// Several clips by their names, which takes less time than one by one.
pub fn clips<const N: usize>(names: [&str; N]) -> [PathBuf; N] {
    static MADE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let folder = repository().join("target/test-media");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let missing: Vec<&str> = names.into_iter().filter(|name| !made.contains(*name)).collect();
    if !missing.is_empty() {
        let output = Command::new(repository().join("tests/media/generate"))
            .arg(&folder)
            .arg("--only")
            .args(&missing)
            .output()
            .expect("tests/media/generate can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        made.extend(missing.into_iter().map(str::to_owned));
    }
    names.map(|name| folder.join(name))
}

/// Twenty clips of 30 frames of 160 x 96.
pub fn twenty_clips() -> [PathBuf; 20] {
    let names: [String; 20] = std::array::from_fn(|number| format!("twenty_{number:02}.mp4"));
    clips(names.each_ref().map(String::as_str))
}

/// All frames of a clip, decoded from its start to its end by the ffmpeg program.
#[derive(Clone, Debug)]
pub struct Reference {
    pixels: Vec<u8>,
    frame_bytes: usize,
}

impl Reference {
    /// Frames of that size in RGB, 8 bits a value.
    pub fn new(clip: &Path, width: usize, height: usize) -> Reference {
        Reference::decode(clip, "rgb24", width * height * 3)
    }

    /// Frames of that size in RGB, 16 bits a value.
    pub fn deep(clip: &Path, width: usize, height: usize) -> Reference {
        Reference::decode(clip, "rgb48le", width * height * 6)
    }

    fn decode(clip: &Path, pixel_format: &str, frame_bytes: usize) -> Reference {
        let output = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-i"])
            .arg(clip)
            .args(["-map", "0:v:0", "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", pixel_format, "-"])
            .output()
            .expect("ffmpeg can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout.len() % frame_bytes, 0, "the clip has another size");
        Reference { pixels: output.stdout, frame_bytes }
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> usize {
        self.pixels.len() / self.frame_bytes
    }

    /// One frame; from the end where negative.
    pub fn frame(&self, index: i64) -> &[u8] {
        let count = self.frame_count() as i64;
        let index = if index < 0 { count + index } else { index } as usize;
        &self.pixels[index * self.frame_bytes..][..self.frame_bytes]
    }

    /// The frames one behind the other.
    pub fn frames(&self, indices: impl IntoIterator<Item = i64>) -> Vec<u8> {
        indices.into_iter().flat_map(|index| self.frame(index)).copied().collect()
    }

    /// For another process; `Worker` passes the path on.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, &self.pixels).expect("the reference can be written");
    }

    /// What `write` wrote.
    pub fn read(path: &Path, width: usize, height: usize) -> Reference {
        let pixels = std::fs::read(path).expect("the reference can be read");
        Reference { pixels, frame_bytes: width * height * 3 }
    }
}
