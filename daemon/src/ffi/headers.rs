//! What FFmpeg's look into a file finds out of H.264 streams by decoding pictures, from the headers of their first
//! samples: in a thirtieth of the time. Only where it is certain to be the same; elsewhere there is the look alone.

use std::ffi::{CStr, CString, c_int};
use std::ptr::{self, addr_of};

use ffmpeg_next::ffi as sys;
use h264_reader::avcc::AvcDecoderConfigurationRecord;
use h264_reader::nal::sps::SeqParameterSet;
use h264_reader::rbsp::{BitReader, decode_nal};

use super::decoder::Decoder;
use super::error::{FfmpegError, check};
use super::findings;
use super::input::MediaInput;
use super::packet::Packet;
use super::stream::Stream;

/// Larger samples, of sizes that no video has, are left to the look.
const SAMPLE_BYTES_MAX: usize = 16 << 20;

/// Tells a freshly opened input what the headers of its H.264 streams tell, so that its look does not decode them.
pub(super) fn tell(input: &mut MediaInput) -> Result<(), FfmpegError> {
    if !findings::is_telling(input) {
        return Ok(());
    }
    let mut others = Vec::new();
    let mut has_told = false;
    for index in 0..input.stream_count() {
        match first_sample(input, index).map(|sample| parameters_of(input, index, &sample)).transpose()? {
            Some(true) => has_told = true,
            Some(false) | None => others.extend(input.stream(index).map(codec_id)),
        }
    }
    if has_told { look_only_into(input, &others) } else { Ok(()) }
}

/// None where the stream is not H.264 that tells in its header all that a look finds out.
fn first_sample(input: &mut MediaInput, index: usize) -> Option<Vec<u8>> {
    let stream = input.stream(index).filter(|stream| stream.codec_name() == "h264")?;
    let length_bytes = telling_length_bytes(stream.decoder_header())?;
    // SAFETY: the stream belongs to the open context; null is checked.
    let entry = unsafe { sys::avformat_index_get_entry(stream.as_ptr(), 0).as_ref() }?;
    let (position, size) = (entry.pos, usize::try_from(entry.size()).ok()?);
    if size == 0 || size > SAMPLE_BYTES_MAX {
        return None;
    }
    let sample = input.bytes_at(position, size)?;
    brings_no_parameters(&sample, length_bytes).then_some(sample)
}

/// How many bytes the length before each unit has. None where a parameter set does not tell the reorder depth: then
/// FFmpeg guesses it from as many pictures as it takes.
fn telling_length_bytes(header: &[u8]) -> Option<usize> {
    let record = AvcDecoderConfigurationRecord::try_from(header).ok()?;
    let tells_depth = |unit: &[u8]| {
        let bits = decode_nal(unit).ok()?;
        let set = SeqParameterSet::from_bits(BitReader::new(&*bits)).ok()?;
        set.vui_parameters?.bitstream_restrictions
    };
    let mut count = 0;
    for unit in record.sequence_parameter_sets() {
        tells_depth(unit.ok()?)?;
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

/// Fills in a stream's parameters. False where the sample's headers do not lead to a picture.
fn parameters_of(input: &MediaInput, index: usize, sample: &[u8]) -> Result<bool, FfmpegError> {
    let (Some(best), Some(stream)) = (input.best_video_stream(Some(index)), input.stream(index)) else {
        return Ok(false);
    };
    let mut decoder = Decoder::open(input, best, 1)?;
    let has_parameters = decoder.read_headers(&Packet::of(sample)?);
    if has_parameters {
        decoder.copy_parameters_to(stream)?;
    }
    Ok(has_parameters)
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
            assert!(first_sample(&mut told, 0).is_some(), "{name}");
            tell(&mut told).unwrap();
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
            let mut input = opened(&clip(&folder, name, arguments));
            tell(&mut input).unwrap();
            assert_eq!(input.stream(0).unwrap().pixel_format(), None, "{name}");
        }
        // Each sample has parameter sets of its own.
        let repeated =
            clip(&folder, "repeated.mp4", "-x264-params repeat-headers=1 -bsf:v dump_extra=freq=all");
        assert_eq!(first_sample(&mut opened(&repeated), 0), None);
    }

    #[test]
    fn samples_without_a_picture_tell_nothing() {
        let folder = TempDir::new().unwrap();
        let path = clip(&folder, "plain.mp4", "-c:a copy -an");
        let mut input = opened(&path);
        let sample = first_sample(&mut input, 0).unwrap();
        assert!(!parameters_of(&input, 0, &[0, 0, 0, 2, 9, 0xf0]).unwrap());
        assert_eq!(input.stream(0).unwrap().pixel_format(), None);
        assert!(parameters_of(&input, 0, &sample).unwrap());
        assert!(!brings_no_parameters(&sample[..sample.len() - 1], 4), "cut off");
    }

    #[test]
    fn header_has_to_tell_the_reorder_depth() {
        // A baseline set of 64 by 64 pixels without usage information.
        let set = [0x67, 66, 0, 30, 0b1111_0110, 0b1000_1000, 0b1000_1100, 0b1000_0000];
        let mut header = vec![1, 66, 0, 30, 0xff, 0xe1, 0, set.len() as u8];
        header.extend(set);
        header.extend([0]);
        assert_eq!(telling_length_bytes(&header), None);
        assert_eq!(telling_length_bytes(&[]), None);
        assert_eq!(telling_length_bytes(&[1, 66, 0, 30, 0xff, 0xe0, 0]), None, "no set");
    }
}
