//! [`Video`]: an open stream, and what is known of it.
//!
//! How metadata are shown to callers is not decided here but in Python's `metadata.py`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use reeld_client::Dtype;
use reeld_client::metadata::{EffectiveMetadata, MediaType};

use crate::error::{exception, range_error};
use crate::part::Part;
use crate::transform::Transform;
use crate::wait::{interruptibly, submit_interruptibly, wait_for_frames};
use crate::wanted::Wanted;

/// An open stream of a source.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Video {
    pub(crate) video: reeld_client::Video,
}

#[pymethods]
impl Video {
    /// The fields of Python's `VideoStreamMetadata`.
    fn description<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metadata = self.video.metadata();
        let (stream, video) = (metadata.stream(), metadata.video());
        // A mapping is not what the file's metadata says, and TorchCodec shows the latter.
        let (content, effective) = match self.video.options().mapping {
            Some(_) => (None, &EffectiveMetadata::approximate(stream, video, metadata.media())),
            None => (metadata.content(), metadata.effective()),
        };
        let ratio = video.sample_aspect_ratio;
        let fields = PyDict::new(py);
        fields.set_item("duration_seconds_from_header", stream.duration_seconds_from_header)?;
        fields.set_item("begin_stream_seconds_from_header", stream.begin_stream_seconds_from_header)?;
        fields.set_item("bit_rate", stream.bit_rate)?;
        fields.set_item("codec", &stream.codec)?;
        fields.set_item("stream_index", stream.stream_index.0)?;
        fields.set_item("media_type", media_type_name(stream.media_type))?;
        fields.set_item("width", video.width)?;
        fields.set_item("height", video.height)?;
        fields.set_item("num_frames_from_header", video.num_frames_from_header)?;
        fields.set_item("average_fps_from_header", video.average_fps_from_header)?;
        fields.set_item("pixel_aspect_ratio", (ratio.numerator, ratio.denominator))?;
        fields.set_item("rotation", video.rotation_degrees)?;
        fields.set_item("color_primaries", &video.color_primaries)?;
        fields.set_item("color_space", &video.color_space)?;
        fields.set_item("color_transfer_characteristic", &video.color_transfer_characteristic)?;
        fields.set_item("pixel_format", &video.pixel_format)?;
        fields.set_item(
            "begin_stream_seconds_from_content",
            content.map(|content| content.begin_stream_seconds),
        )?;
        fields
            .set_item("end_stream_seconds_from_content", content.map(|content| content.end_stream_seconds))?;
        fields.set_item("num_frames_from_content", content.map(|content| content.num_frames))?;
        fields.set_item("duration_seconds", effective.duration_seconds)?;
        fields.set_item("begin_stream_seconds", effective.begin_stream_seconds)?;
        fields.set_item("end_stream_seconds", effective.end_stream_seconds)?;
        fields.set_item("num_frames", effective.num_frames)?;
        fields.set_item("average_fps", effective.average_fps)?;
        Ok(fields)
    }

    /// The same stream with frames that are transformed.
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts lists by value only")]
    fn transformed(&self, transforms: Vec<PyRef<'_, Transform>>) -> PyResult<Video> {
        let transforms: Vec<_> = transforms.iter().map(|transform| transform.transform).collect();
        let video = self.video.transformed(&transforms);
        // Nothing but their sizes can be wrong.
        video.map(Video::new).map_err(|error| range_error(&error))
    }

    /// Height and width of the frames that are returned.
    fn frame_size(&self) -> (u32, u32) {
        (self.video.frame_height(), self.video.frame_width())
    }

    /// Type of the values of returned pixels.
    fn dtype(&self) -> &'static str {
        match self.video.dtype() {
            Dtype::Uint8 => "uint8",
            Dtype::Float32 => "float32",
        }
    }

    /// What the mapping says where the video was opened with one: number of frames, begin and end in seconds.
    fn mapped_bounds(&self) -> Option<(u64, f64, f64)> {
        self.video.options().mapping.as_ref()?;
        let content = self.video.metadata().content()?;
        Some((content.num_frames, content.begin_stream_seconds, content.end_stream_seconds))
    }

    /// The content of the source; none where it has more bytes than that.
    fn content<'py>(&self, py: Python<'py>, bytes_max: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let video = self.video.clone();
        let content = interruptibly(py, move || video.content(bytes_max))?;
        Ok(content.map(|content| PyBytes::new(py, &content)))
    }

    /// The most bytes that this process's results may have together.
    fn quota_bytes(&self) -> u64 {
        self.video.quota_bytes()
    }

    /// The indices of the frames that decoding can begin at.
    fn key_frames(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        let video = self.video.clone();
        interruptibly(py, move || video.key_frames())
    }

    /// Says which frames will be asked for. Never waits.
    fn prefetch(&self, wanted: &Wanted) -> PyResult<()> {
        self.video.prefetch(wanted.wanted.clone()).map_err(|error| exception(&error))
    }

    /// Asks for frames and waits for them.
    fn read(&self, py: Python<'_>, wanted: &Wanted) -> PyResult<Part> {
        let parts = [(&self.video, wanted.wanted.clone())];
        let pending = submit_interruptibly(py, &parts, 0, None)?;
        Ok(Part::only(wait_for_frames(py, &pending)?))
    }
}

impl Video {
    pub(crate) fn new(video: reeld_client::Video) -> Video {
        Video { video }
    }
}

/// As FFmpeg calls them.
fn media_type_name(media_type: MediaType) -> &'static str {
    match media_type {
        MediaType::Video => "video",
        MediaType::Audio => "audio",
        MediaType::Subtitle => "subtitle",
        MediaType::Data => "data",
        MediaType::Attachment => "attachment",
        MediaType::Unknown => "unknown",
    }
}
