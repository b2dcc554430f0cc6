//! Which samples no other picture refers to, as their headers tell. Such a sample need not be decoded where
//! nobody wants its picture. H.264 and H.265 say so of each sample; where there is a doubt, and with other
//! codecs, every sample counts as referred to. Pure.
//!
//! What does not live here: whose picture is wanted; that is `session`'s.

use h264_reader::nal::sps::{FrameMbsFlags, SeqParameterSet};
use h264_reader::rbsp::{BitRead, BitReader, decode_nal};

/// Begins a unit where units have no lengths.
const START_CODE: [u8; 3] = [0, 0, 1];
/// Messages about one picture or for the player, numbered alike in both codecs: buffering and picture timing,
/// user data, decoding units, hash. None of them changes how a decoder treats later pictures.
const HARMLESS_MESSAGES: [u32; 6] = [0, 1, 4, 5, 130, 132];
/// More than the numbers at the begin of an H.264 slice take.
const SLICE_HEADER_BYTES: usize = 32;

/// Reads the samples of one stream, in the order in which they are decoded.
#[derive(Debug)]
pub struct References {
    /// None where nothing is known of its samples.
    codec: Option<Codec>,
    /// Bytes of the length before each unit; none where they begin with start codes.
    length_bytes: Option<usize>,
    has_parameters: bool,
    /// There was a parameter set that allows what makes skipping unsafe. For good: later samples may be of it.
    is_doubtful: bool,
    is_distrusted: bool,
    /// How H.264 numbers its frames; none before its first parameter set.
    numbering: Option<Numbering>,
    /// Of H.265: the number of the highest temporal layer there may be.
    highest_layer: Option<u8>,
    /// The number of the latest H.264 frame that others refer to; none where nothing precedes.
    last_number: Option<u32>,
}

/// What of an H.264 parameter set is needed to find `frame_num` in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbering {
    bits: u32,
    has_colour_planes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    H264,
    H265,
}

/// What one unit means for its sample.
enum Unit {
    /// Part of a picture that none refers to.
    Unreferenced,
    /// Tells nothing that outlives the sample.
    Harmless,
    /// Anything else.
    Needed,
}

impl References {
    /// For a stream of FFmpeg's codec name, with the parameter sets of the container's header, if any.
    pub fn new(codec_name: &str, header: &[u8]) -> References {
        let codec = match codec_name {
            "h264" => Some(Codec::H264),
            "hevc" => Some(Codec::H265),
            _ => None,
        };
        let mut references = References {
            codec,
            length_bytes: None,
            has_parameters: false,
            is_doubtful: false,
            is_distrusted: false,
            numbering: None,
            highest_layer: None,
            last_number: None,
        };
        let Some(codec) = codec else { return references };
        let Some(record) = Record::read(codec, header) else {
            references.is_unreferenced(header);
            return references;
        };
        references.length_bytes = Some(record.length_bytes);
        for unit in record.units {
            references.read(codec, unit);
        }
        references
    }

    /// From now on every sample counts as referred to.
    pub fn distrust(&mut self) {
        self.is_distrusted = true;
    }

    /// Whether somebody said so.
    pub fn is_distrusted(&self) -> bool {
        self.is_distrusted
    }

    /// The next sample is not the one behind the last.
    pub fn forget_position(&mut self) {
        self.last_number = None;
    }

    /// True if the stream is known to be one whose samples are whole pictures, each telling what it is.
    pub fn are_trusted(&self) -> bool {
        self.codec.is_some() && self.has_parameters && !self.is_doubtful && !self.is_distrusted
    }

    /// True if it is certain that no other picture depends on this sample. Every sample that the decoder gets has
    /// to be shown to this as well: it may bring parameter sets, and its number tells whether one is missing before it.
    /// If so, samples are distrusted: a decoder guesses by all the numbers that it was given what is missing.
    pub fn is_unreferenced(&mut self, sample: &[u8]) -> bool {
        let Some(codec) = self.codec.filter(|_| !self.is_doubtful && !self.is_distrusted) else {
            return false;
        };
        let units = match self.length_bytes {
            Some(length_bytes) => units_by_length(sample, length_bytes),
            None => units_by_start_code(sample),
        };
        let Some(units) = units else { return false };
        let (mut has_picture, mut is_needed) = (false, false);
        for unit in units {
            match self.read(codec, unit) {
                Unit::Unreferenced => has_picture = true,
                Unit::Harmless => {}
                Unit::Needed => is_needed = true,
            }
        }
        has_picture && !is_needed && self.are_trusted()
    }

    fn read(&mut self, codec: Codec, unit: &[u8]) -> Unit {
        match codec {
            Codec::H264 => self.read_h264(unit),
            Codec::H265 => self.read_h265(unit),
        }
    }

    fn read_h264(&mut self, unit: &[u8]) -> Unit {
        let Some(&header) = unit.first() else { return Unit::Harmless };
        match (header & 0x1f, header >> 5) {
            (1, 0) => {
                self.count_frame(unit);
                Unit::Unreferenced
            }
            (1, _) => {
                self.last_number = self.count_frame(unit);
                Unit::Needed
            }
            // Where decoding is refreshed, numbers begin anew.
            (5, _) => {
                self.last_number = Some(0);
                Unit::Needed
            }
            (6, _) if has_only_harmless_messages(unit) => Unit::Harmless,
            // Delimiter, filler.
            (9 | 12, _) => Unit::Harmless,
            (7, _) => {
                self.has_parameters = true;
                let numbering = read_h264_set(unit);
                self.is_doubtful |=
                    numbering.is_none() || self.numbering.is_some_and(|known| Some(known) != numbering);
                self.numbering = numbering;
                Unit::Needed
            }
            _ => Unit::Needed,
        }
    }

    /// The number of a slice's frame. It follows that of the latest frame that others refer to, or is the same in
    /// further slices of that one; any other tells that frames are missing.
    fn count_frame(&mut self, slice: &[u8]) -> Option<u32> {
        let numbering = self.numbering?;
        let number = numbering.number_of(slice);
        self.is_distrusted |= match (number, self.last_number) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(number), Some(last)) => number != last && number != numbering.next(last),
        };
        number
    }

    fn read_h265(&mut self, unit: &[u8]) -> Unit {
        let &[first, second, ref body @ ..] = unit else { return Unit::Harmless };
        let layer = (first & 1) << 5 | second >> 3;
        // Numbered from 1 here.
        let temporal_layer = (second & 7).wrapping_sub(1);
        // A slice of a layer that should not be there may refer to any other.
        let kind = first >> 1 & 0x3f;
        self.is_doubtful |= kind < 32 && self.highest_layer.is_some_and(|highest| temporal_layer > highest);
        match (kind, layer) {
            // Sub-layer non-reference pictures: only those of a higher temporal layer may refer to them.
            (0 | 2 | 4 | 6 | 8, 0) if self.highest_layer == Some(temporal_layer) => Unit::Unreferenced,
            (35 | 38, 0) => Unit::Harmless,
            (39 | 40, 0) if has_only_harmless_messages(&unit[1..]) => Unit::Harmless,
            (33, _) => {
                self.has_parameters = true;
                // Four bits of a number, then three: how many temporal layers there are beside the first.
                let highest = body.first().map(|byte| byte >> 1 & 0b111);
                self.is_doubtful |=
                    highest.is_none() || self.highest_layer.is_some_and(|known| Some(known) != highest);
                self.highest_layer = highest;
                Unit::Needed
            }
            _ => Unit::Needed,
        }
    }
}

impl Numbering {
    fn next(self, number: u32) -> u32 {
        (number + 1) & ((1 << self.bits) - 1)
    }

    /// None where the slice is cut off.
    fn number_of(self, slice: &[u8]) -> Option<u32> {
        let header = decode_nal(&slice[..slice.len().min(SLICE_HEADER_BYTES)]).ok()?;
        let mut bits = BitReader::new(&*header);
        for name in ["first_mb_in_slice", "slice_type", "pic_parameter_set_id"] {
            bits.read_ue(name).ok()?;
        }
        if self.has_colour_planes {
            bits.skip(2, "colour_plane_id").ok()?;
        }
        bits.read_var(self.bits, "frame_num").ok()
    }
}

/// None where samples may not be left out. Fields may refer to each other within a sample; where numbers of frames may
/// be left out, the decoder fills the gap by what it has; and without a given reorder depth FFmpeg guesses it from all
/// pictures that it has seen.
fn read_h264_set(unit: &[u8]) -> Option<Numbering> {
    let bits = decode_nal(unit).ok()?;
    let set = SeqParameterSet::from_bits(BitReader::new(&*bits)).ok()?;
    let has_reorder_depth =
        set.vui_parameters.as_ref().is_some_and(|usage| usage.bitstream_restrictions.is_some());
    let is_safe = matches!(set.frame_mbs_flags, FrameMbsFlags::Frames)
        && !set.gaps_in_frame_num_value_allowed_flag
        && has_reorder_depth;
    is_safe.then(|| Numbering {
        bits: u32::from(set.log2_max_frame_num_minus4) + 4,
        has_colour_planes: set.chroma_info.separate_colour_plane_flag,
    })
}

/// The unit begins with one byte before its messages.
fn has_only_harmless_messages(unit: &[u8]) -> bool {
    let Ok(messages) = decode_nal(unit) else { return false };
    let mut rest = &*messages;
    // What ends a unit is one set bit.
    while rest.first().is_some_and(|&byte| byte != 0x80) {
        let (Some(kind), Some(length)) = (take_number(&mut rest), take_number(&mut rest)) else {
            return false;
        };
        let Some(after) = rest.get(length as usize..).filter(|_| HARMLESS_MESSAGES.contains(&kind)) else {
            return false;
        };
        rest = after;
    }
    true
}

/// Bytes of 255 that are added up, and the first that is another.
fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0u32;
    loop {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number = number.checked_add(u32::from(byte))?;
        if byte != u8::MAX {
            return Some(number);
        }
    }
}

/// None where the lengths do not add up.
fn units_by_length(mut sample: &[u8], length_bytes: usize) -> Option<Vec<&[u8]>> {
    let mut units = Vec::with_capacity(4);
    while !sample.is_empty() {
        let (length, rest) = sample.split_at_checked(length_bytes)?;
        let length = length.iter().fold(0, |number, &byte| number << 8 | usize::from(byte));
        let (unit, rest) = rest.split_at_checked(length)?;
        units.push(unit);
        sample = rest;
    }
    Some(units)
}

/// None where there is no start code.
fn units_by_start_code(sample: &[u8]) -> Option<Vec<&[u8]>> {
    let mut begins = memchr::memmem::find_iter(sample, &START_CODE).map(|found| found + START_CODE.len());
    let mut begin = begins.next()?;
    let mut units = Vec::with_capacity(4);
    for next in begins {
        units.push(&sample[begin..next - START_CODE.len()]);
        begin = next;
    }
    units.push(&sample[begin..]);
    Some(units)
}

/// The header of a container that gives units a length: `avcC` or `hvcC`.
struct Record<'a> {
    length_bytes: usize,
    units: Vec<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// None for another kind of header, or where it is cut off.
    fn read(codec: Codec, header: &'a [u8]) -> Option<Record<'a>> {
        // Its version; a start code begins with 0.
        if header.first() != Some(&1) {
            return None;
        }
        let mut units = Vec::new();
        let length_bytes = match codec {
            Codec::H264 => {
                let mut rest = header.get(6..)?;
                take_units(&mut rest, usize::from(header[5] & 0x1f), &mut units)?;
                header[4]
            }
            Codec::H265 => {
                let mut rest = header.get(23..)?;
                for _ in 0..header[22] {
                    let (&[_, high, low], after) = rest.split_first_chunk::<3>()?;
                    rest = after;
                    take_units(&mut rest, usize::from(high) << 8 | usize::from(low), &mut units)?;
                }
                header[21]
            }
        };
        Some(Record { length_bytes: usize::from(length_bytes & 3) + 1, units })
    }
}

fn take_units<'a>(bytes: &mut &'a [u8], count: usize, units: &mut Vec<&'a [u8]>) -> Option<()> {
    for _ in 0..count {
        let (&length, rest) = bytes.split_first_chunk::<2>()?;
        let (unit, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        units.push(unit);
        *bytes = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits as a parameter set has them.
    #[derive(Default)]
    struct Bits(Vec<bool>);

    impl Bits {
        fn number(mut self, value: u32, width: u32) -> Self {
            self.0.extend((0..width).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        /// An unsigned number in Exponential-Golomb code.
        fn coded(self, value: u32) -> Self {
            let width = (value + 1).ilog2();
            self.number(0, width).number(value + 1, width + 1)
        }

        fn flags(self, flags: &[bool]) -> Self {
            flags.iter().fold(self, |bits, &flag| bits.number(flag.into(), 1))
        }

        /// Behind a header, closed by a set bit.
        fn unit(mut self, header: &[u8]) -> Vec<u8> {
            self.0.push(true);
            let bytes = self.0.chunks(8).map(|bits| {
                bits.iter().enumerate().fold(0, |byte, (place, &bit)| byte | u8::from(bit) << (7 - place))
            });
            header.iter().copied().chain(bytes).collect()
        }
    }

    /// A parameter set of H.264's baseline profile, 64 by 64 pixels.
    fn h264_set(has_gaps: bool, is_progressive: bool, has_reorder_depth: bool) -> Vec<u8> {
        let bits = Bits::default().number(66, 8).number(0, 8).number(30, 8);
        let bits = bits.coded(0).coded(0).coded(2).coded(2).flags(&[has_gaps]).coded(3).coded(3);
        let bits = bits.flags(&[is_progressive]);
        let bits = if is_progressive { bits } else { bits.flags(&[false]) };
        // Direct inference, no cropping; usage information, of which only the last part may be there.
        let bits = bits.flags(&[true, false, true]).flags(&[false; 8]).flags(&[has_reorder_depth]);
        let bits = if has_reorder_depth {
            bits.flags(&[true]).coded(0).coded(0).coded(10).coded(10).coded(0).coded(2)
        } else {
            bits
        };
        bits.unit(&[0x67])
    }

    /// A slice of the parameter set above.
    fn slice(header: u8, frame_num: u32) -> Vec<u8> {
        Bits::default().coded(0).coded(5).coded(0).number(frame_num, 4).unit(&[header])
    }

    fn h265_set(layers_beside_the_first: u32) -> Vec<u8> {
        Bits::default().number(0, 4).number(layers_beside_the_first, 3).flags(&[true]).unit(&[33 << 1, 1])
    }

    fn by_start_code(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&START_CODE, *unit].concat()).collect()
    }

    fn by_length(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&(unit.len() as u32).to_be_bytes(), *unit].concat()).collect()
    }

    fn is_unreferenced(codec: &str, set: &[u8], units: &[&[u8]]) -> bool {
        References::new(codec, &by_start_code(&[set])).is_unreferenced(&by_start_code(units))
    }

    #[test]
    fn h264_tells_by_two_bits_of_each_slice() {
        let set = h264_set(false, true, true);
        let is_unreferenced = |units: &[&[u8]]| is_unreferenced("h264", &set, units);
        assert!(is_unreferenced(&[&slice(1, 1)]));
        assert!(is_unreferenced(&[&[0x09, 0xf0], &slice(1, 1), &slice(1, 1)]));
        assert!(!is_unreferenced(&[&slice(0x41, 1)]));
        assert!(!is_unreferenced(&[&slice(1, 1), &slice(0x41, 1)]));
        assert!(!is_unreferenced(&[&slice(0x65, 0)]));
        assert!(!is_unreferenced(&[&[0x09, 0xf0]]), "no picture");
        assert!(!is_unreferenced(&[&[1, 7]]), "cut off");
        // Scalable and multi-view streams.
        assert!(!is_unreferenced(&[&[0x0e, 0, 0, 0], &slice(1, 1)]));
    }

    #[test]
    fn numbers_of_h264_frames_tell_what_is_missing() {
        let trusts = |slices: &[(u8, u32)]| {
            let mut references = References::new("h264", &by_start_code(&[&h264_set(false, true, true)]));
            for &(header, frame_num) in slices {
                references.is_unreferenced(&by_start_code(&[&slice(header, frame_num)]));
            }
            !references.is_distrusted()
        };
        let (refreshing, referenced, unreferenced) = (0x65, 0x41, 0x01);
        assert!(trusts(&[
            (refreshing, 0),
            (referenced, 1),
            (unreferenced, 2),
            (unreferenced, 2),
            (referenced, 2)
        ]));
        assert!(
            trusts(&[(referenced, 14), (referenced, 15), (referenced, 0), (unreferenced, 1)]),
            "they come round"
        );
        assert!(trusts(&[(referenced, 9), (refreshing, 0), (unreferenced, 1)]));
        assert!(trusts(&[(unreferenced, 9)]), "nothing precedes");
        assert!(!trusts(&[(refreshing, 0), (referenced, 2)]));
        assert!(!trusts(&[(referenced, 5), (unreferenced, 6), (unreferenced, 7)]), "6 is missing");
        assert!(!trusts(&[(referenced, 5), (referenced, 4)]));

        let mut references = References::new("h264", &by_start_code(&[&h264_set(false, true, true)]));
        references.is_unreferenced(&by_start_code(&[&slice(referenced, 5)]));
        references.forget_position();
        assert!(references.is_unreferenced(&by_start_code(&[&slice(unreferenced, 9)])), "after a seek");
    }

    #[test]
    fn h264_streams_that_leave_a_doubt_are_needed_whole() {
        for (set, is_safe) in [
            (h264_set(false, true, true), true),
            (h264_set(true, true, true), false),
            (h264_set(false, false, true), false),
            (h264_set(false, true, false), false),
            (vec![0x67, 66, 0], false),
        ] {
            assert_eq!(is_unreferenced("h264", &set, &[&slice(1, 1)]), is_safe, "{set:02x?}");
        }
        let mut references = References::new("h264", &[]);
        assert!(!references.is_unreferenced(&by_start_code(&[&slice(1, 1)])), "no parameter set yet");
        let (safe, doubtful) = (h264_set(false, true, true), h264_set(true, true, true));
        assert!(!references.is_unreferenced(&by_start_code(&[&safe, &slice(0x65, 0)])));
        assert!(references.is_unreferenced(&by_start_code(&[&slice(1, 1)])));
        assert!(!references.is_unreferenced(&by_start_code(&[&doubtful, &slice(0x65, 0)])));
        assert!(!references.is_unreferenced(&by_start_code(&[&slice(1, 1)])), "since the second set");
    }

    #[test]
    fn h265_tells_by_the_type_of_each_slice() {
        let set = h265_set(0);
        let slice = |kind: u8| [kind << 1, 1, 0x80];
        for kind in [0, 2, 4, 6, 8] {
            assert!(is_unreferenced("hevc", &set, &[&slice(kind)]), "{kind}");
            assert!(!is_unreferenced("hevc", &set, &[&slice(kind + 1)]), "{}", kind + 1);
        }
        assert!(!is_unreferenced("hevc", &set, &[&[0, 0b1001, 0x80]]), "of another layer");
        // With a second temporal layer, numbered 2 in its units.
        assert!(
            !is_unreferenced("hevc", &h265_set(1), &[&slice(0)]),
            "of the first, to which the second may refer"
        );
        assert!(is_unreferenced("hevc", &h265_set(1), &[&[0, 2, 0x80]]));
        assert!(!is_unreferenced("hevc", &h265_set(0), &[&[0, 2, 0x80]]), "a layer that should not be there");
        let mut references = References::new("hevc", &by_start_code(&[&h265_set(0)]));
        references.is_unreferenced(&by_start_code(&[&h265_set(1)]));
        assert!(
            !references.is_unreferenced(&by_start_code(&[&[0, 2, 0x80]])),
            "two sets, of which either may be in use"
        );
    }

    #[test]
    fn messages_that_outlive_their_picture_are_needed() {
        let set = h264_set(false, true, true);
        let with_message =
            |kind: u8| is_unreferenced("h264", &set, &[&[6, kind, 2, 9, 9, 0x80], &slice(1, 1)]);
        assert!(with_message(1));
        assert!(with_message(5));
        // Film grain, and the transfer characteristic.
        assert!(!with_message(19));
        assert!(!with_message(147));
        assert!(!is_unreferenced("h264", &set, &[&[6, 1, 200, 9], &slice(1, 1)]), "cut off");
    }

    #[test]
    fn units_with_lengths_have_to_add_up() {
        let set = h264_set(false, true, true);
        let mut header = vec![1, 66, 0, 30, 0xff, 0xe1, 0, set.len() as u8];
        header.extend(&set);
        let mut references = References::new("h264", &header);
        let sample = by_length(&[&[0x09, 0xf0], &slice(1, 1)]);
        assert!(references.is_unreferenced(&sample));
        assert!(!references.is_unreferenced(&sample[..sample.len() - 1]));
        assert!(!references.is_unreferenced(&[&sample[..], &[0]].concat()));
        assert!(!references.is_unreferenced(&by_start_code(&[&slice(1, 1)])));
    }

    #[test]
    fn other_codecs_tell_nothing() {
        assert!(!References::new("mpeg4", &[]).is_unreferenced(&by_start_code(&[&slice(1, 1)])));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_upset_it(
            codec in 0..2usize,
            header in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
            samples in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60), 0..6),
            has_version in proptest::prelude::any::<bool>(),
        ) {
            let header = if has_version { [&[1][..], &header].concat() } else { header };
            let mut references = References::new(["h264", "hevc"][codec], &header);
            for sample in samples {
                references.is_unreferenced(&sample);
            }
        }
    }
}
