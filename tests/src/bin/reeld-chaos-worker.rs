//! The Rust client of a chaos run: `reeld-chaos-worker SOCKET SEED (VIDEO REFERENCE HEIGHTxWIDTHxCOUNT)…`. It
//! decodes at random with two threads until its standard input ends, checks every frame, and tells in lines
//! of JSON what it does.
//!
//! What is killed, and which errors are one too many, is decided by `tests/chaos`.

use std::error::Error as StdError;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reeld_client::{Client, Error, Frames, OpenOptions, Pending, RequestOptions, Video, Wanted};
use reeld_tests::{Random, Reference};
use serde_json::json;

/// Calls repeat themselves while the daemon is away, and the supervisor has a new one up in much less time: then
/// its death is no error.
const IS_UNAVAILABLE_A_FAILURE: bool = true;

/// A daemon that is away is asked again after this long.
const RETRY: Duration = Duration::from_millis(20);

/// Results that a thread holds.
const KEPT_MAX: usize = 8;

type Failure = Box<dyn StdError + Send + Sync>;

struct Clip {
    path: String,
    reference: Reference,
}

/// What a request must give: clips and indices.
type Expected = Vec<(usize, Vec<i64>)>;

struct Reader {
    client: Client,
    clips: Arc<Vec<Clip>>,
    videos: Vec<Option<Video>>,
    random: Random,
    kept: Vec<(Frames, usize, Vec<i64>)>,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, seed, files @ ..] = &arguments[..] else { return Err("SOCKET SEED FILES".into()) };
    let clips: Result<Vec<Clip>, Failure> = files.chunks_exact(3).map(load).collect();
    let (clips, seed) = (Arc::new(clips?), seed.parse::<u64>()?);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|number| {
                let (clips, is_over) = (Arc::clone(&clips), &is_over);
                scope.spawn(move || run(socket, clips, seed.wrapping_add(number), is_over))
            })
            .collect();
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

fn load(file: &[String]) -> Result<Clip, Failure> {
    let sizes: Result<Vec<usize>, _> = file[2].split('x').map(str::parse).collect();
    let [height, width] = sizes?[..] else { return Err("HEIGHTxWIDTH".into()) };
    Ok(Clip { path: file[0].clone(), reference: Reference::read(Path::new(&file[1]), width, height) })
}

/// One line, written at once.
fn say(mut words: serde_json::Value) {
    words["pid"] = std::process::id().into();
    let _ = std::io::stdout().lock().write_all(format!("{words}\n").as_bytes());
}

fn run(socket: &str, clips: Arc<Vec<Clip>>, seed: u64, is_over: &AtomicBool) -> Result<(), Failure> {
    let client = loop {
        match Client::builder().socket(socket).name("chaos").connect() {
            Ok(client) => break client,
            Err(error) if error.is_retryable() => std::thread::sleep(RETRY),
            Err(error) => return fail(&error.into()),
        }
    };
    let videos = clips.iter().map(|_| None).collect();
    let mut reader = Reader { client, clips, videos, random: Random::new(seed), kept: Vec::new() };
    while !is_over.load(Ordering::Relaxed) {
        reader.act()?;
    }
    Ok(())
}

fn fail(failure: &Failure) -> Result<(), Failure> {
    say(json!({ "failure": failure.to_string() }));
    Err(failure.to_string().into())
}

impl Reader {
    /// One thing, with its expected errors told by their class.
    fn act(&mut self) -> Result<(), Failure> {
        type Action = fn(&mut Reader) -> Result<u64, Failure>;
        let actions: [(&str, Action); 6] = [
            ("one", Reader::one),
            ("batch", Reader::batch),
            ("range", Reader::range),
            ("submit", Reader::submit),
            ("give_up", Reader::give_up),
            ("check_kept", Reader::check_kept),
        ];
        let (name, action) = actions[self.random.below(6) as usize];
        say(json!({ "do": name }));
        match action(self) {
            Ok(frames) => say(json!({ "did": name, "frames": frames, "bytes": 0, "error": null })),
            Err(failure) => match failure.downcast_ref::<Error>() {
                Some(Error::DaemonUnavailable { .. }) if !IS_UNAVAILABLE_A_FAILURE => {
                    say(json!({ "did": name, "frames": 0, "bytes": 0, "error": "DaemonUnavailableError" }));
                    std::thread::sleep(RETRY);
                }
                Some(Error::DecoderCrashed(_)) => {
                    say(json!({ "did": name, "frames": 0, "bytes": 0, "error": "DecoderCrashedError" }));
                }
                Some(_) | None => return fail(&format!("{name}: {failure:?}").into()),
            },
        }
        Ok(())
    }

    fn some_clip(&mut self) -> Result<(usize, Video), Error> {
        let number = self.random.below(self.clips.len() as u64) as usize;
        if self.random.below(20) == 0 {
            self.videos[number] = None;
        }
        if let Some(video) = &self.videos[number] {
            return Ok((number, video.clone()));
        }
        let video = self.client.open(self.clips[number].path.as_str(), OpenOptions::default())?;
        self.videos[number] = Some(video.clone());
        Ok((number, video))
    }

    fn some_indices(&mut self, clip: usize) -> Vec<i64> {
        let count = self.clips[clip].reference.frame_count() as u64;
        (0..=self.random.below(4)).map(|_| self.random.below(count) as i64).collect()
    }

    fn check(&self, pixels: &[u8], clip: usize, indices: &[i64]) -> Result<u64, Failure> {
        let clip = &self.clips[clip];
        if pixels != clip.reference.frames(indices.iter().copied()) {
            return Err(format!("{}: other pixels in frames {indices:?}", clip.path).into());
        }
        Ok(indices.len() as u64)
    }

    fn accept(&mut self, frames: Frames, clip: usize, indices: Vec<i64>) -> Result<u64, Failure> {
        let count = self.check(&frames, clip, &indices)?;
        if self.random.below(4) == 0 {
            self.kept.push((frames, clip, indices));
            self.kept.drain(..self.kept.len().saturating_sub(KEPT_MAX));
        }
        Ok(count)
    }

    fn one(&mut self) -> Result<u64, Failure> {
        let (clip, video) = self.some_clip()?;
        let index = self.random.below(self.clips[clip].reference.frame_count() as u64) as i64;
        let frames = video.frame_at(index)?;
        self.accept(frames, clip, vec![index])
    }

    fn batch(&mut self) -> Result<u64, Failure> {
        let (clip, video) = self.some_clip()?;
        let indices = self.some_indices(clip);
        let frames = video.frames_at(&indices)?;
        self.accept(frames, clip, indices)
    }

    fn range(&mut self) -> Result<u64, Failure> {
        let (clip, video) = self.some_clip()?;
        let count = self.clips[clip].reference.frame_count() as u64;
        let start = self.random.below(count);
        let stop = count.min(start + 1 + self.random.below(12));
        let frames = video.frames_in_range(start..stop)?;
        self.accept(frames, clip, (start as i64..stop as i64).collect())
    }

    fn submit_one(&mut self) -> Result<(Pending, Expected), Failure> {
        let mut wanted = Vec::new();
        let mut videos = Vec::new();
        for _ in 0..=self.random.below(4) {
            let (clip, video) = self.some_clip()?;
            wanted.push((clip, self.some_indices(clip)));
            videos.push(video);
        }
        let part = |(video, (_, indices)): (_, &(usize, Vec<i64>))| (video, Wanted::Indices(indices.clone()));
        let parts: Vec<_> = videos.iter().zip(&wanted).map(part).collect();
        Ok((self.client.submit(&parts, RequestOptions::default())?, wanted))
    }

    fn check_parts(&self, frames: &Frames, wanted: &[(usize, Vec<i64>)]) -> Result<u64, Failure> {
        let mut count = 0;
        for (part, (clip, indices)) in frames.parts().zip(wanted) {
            count += self.check(part.pixels(), *clip, indices)?;
        }
        Ok(count)
    }

    /// Several requests in flight.
    fn submit(&mut self) -> Result<u64, Failure> {
        let pending: Result<Vec<_>, Failure> =
            (0..=self.random.below(6)).map(|_| self.submit_one()).collect();
        let mut count = 0;
        for (pending, wanted) in pending? {
            count += self.check_parts(&pending.wait()?, &wanted)?;
        }
        Ok(count)
    }

    /// Requests that are cancelled in words, or by dropping them.
    fn give_up(&mut self) -> Result<u64, Failure> {
        let pending: Result<Vec<_>, Failure> =
            (0..=self.random.below(4)).map(|_| self.submit_one()).collect();
        let mut count = 0;
        for (pending, wanted) in pending? {
            if self.random.below(2) == 0 {
                continue;
            }
            pending.cancel();
            match pending.wait() {
                Ok(frames) => count += self.check_parts(&frames, &wanted)?,
                Err(Error::Cancelled(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }

    /// What is held does not change, whatever died meanwhile.
    fn check_kept(&mut self) -> Result<u64, Failure> {
        for (frames, clip, indices) in &self.kept {
            self.check(frames, *clip, indices)?;
        }
        Ok(0)
    }
}
