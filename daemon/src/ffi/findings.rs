//! What a look into a file's samples has brought to light beyond its header, kept so that opening the file again
//! needs no second look: where that one decodes pictures, it takes 2 to 8 milliseconds, and the opening itself 0.3.

use std::ptr::NonNull;

use ffmpeg_next::ffi as sys;
use reeld_protocol::metadata::MediaType;

use super::error::{FfmpegError, check};
use super::input::MediaInput;
use super::stream::Stream;

/// A format whose header tells where each sample is, when it is shown and how long. What a look changes there are
/// the codec parameters; elsewhere it also changes the times that FFmpeg makes up.
const TELLING_FORMAT: &str = "mov,mp4,m4a,3gp,3g2,mj2";

/// Of all streams of one file.
pub struct Findings(Vec<StreamFindings>);

struct StreamFindings {
    /// Owned.
    parameters: NonNull<sys::AVCodecParameters>,
    media_type: MediaType,
    start_time: i64,
    duration: i64,
    average_frame_rate: sys::AVRational,
    base_frame_rate: sys::AVRational,
}

impl Findings {
    /// Of an input that was looked into. None where a look is needed each time.
    pub(super) fn of(input: &MediaInput) -> Option<Findings> {
        if !is_telling(input) {
            return None;
        }
        let streams = input.streams().map(StreamFindings::of);
        streams.collect::<Option<_>>().map(Findings)
    }

    /// Tells a freshly opened input of the same file. False, and nothing is done, if it is another's.
    pub(super) fn tell(&self, input: &mut MediaInput) -> Result<bool, FfmpegError> {
        let media_types = self.0.iter().map(|found| found.media_type);
        if !media_types.eq(input.streams().map(Stream::media_type)) {
            return Ok(false);
        }
        for (found, stream) in self.0.iter().zip(input.streams()) {
            found.tell(stream)?;
        }
        Ok(true)
    }
}

/// True if the header tells where each sample is and when it is shown.
pub(super) fn is_telling(input: &MediaInput) -> bool {
    // Where samples lie in fragments, the header counts none.
    input.format_name() == TELLING_FORMAT && input.streams().all(|stream| stream.frame_count().is_some())
}

impl StreamFindings {
    fn of(stream: Stream<'_>) -> Option<Self> {
        // SAFETY: streams live as long as the input; only numbers are read of it.
        let original = unsafe { &*stream.as_ptr() };
        // SAFETY: takes nothing; null is checked.
        let parameters = NonNull::new(unsafe { sys::avcodec_parameters_alloc() })?;
        let found = StreamFindings {
            parameters,
            media_type: stream.media_type(),
            start_time: original.start_time,
            duration: original.duration,
            average_frame_rate: original.avg_frame_rate,
            base_frame_rate: original.r_frame_rate,
        };
        // SAFETY: both are alive.
        let code = unsafe { sys::avcodec_parameters_copy(parameters.as_ptr(), stream.parameters()) };
        (code >= 0).then_some(found)
    }

    fn tell(&self, stream: Stream<'_>) -> Result<(), FfmpegError> {
        // SAFETY: streams live as long as the input, which nobody else uses meanwhile.
        let stream = unsafe { &mut *stream.as_ptr() };
        // SAFETY: both are alive; what the header told is freed.
        let code = unsafe { sys::avcodec_parameters_copy(stream.codecpar, self.parameters.as_ptr()) };
        check("open the file again", code)?;
        stream.start_time = self.start_time;
        stream.duration = self.duration;
        stream.avg_frame_rate = self.average_frame_rate;
        stream.r_frame_rate = self.base_frame_rate;
        Ok(())
    }
}

impl Drop for StreamFindings {
    fn drop(&mut self) {
        let mut parameters = self.parameters.as_ptr();
        // SAFETY: owned by self, used by nobody afterwards.
        unsafe { sys::avcodec_parameters_free(&raw mut parameters) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::ffi::{Deadline, Packet};

    const PICTURES: &str = "testsrc2=s=176x144:r=25:d=2";
    const H264: &[&str] = &["-c:v", "libx264", "-bf", "3", "-g", "20"];

    fn clip(folder: &TempDir, name: &str, arguments: &[&str]) -> PathBuf {
        let path = folder.path().join(name);
        let input = ["-v", "error", "-f", "lavfi", "-i", PICTURES, "-f", "lavfi", "-i", "sine=d=2"];
        let status = Command::new("ffmpeg").args(input).args(arguments).arg(&path).status();
        assert!(status.unwrap().success(), "{name}");
        path
    }

    fn file(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    /// What scans, sessions and decoders see of each sample.
    fn samples(mut input: MediaInput) -> Vec<(usize, i64, i64, bool, bool, Vec<u8>)> {
        let mut packet = Packet::new().unwrap();
        let mut samples = Vec::new();
        while input.read(&mut packet).unwrap() {
            let (is_key, is_discarded) = (packet.is_keyframe(), packet.is_discarded());
            let times = (packet.pts_or_dts(), packet.duration_ticks());
            let data = packet.data().to_vec();
            samples.push((packet.stream_index(), times.0, times.1, is_key, is_discarded, data));
        }
        samples
    }

    #[test]
    fn an_input_that_is_opened_again_brings_the_same() {
        let folder = TempDir::new().unwrap();
        let clips: [(&str, &[&str]); 6] = [
            ("plain.mp4", H264),
            ("cut.mp4", &["-c:v", "libx264", "-bf", "3", "-g", "20", "-ss", "0.5", "-t", "1"]),
            ("times.mp4", &["-vf", "select='mod(n,3)'", "-vsync", "vfr", "-c:v", "libx264"]),
            ("hevc.mp4", &["-c:v", "libx265", "-x265-params", "log-level=none"]),
            ("mpeg4.mov", &["-c:v", "mpeg4", "-bf", "2"]),
            ("mjpeg.mov", &["-c:v", "mjpeg"]),
        ];
        for (name, arguments) in clips {
            let path = clip(&folder, name, arguments);
            let deadline = Deadline::default();
            let first = MediaInput::open(file(&path), &deadline).unwrap();
            let findings = first.findings().unwrap();
            let again = MediaInput::open_again(file(&path), &deadline, &findings).unwrap();
            for (first, again) in first.streams().zip(again.streams()) {
                assert_eq!(first.pixel_format(), again.pixel_format(), "{name}");
                assert_eq!(first.coded_size(), again.coded_size(), "{name}");
                assert_eq!(first.start_ticks(), again.start_ticks(), "{name}");
                assert_eq!(first.base_frame_rate(), again.base_frame_rate(), "{name}");
                assert_eq!(first.decoder_header(), again.decoder_header(), "{name}");
            }
            assert!(samples(first) == samples(again), "{name}");
        }
    }

    #[test]
    fn where_the_header_does_not_tell_all_there_is_a_look_each_time() {
        let folder = TempDir::new().unwrap();
        let fragments = ["-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov"];
        for (name, arguments) in [("clip.mkv", H264), ("clip.ts", H264), ("fragments.mp4", &fragments[..])] {
            let path = clip(&folder, name, arguments);
            let input = MediaInput::open(file(&path), &Deadline::default()).unwrap();
            assert!(input.findings().is_none(), "{name}");
        }
    }

    #[test]
    fn findings_of_another_file_are_not_believed() {
        let folder = TempDir::new().unwrap();
        let sound = clip(&folder, "sound.mp4", &["-map", "1:a"]);
        let both = clip(&folder, "both.mp4", H264);
        let findings = MediaInput::open(file(&sound), &Deadline::default()).unwrap().findings().unwrap();
        let input = MediaInput::open_again(file(&both), &Deadline::default(), &findings).unwrap();
        assert_eq!(input.stream(0).unwrap().pixel_format().as_deref(), Some("yuv420p"));
    }
}
