//! Conversion by a filter graph, for what libswscale alone cannot write in place: widths that its fast loops
//! overrun, and rotation.
//!
//! What does not live here: which filters are needed; see `engine::device::cpu`.

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi as sys;
use reeld_protocol::metadata::Rational;

use super::error::{FfmpegError, check};
use super::picture::{Picture, PictureFormat};

/// What a graph is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterGraphConfig<'a> {
    /// The pictures to filter.
    pub source: PictureFormat,
    /// Width to height of one of their pixels.
    pub sample_aspect_ratio: Rational,
    /// Length of a tick.
    pub time_base: Rational,
    /// The filters in FFmpeg's notation, from one input to one output.
    pub filters: &'a str,
}

/// A graph with one source and one sink.
pub struct FilterGraph {
    graph: NonNull<sys::AVFilterGraph>,
    // Both belong to the graph.
    source: NonNull<sys::AVFilterContext>,
    sink: NonNull<sys::AVFilterContext>,
}

impl FilterGraph {
    /// Builds the graph, with one thread.
    pub fn new(config: FilterGraphConfig<'_>) -> Result<Self, FfmpegError> {
        // SAFETY: takes nothing; null is checked.
        let graph = NonNull::new(unsafe { sys::avfilter_graph_alloc() });
        let mut graph = Unfinished(graph.ok_or_else(|| FfmpegError::out_of_memory("make a filter graph"))?);
        // SAFETY: freshly allocated.
        unsafe { (*graph.as_ptr()).nb_threads = 1 };
        let source = graph.add_source(config)?;
        let sink = graph.add(c"buffersink", c"out")?;
        graph.connect(source, sink, config.filters)?;
        let finished = FilterGraph { graph: graph.0, source, sink };
        // The finished graph frees it from here on.
        std::mem::forget(graph);
        Ok(finished)
    }

    /// Filters one picture.
    pub fn convert(&mut self, picture: &Picture) -> Result<Picture, FfmpegError> {
        // SAFETY: both are alive; the graph makes its own reference.
        let code = unsafe { sys::av_buffersrc_write_frame(self.source.as_ptr(), picture.as_ptr()) };
        check("filter a picture", code)?;
        let filtered = Picture::empty()?;
        // SAFETY: both are alive and the picture is empty.
        let code = unsafe { sys::av_buffersink_get_frame(self.sink.as_ptr(), filtered.as_ptr()) };
        check("filter a picture", code)?;
        Ok(filtered)
    }
}

impl Drop for FilterGraph {
    fn drop(&mut self) {
        drop(Unfinished(self.graph));
    }
}

/// A graph that is being built; owns it until then.
struct Unfinished(NonNull<sys::AVFilterGraph>);

impl Unfinished {
    fn as_ptr(&self) -> *mut sys::AVFilterGraph {
        self.0.as_ptr()
    }

    fn add_source(
        &mut self,
        config: FilterGraphConfig<'_>,
    ) -> Result<NonNull<sys::AVFilterContext>, FfmpegError> {
        let source = self.allocate(c"buffer", c"in")?;
        // SAFETY: takes nothing; null is checked.
        let parameters = unsafe { sys::av_buffersrc_parameters_alloc() };
        let Some(owned) = NonNull::new(parameters) else {
            return Err(FfmpegError::out_of_memory("make a filter graph"));
        };
        // SAFETY: allocated above and not shared.
        let fields = unsafe { &mut *owned.as_ptr() };
        fields.format = config.source.format;
        fields.width = config.source.width;
        fields.height = config.source.height;
        fields.sample_aspect_ratio = native(config.sample_aspect_ratio);
        fields.time_base = native(config.time_base);
        // SAFETY: both are alive; the parameters are copied.
        let code = unsafe { sys::av_buffersrc_parameters_set(source.as_ptr(), parameters) };
        // SAFETY: allocated above, used by nobody afterwards.
        unsafe { sys::av_free(parameters.cast()) };
        check("describe the pictures to filter", code)?;
        initialize(source)?;
        Ok(source)
    }

    fn add(&mut self, filter: &CStr, name: &CStr) -> Result<NonNull<sys::AVFilterContext>, FfmpegError> {
        let context = self.allocate(filter, name)?;
        initialize(context)?;
        Ok(context)
    }

    fn allocate(&mut self, filter: &CStr, name: &CStr) -> Result<NonNull<sys::AVFilterContext>, FfmpegError> {
        // SAFETY: the name ends with NUL; filters are static; null is checked by the next call.
        let filter = unsafe { sys::avfilter_get_by_name(filter.as_ptr()) };
        if filter.is_null() {
            return Err(FfmpegError::new("find a filter", sys::AVERROR_FILTER_NOT_FOUND));
        }
        // SAFETY: the graph is alive and owns the result; null is checked.
        let context = unsafe { sys::avfilter_graph_alloc_filter(self.as_ptr(), filter, name.as_ptr()) };
        NonNull::new(context).ok_or_else(|| FfmpegError::out_of_memory("make a filter"))
    }

    fn connect(
        &mut self,
        source: NonNull<sys::AVFilterContext>,
        sink: NonNull<sys::AVFilterContext>,
        filters: &str,
    ) -> Result<(), FfmpegError> {
        let filters = CString::new(filters)
            .map_err(|_| FfmpegError::new("read the filters", sys::AVERROR(libc::EINVAL)))?;
        // The names are those of the open ends of the filters' notation, which is why they look crossed.
        let mut outputs = Ends::new(c"in", source)?;
        let mut inputs = Ends::new(c"out", sink)?;
        // SAFETY: all are alive; both lists are exchanged for what is left of them.
        let code = unsafe {
            sys::avfilter_graph_parse_ptr(
                self.as_ptr(),
                filters.as_ptr(),
                &raw mut inputs.0,
                &raw mut outputs.0,
                ptr::null_mut(),
            )
        };
        check("read the filters", code)?;
        // SAFETY: the graph is alive and complete.
        let code = unsafe { sys::avfilter_graph_config(self.as_ptr(), ptr::null_mut()) };
        check("build the filter graph", code)?;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut graph = self.as_ptr();
        // SAFETY: owned by self; frees the filters too.
        unsafe { sys::avfilter_graph_free(&raw mut graph) };
    }
}

/// An owned list of open ends.
struct Ends(*mut sys::AVFilterInOut);

impl Ends {
    fn new(name: &CStr, context: NonNull<sys::AVFilterContext>) -> Result<Self, FfmpegError> {
        // SAFETY: takes nothing; null is checked.
        let ends = Ends(unsafe { sys::avfilter_inout_alloc() });
        let Some(end) = NonNull::new(ends.0) else {
            return Err(FfmpegError::out_of_memory("make a filter graph"));
        };
        // SAFETY: copies the string.
        let name: *mut c_char = unsafe { sys::av_strdup(name.as_ptr()) };
        // SAFETY: allocated above and not shared.
        let end = unsafe { &mut *end.as_ptr() };
        end.name = name;
        end.filter_ctx = context.as_ptr();
        end.pad_idx = 0;
        end.next = ptr::null_mut();
        Ok(ends)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // SAFETY: owned by self; accepts null.
        unsafe { sys::avfilter_inout_free(&raw mut self.0) };
    }
}

fn initialize(context: NonNull<sys::AVFilterContext>) -> Result<(), FfmpegError> {
    // SAFETY: the context is allocated and not yet initialised; no options.
    let code = unsafe { sys::avfilter_init_str(context.as_ptr(), ptr::null()) };
    check("start a filter", code)?;
    Ok(())
}

fn native(value: Rational) -> sys::AVRational {
    sys::AVRational { num: value.numerator, den: value.denominator }
}
