//! What FFmpeg's look into a file finds out of H.264 streams by decoding pictures, from the headers of their first
//! samples, in a small part of the time. Where the header leaves a doubt, there is the look alone.

use std::ffi::{CStr, CString, c_int};
use std::ptr::{self, addr_of};

use ffmpeg_next::ffi as sys;
use h264_reader::avcc::AvcDecoderConfigurationRecord;
use h264_reader::nal::sps::SeqParameterSet;
use h264_reader::rbsp::{BitReader, decode_nal};

use super::decoder::Decoder;
use super::error::{FfmpegError, check};
use super::findings;
use super::input::{BestStream, MediaInput};
use super::packet::Packet;
use super::stream::Stream;

/// So many samples are read for the first ones of all streams; those of streams that come later are left to the look.
const SAMPLES_MAX: usize = 32;

/// From this version on, a look that cannot open a decoder forgets what the container says of the stream.
const AVFORMAT_MAJOR_TOO_NEW: u32 = 60;

/// True if some stream may be H.264 whose header tells what a look finds out.
pub(super) fn may_tell(input: &MediaInput) -> bool {
    // SAFETY: takes nothing and returns a constant.
    let major = unsafe { sys::avformat_version() } >> 16;
    major < AVFORMAT_MAJOR_TOO_NEW
        && findings::is_telling(input)
        && input.streams().any(|stream| telling_length_bytes(stream).is_some())
}

/// Tells a freshly opened input what the headers of its H.264 streams tell, so that its look does not decode them. `twin`
/// is another of the same file, which nobody needs afterwards.
pub(super) fn tell(input: &mut MediaInput, mut twin: MediaInput) -> Result<(), FfmpegError> {
    let mut left: Vec<usize> = (0..input.stream_count())
        .filter(|&index| input.stream(index).and_then(telling_length_bytes).is_some())
        .collect();
    let mut told = Vec::new();
    let mut packet = Packet::new()?;
    for _ in 0..SAMPLES_MAX {
        // What cannot be read is the look's matter, too.
        if left.is_empty() || !matches!(twin.read(&mut packet), Ok(true)) {
            break;
        }
        let index = packet.stream_index();
        if let Some(place) = left.iter().position(|&wanted| wanted == index) {
            left.swap_remove(place);
            if tell_by(input, &packet)? {
                told.push(index);
            }
        }
    }
    if told.is_empty() {
        return Ok(());
    }
    let others = (0..input.stream_count()).filter(|index| !told.contains(index));
    let others: Vec<c_int> = others.filter_map(|index| input.stream(index)).map(codec_id).collect();
    look_only_into(input, &others)
}

/// Fills in the parameters of a stream by its first sample. False where its headers do not lead to a picture.
fn tell_by(input: &MediaInput, first: &Packet) -> Result<bool, FfmpegError> {
    let index = first.stream_index();
    let Some(stream) = input.stream(index) else { return Ok(false) };
    let length_bytes = telling_length_bytes(stream);
    let is_sufficient = length_bytes.is_some_and(|bytes| brings_no_parameters(first.data(), bytes));
    let best = input.best_video_stream(Some(index)).filter(BestStream::is_native_h264);
    let Some(best) = best.filter(|_| is_sufficient && !first.has_new_header()) else { return Ok(false) };
    // A decoder that does not open is no error for the look.
    let Ok(mut decoder) = Decoder::open(input, best, 1) else { return Ok(false) };
    let has_parameters = decoder.read_headers(first);
    if has_parameters {
        decoder.copy_parameters_to(stream)?;
    }
    Ok(has_parameters)
}

/// How many bytes the length before each unit has. None where a parameter set does not tell the reorder depth: then
/// FFmpeg guesses it from as many pictures as it takes.
fn telling_length_bytes(stream: Stream<'_>) -> Option<usize> {
    (stream.codec_name() == "h264").then(|| length_bytes_of(stream.decoder_header())).flatten()
}

fn length_bytes_of(header: &[u8]) -> Option<usize> {
    let record = AvcDecoderConfigurationRecord::try_from(header).ok()?;
    let tells_depth = |unit: &[u8]| {
        let bits = decode_nal(unit).ok()?;
        let set = SeqParameterSet::from_bits(BitReader::new(&*bits)).ok()?;
        set.vui_parameters?.bitstream_restrictions
    };
    let mut count = 0;
    for unit in record.sequence_parameter_sets() {
        tells_depth(unit.ok().filter(|unit| !unit.is_empty())?)?;
        count += 1;
    }
    (count > 0).then_some(usize::from(record.length_size_minus_one()) + 1)
}

/// True if the units of a sample are as long as they say and none is a parameter set, which would count instead of the
/// header's.
fn brings_no_parameters(mut sample: &[u8], length_bytes: usize) -> bool {
    while !sample.is_empty() {
        let Some((length, rest)) = sample.split_at_checked(length_bytes) else { return false };
        let length = length.iter().fold(0, |number, &byte| number << 8 | usize::from(byte));
        let Some((unit, rest)) = rest.split_at_checked(length) else { return false };
        if unit.first().is_none_or(|header| matches!(header & 0x1f, 7 | 8 | 13 | 15)) {
            return false;
        }
        sample = rest;
    }
    true
}

/// Has the look open no other decoders than for these codecs.
fn look_only_into(input: &mut MediaInput, codecs: &[c_int]) -> Result<(), FfmpegError> {
    let names: Vec<&str> = decoders()
        .filter(|(codec, _)| codecs.contains(codec))
        .filter_map(|(_, name)| name.to_str().ok())
        .collect();
    let list = CString::new(names.join(",")).map_err(|_| FfmpegError::out_of_memory("name decoders"))?;
    // SAFETY: the context begins with its class, as options require; both strings end with NUL.
    let code =
        unsafe { sys::av_opt_set(input.as_ptr().cast(), c"codec_whitelist".as_ptr(), list.as_ptr(), 0) };
    check("open only some decoders", code)?;
    Ok(())
}

fn codec_id(stream: Stream<'_>) -> c_int {
    // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
    unsafe { addr_of!((*stream.parameters()).codec_id).cast::<c_int>().read() }
}

/// All decoders of this FFmpeg: their codecs and names.
fn decoders() -> impl Iterator<Item = (c_int, &'static CStr)> {
    let mut state = ptr::null_mut();
    std::iter::from_fn(move || {
        // SAFETY: the state is FFmpeg's, from the call before; codecs are static; null is checked.
        unsafe { sys::av_codec_iterate(&raw mut state).as_ref() }
    })
    // SAFETY: takes a codec.
    .filter(|codec| unsafe { sys::av_codec_is_decoder(*codec) } != 0)
    .map(|codec| {
        // SAFETY: read as an integer, whatever its value.
        let id = unsafe { addr_of!(codec.id).cast::<c_int>().read() };
        // SAFETY: names are static strings.
        (id, unsafe { CStr::from_ptr(codec.name) })
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::ffi::Deadline;

    fn clip(folder: &TempDir, name: &str, arguments: &str) -> PathBuf {
        let path = folder.path().join(name);
        let input = "-v error -f lavfi -i testsrc2=s=176x144:r=25:d=1 -f lavfi -i sine=d=1 -c:v libx264";
        let arguments = input.split(' ').chain(arguments.split_whitespace());
        let status = Command::new("ffmpeg").args(arguments).arg(&path).status();
        assert!(status.unwrap().success(), "{name}");
        path
    }

    fn opened(path: &Path) -> MediaInput {
        MediaInput::open_container(File::open(path).unwrap().into(), &Deadline::default()).unwrap()
    }

    /// All that a look may change.
    fn facts(input: &MediaInput) -> Vec<String> {
        let of_stream = |stream: Stream<'_>| {
            // SAFETY: the stream and its parameters live as long as the input.
            let (parameters, original) = unsafe { (&*stream.parameters(), &*stream.as_ptr()) };
            // SAFETY: read as integers, whatever their values.
            let enums = unsafe {
                [
                    addr_of!(parameters.codec_id).cast::<c_int>().read(),
                    addr_of!(parameters.field_order).cast::<c_int>().read(),
                    addr_of!(parameters.color_range).cast::<c_int>().read(),
                    addr_of!(parameters.color_primaries).cast::<c_int>().read(),
                    addr_of!(parameters.color_trc).cast::<c_int>().read(),
                    addr_of!(parameters.color_space).cast::<c_int>().read(),
                    addr_of!(parameters.chroma_location).cast::<c_int>().read(),
                ]
            };
            let numbers = [
                parameters.format,
                parameters.bits_per_coded_sample,
                parameters.bits_per_raw_sample,
                parameters.profile,
                parameters.level,
                parameters.video_delay,
                parameters.sample_rate,
                parameters.frame_size,
                parameters.initial_padding,
                parameters.ch_layout.nb_channels,
            ];
            let sizes =
                (parameters.codec_tag, parameters.bit_rate, stream.coded_size(), stream.decoder_header());
            let times = (original.start_time, original.duration, original.nb_frames, original.disposition);
            let rates = [
                original.avg_frame_rate,
                original.r_frame_rate,
                original.sample_aspect_ratio,
                parameters.sample_aspect_ratio,
            ];
            let rates = rates.map(|rate| (rate.num, rate.den));
            format!("{enums:?} {numbers:?} {sizes:?} {times:?} {rates:?} {:?}", stream.rotation_degrees())
        };
        let container = format!("{:?} {:?}", input.duration_micros(), input.bit_rate());
        input.streams().map(of_stream).chain([container]).collect()
    }

    #[test]
    fn headers_tell_what_a_look_finds() {
        let folder = TempDir::new().unwrap();
        for (name, arguments) in [
            ("plain.mp4", ""),
            ("no-reorder.mp4", "-bf 0 -c:a mp3"),
            ("baseline.mov", "-profile:v baseline -c:a pcm_s16le"),
            ("interlaced.mp4", "-x264-params tff=1 -flags +ildct+ilme"),
            ("yuv444.mp4", "-pix_fmt yuv444p"),
            ("ten-bits.mp4", "-pix_fmt yuv420p10le -c:a ac3"),
            ("gray.mp4", "-pix_fmt gray"),
            ("full-range.mp4", "-pix_fmt yuvj420p"),
            ("rgb.mp4", "-c:v libx264rgb -pix_fmt rgb24"),
            (
                "cropped.mp4",
                "-vf crop=158:130,setsar=4/3 -color_primaries bt709 -color_trc bt709 -colorspace bt709",
            ),
            ("transfer.mp4", "-x264-params transfer=bt2020-10:alternative-transfer=arib-std-b67"),
            ("cut.mp4", "-ss 0.5 -t 0.4"),
            ("rotated.mp4", "-metadata:s:v rotate=90"),
            ("refresh.mp4", "-x264-params intra-refresh=1"),
            ("open.mp4", "-x264-params open-gop=1:keyint=10"),
            ("rates.mp4", "-vf select='mod(n,3)' -vsync vfr"),
            ("one.mp4", "-frames:v 1"),
            ("two.mp4", "-map 0:v -map 0:v -map 1:a"),
            ("mixed.mov", "-map 0:v -map 0:v -map 1:a -c:v:1 mpeg4"),
        ] {
            let path = clip(&folder, name, arguments);
            let (mut looked, mut told) = (opened(&path), opened(&path));
            looked.look().unwrap();
            assert!(may_tell(&told), "{name}");
            tell(&mut told, opened(&path)).unwrap();
            assert!(told.stream(0).unwrap().pixel_format().is_some(), "{name}");
            told.look().unwrap();
            assert_eq!(facts(&told), facts(&looked), "{name}");
        }
    }

    #[test]
    fn where_the_header_does_not_tell_all_it_is_left_to_the_look() {
        let folder = TempDir::new().unwrap();
        for (name, arguments) in [
            ("clip.mkv", ""),
            ("clip.ts", ""),
            ("fragments.mp4", "-movflags frag_keyframe+empty_moov"),
            ("mpeg4.mp4", "-c:v mpeg4"),
        ] {
            assert!(!may_tell(&opened(&clip(&folder, name, arguments))), "{name}");
        }
        // Each sample has parameter sets of its own.
        let repeated =
            clip(&folder, "repeated.mp4", "-x264-params repeat-headers=1 -bsf:v dump_extra=freq=all");
        let mut input = opened(&repeated);
        tell(&mut input, opened(&repeated)).unwrap();
        assert_eq!(input.stream(0).unwrap().pixel_format(), None);
    }

    #[test]
    fn units_of_a_sample_have_to_add_up_and_to_be_no_parameters() {
        let sample = [0, 0, 0, 2, 9, 0xf0, 0, 0, 0, 1, 0x65];
        assert!(brings_no_parameters(&sample, 4));
        assert!(!brings_no_parameters(&sample[..sample.len() - 1], 4));
        assert!(!brings_no_parameters(&[0, 0, 0, 1, 0x67], 4));
        assert!(!brings_no_parameters(&[0, 0, 0, 0], 4));
    }

    #[test]
    fn header_has_to_tell_the_reorder_depth() {
        // A baseline set of 64 by 64 pixels without usage information.
        let set = [0x67, 66, 0, 30, 0b1111_0110, 0b1000_1000, 0b1000_1100, 0b1000_0000];
        let mut header = vec![1, 66, 0, 30, 0xff, 0xe1, 0, set.len() as u8];
        header.extend(set);
        header.extend([0]);
        assert_eq!(length_bytes_of(&header), None);
        assert_eq!(length_bytes_of(&[]), None);
        assert_eq!(length_bytes_of(&[1, 66, 0, 30, 0xff, 0xe0, 0]), None, "no set");
        let empty = [&[1, 66, 0, 30, 0xff, 0xe1, 0, 0, 7][..], &[0; 14]].concat();
        assert_eq!(length_bytes_of(&empty), None, "a set without bytes");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_upset_it(
            start in 0..4usize,
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
            length_bytes in 1..5usize,
        ) {
            // Of none, one or more sets.
            let start = [&[][..], &[1, 66, 0, 30, 0xff, 0xe1, 0, 20, 0x67], &[1, 100, 0, 30, 0xff, 0xe3], &[1]][start];
            length_bytes_of(&[start, &bytes].concat());
            brings_no_parameters(&bytes, length_bytes);
        }
    }
}
