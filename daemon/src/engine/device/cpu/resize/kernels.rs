//! The steps of a resizing, each for one row, with AVX2. The arithmetic is libswscale's, to the last bit:
//! the matrices and shifts are those that it uses from red, green and blue to the same, which is BT.709 of
//! limited range.
//!
//! Other processors have no such steps here: written for any processor, they take about twice as long as
//! libswscale, which has vector code for some of them.
//!
//! What does not live here: which rows are needed; see [`Resizer`](super::Resizer). What the steps compute,
//! without vectors, is in its tests.

pub use imp::Kernels;

use super::Taps;

/// Weights of red, green and blue in 1/32768.
pub const Y_OF_RGB: [i16; 3] = [5983, 20127, 2032];
/// As above.
pub const U_OF_RGB: [i16; 3] = [-3298, -11094, 14392];
/// As above.
pub const V_OF_RGB: [i16; 3] = [14392, -13073, -1320];
/// Black is 16, with six bits more; and half of what the shift leaves away.
pub const Y_ADDEND: i32 = (32 << 14) + (1 << 8);
/// Grey is 128, as above.
pub const UV_ADDEND: i32 = (256 << 14) + (1 << 8);
/// What leaves six bits more than bytes have. One bit more goes where two pixels are added up.
pub const CONVERTED_SHIFT: i32 = 9;
/// What leaves seven bits more than bytes have of weighted columns.
pub const COLUMNS_SHIFT: i32 = 13;
/// What leaves nine bits more than bytes have of weighted rows.
pub const ROWS_SHIFT: i32 = 10;
/// Grey in weighted rows.
pub const ROWS_GREY: i32 = 128 << 19;
/// Black in weighted and shifted rows.
pub const Y_BLACK: i32 = 16 << 9;
/// Weights of luma and chroma in red, green and blue in 1/8192.
pub const RGB_OF_Y: i32 = 9539;
/// As above.
pub const R_OF_V: i32 = 14686;
/// As above.
pub const G_OF_V: i32 = -4366;
/// As above.
pub const G_OF_U: i32 = -1747;
/// As above.
pub const B_OF_U: i32 = 17305;
/// What leaves bytes.
pub const RGB_SHIFT: i32 = 22;

/// Values that are made at a time.
const GROUP: usize = 8;

/// [`Taps`] for columns as the vectors want them: positions and weights in the order in which they are used.
pub struct Woven {
    firsts: Vec<[u32; GROUP]>,
    /// For each group of values their weights, [`Woven::weight_count`] for each. Where that is more than
    /// four: eight of the first value, eight of the second, the next eight of the first, and so on; then
    /// those of the third and fourth.
    weights: Vec<i16>,
    /// Four, or a multiple of eight; what a value has less is made up by zeros.
    weight_count: usize,
    reach: usize,
}

impl Woven {
    /// # Panics
    /// Where the values are not whole groups.
    pub fn new(taps: &Taps) -> Self {
        let (groups, rest) = taps.lines().as_chunks::<GROUP>();
        assert!(rest.is_empty(), "a row is no whole number of vectors");
        let longest = taps.weight_count_max();
        let weight_count = if longest <= 4 { 4 } else { longest.next_multiple_of(8) };
        let padded = |weights: &Vec<i16>| [&weights[..], &vec![0; weight_count - weights.len()]].concat();
        let woven = |[(_, first), (_, second)]: &[(usize, Vec<i16>); 2]| {
            let (first, second) = (padded(first), padded(second));
            let run = weight_count.min(8);
            let runs = first.chunks_exact(run).zip(second.chunks_exact(run));
            runs.flat_map(|(first, second)| [first, second].concat()).collect::<Vec<i16>>()
        };
        Woven {
            firsts: groups.iter().map(|group| group.each_ref().map(|(first, _)| *first as u32)).collect(),
            weights: taps.lines().as_chunks::<2>().0.iter().flat_map(woven).collect(),
            weight_count,
            reach: taps.lines().iter().map(|(first, _)| first + weight_count).max().unwrap_or_default(),
        }
    }

    /// How long a row must be for all weights to have a value, the zeros among them included.
    pub fn reach(&self) -> usize {
        self.reach
    }
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::x86_64::*;

    use super::super::Converted;
    use super::*;

    /// The steps. Whoever has them is on a processor with AVX2.
    #[derive(Clone, Copy)]
    pub struct Kernels(());

    impl Kernels {
        /// None on a processor that lacks the instructions.
        pub fn new() -> Option<Self> {
            std::is_x86_feature_detected!("avx2").then_some(Kernels(()))
        }

        /// A row of red, green and blue as luma and chroma, the latter of pairs of pixels if `is_halved`.
        pub fn convert(self, row: &[u8], is_halved: bool, converted: &mut Converted) {
            // SAFETY: the processor has AVX2, or there would be no `self`.
            unsafe {
                if is_halved { convert::<true>(row, converted) } else { convert::<false>(row, converted) }
            }
        }

        /// The columns of a row.
        pub fn scale(self, row: &[i16], columns: &Woven, target: &mut [i16]) {
            // SAFETY: as above.
            unsafe {
                match columns.weight_count {
                    4 => scale_by_4(row, columns, target),
                    8 => scale_by_8::<1>(row, columns, target),
                    16 => scale_by_8::<2>(row, columns, target),
                    24 => scale_by_8::<3>(row, columns, target),
                    _ => scale_by_8::<0>(row, columns, target),
                }
            }
        }

        /// Red, green and blue of the rows at `offsets` in `ring`.
        pub fn blend(
            self,
            ring: &[i16],
            offsets: &[usize],
            weights: &[i16],
            is_nearest: bool,
            target: &mut [u8],
        ) {
            // SAFETY: as above.
            unsafe { blend(ring, offsets, weights, is_nearest, target) }
        }
    }

    /// For `pshufb`: zero.
    const ZERO: i8 = -1;

    /// Pixels whose red and green, and whose blue, stand in thirty-two bits each.
    #[derive(Clone, Copy)]
    struct Pixels {
        red_green: __m256i,
        blue: __m256i,
    }

    impl Pixels {
        /// Weighted by a matrix's row.
        #[target_feature(enable = "avx2")]
        fn weighted<const SHIFT: i32>(self, weights: [i16; 3], addend: i32) -> __m256i {
            let [red, green, blue] = weights;
            let red_green = _mm256_madd_epi16(self.red_green, pair(red, green));
            let sum = _mm256_add_epi32(red_green, _mm256_madd_epi16(self.blue, pair(blue, 0)));
            _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(sum, _mm256_set1_epi32(addend)))
        }

        /// Each pixel and its right neighbour added up.
        #[target_feature(enable = "avx2")]
        fn halved(self, other: Self) -> Self {
            let halved = |first, second| {
                let (first, second) = (_mm256_castsi256_ps(first), _mm256_castsi256_ps(second));
                let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, second));
                let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, second));
                _mm256_add_epi16(even, odd)
            };
            Pixels { red_green: halved(self.red_green, other.red_green), blue: halved(self.blue, other.blue) }
        }
    }

    /// # Panics
    /// Where the row is not made up of 16 pixels and 16 pixels, or there is no room for what is made of it.
    #[target_feature(enable = "avx2")]
    fn convert<const IS_HALVED: bool>(row: &[u8], converted: &mut Converted) {
        // Sixteen pixels are read as 4, 4, 4 and 4, the last ones with those before them, so as not to read
        // beyond the row.
        let red_green =
            _mm_setr_epi8(0, ZERO, 1, ZERO, 3, ZERO, 4, ZERO, 6, ZERO, 7, ZERO, 9, ZERO, 10, ZERO);
        let blue = _mm_setr_epi8(
            2, ZERO, ZERO, ZERO, 5, ZERO, ZERO, ZERO, 8, ZERO, ZERO, ZERO, 11, ZERO, ZERO, ZERO,
        );
        let behind = |mask: __m128i| {
            // What is zero stays so: the highest bit is what counts.
            _mm_or_si128(_mm_add_epi8(mask, _mm_set1_epi8(4)), _mm_and_si128(mask, _mm_set1_epi8(-128)))
        };
        let (blocks, rest) = row.as_chunks::<48>();
        let chroma_values = if IS_HALVED { 8 } else { 16 };
        let Converted { y, u, v } = converted;
        assert!(rest.is_empty() && y.len() >= 16 * blocks.len(), "there is no room for the luma");
        assert!(u.len().min(v.len()) >= chroma_values * blocks.len(), "there is no room for the chroma");
        let luma = y.as_chunks_mut::<16>().0.iter_mut();
        let chroma = u.chunks_exact_mut(chroma_values).zip(v.chunks_exact_mut(chroma_values));
        for ((block, y), (u, v)) in blocks.iter().zip(luma).zip(chroma) {
            let pixels = |first: usize, second: usize, is_last: bool| {
                let read = _mm256_set_m128i(load_bytes(block, second), load_bytes(block, first));
                let mask = |mask| _mm256_set_m128i(if is_last { behind(mask) } else { mask }, mask);
                Pixels {
                    red_green: _mm256_shuffle_epi8(read, mask(red_green)),
                    blue: _mm256_shuffle_epi8(read, mask(blue)),
                }
            };
            // Packing takes four values from the first, four from the second, and so on in the upper halves.
            let (first, second) = (pixels(0, 24, false), pixels(12, 32, true));
            let whole = |weights, addend| {
                let first = first.weighted::<CONVERTED_SHIFT>(weights, addend);
                _mm256_packs_epi32(first, second.weighted::<CONVERTED_SHIFT>(weights, addend))
            };
            store_16(whole(Y_OF_RGB, Y_ADDEND), y);
            if IS_HALVED {
                let pairs = first.halved(second);
                let halved = |weights| pairs.weighted::<{ CONVERTED_SHIFT + 1 }>(weights, 2 * UV_ADDEND);
                let packed = _mm256_packs_epi32(halved(U_OF_RGB), halved(V_OF_RGB));
                let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                store_8(_mm256_castsi256_si128(sorted), u);
                store_8(_mm256_extracti128_si256::<1>(sorted), v);
            } else {
                store_16(whole(U_OF_RGB, UV_ADDEND), u);
                store_16(whole(V_OF_RGB, UV_ADDEND), v);
            }
        }
    }

    /// # Panics
    /// Where the row is shorter than the weights reach, or the target no whole number of groups.
    #[target_feature(enable = "avx2")]
    fn scale_by_4(row: &[i16], columns: &Woven, target: &mut [i16]) {
        assert!(columns.reach <= row.len(), "the row is shorter than what is to be made of it");
        let (targets, rest) = target.as_chunks_mut::<GROUP>();
        assert!(rest.is_empty() && targets.len() == columns.firsts.len(), "the target has another width");
        let weights = columns.weights.as_chunks::<{ 4 * GROUP }>().0;
        for ((firsts, weights), target) in columns.firsts.iter().zip(weights).zip(targets) {
            let one = |value: usize| {
                // SAFETY: four values follow there, since `reach` lies within the row.
                unsafe { _mm_loadl_epi64(row.as_ptr().add(firsts[value] as usize).cast()) }
            };
            let two = |value: usize| _mm_unpacklo_epi64(one(value), one(value + 1));
            let four = |value: usize| {
                let values = _mm256_set_m128i(two(value + 2), two(value));
                _mm256_madd_epi16(values, load_16(weights, 4 * value))
            };
            let (low, high) = halves(_mm256_hadd_epi32(four(0), four(4)));
            store_8(_mm_unpacklo_epi32(low, high), target);
        }
    }

    /// By so many times eight weights, or if that is zero, by as many as there are.
    ///
    /// # Panics
    /// As above.
    #[target_feature(enable = "avx2")]
    fn scale_by_8<const TIMES: usize>(row: &[i16], columns: &Woven, target: &mut [i16]) {
        assert!(columns.reach <= row.len(), "the row is shorter than what is to be made of it");
        let (targets, rest) = target.as_chunks_mut::<GROUP>();
        assert!(rest.is_empty() && targets.len() == columns.firsts.len(), "the target has another width");
        let times = if TIMES == 0 { columns.weight_count / 8 } else { TIMES };
        assert_eq!(8 * times, columns.weight_count, "there are more or fewer weights");
        let weights = columns.weights.chunks_exact(8 * times * GROUP);
        for ((firsts, weights), target) in columns.firsts.iter().zip(weights).zip(targets) {
            let one = |value: usize, time: usize| {
                // SAFETY: `weight_count` values follow there, since `reach` lies within the row.
                unsafe { _mm_loadu_si128(row.as_ptr().add(firsts[value] as usize + 8 * time).cast()) }
            };
            let two = |value: usize| {
                let mut sum = _mm256_setzero_si256();
                for time in 0..times {
                    let values = _mm256_set_m128i(one(value + 1, time), one(value, time));
                    // SAFETY: a group has eight times as many weights, of which two values' are read.
                    let weights = unsafe {
                        _mm256_loadu_si256(weights.as_ptr().add(8 * times * value + 16 * time).cast())
                    };
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(values, weights));
                }
                sum
            };
            let first = _mm256_hadd_epi32(two(0), two(2));
            let (even, odd) = halves(_mm256_hadd_epi32(first, _mm256_hadd_epi32(two(4), two(6))));
            store_8(_mm_unpacklo_epi16(even, odd), target);
        }
    }

    /// Both halves of sums of columns as values, each in the lower half.
    #[target_feature(enable = "avx2")]
    fn halves(sums: __m256i) -> (__m128i, __m128i) {
        let shifted = _mm256_srai_epi32::<COLUMNS_SHIFT>(sums);
        let packed = _mm256_packs_epi32(shifted, shifted);
        (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed))
    }

    /// # Panics
    /// Where the target is not made up of 16 pixels and 16 pixels, or the ring has no such rows.
    #[target_feature(enable = "avx2")]
    fn blend(ring: &[i16], offsets: &[usize], weights: &[i16], is_nearest: bool, target: &mut [u8]) {
        let width = target.len() / 3;
        let (blocks, rest) = target.as_chunks_mut::<48>();
        assert!(rest.is_empty() && offsets.len() == weights.len(), "a row is no whole number of vectors");
        let addend = if is_nearest { 1 << (ROWS_SHIFT - 1) } else { 0 };
        let luma = _mm256_set1_epi32(addend);
        let chroma = _mm256_set1_epi32(addend - ROWS_GREY);
        for (block, target) in blocks.iter_mut().enumerate() {
            let mut sums = [[luma; 2], [chroma; 2], [chroma; 2]];
            for (offsets, weights) in offsets.chunks(2).zip(weights.chunks(2)) {
                let (first, second, weights) = match (offsets, weights) {
                    (&[first, second], &[weight, other]) => (first, second, pair(weight, other)),
                    _ => (offsets[0], offsets[0], pair(weights[0], 0)),
                };
                for (plane, [low, high]) in sums.iter_mut().enumerate() {
                    let at = plane * width + 16 * block;
                    let (first, second) = (load_16(ring, first + at), load_16(ring, second + at));
                    let (lows, highs) =
                        (_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second));
                    *low = _mm256_add_epi32(*low, _mm256_madd_epi16(lows, weights));
                    *high = _mm256_add_epi32(*high, _mm256_madd_epi16(highs, weights));
                }
            }
            let [[y_low, y_high], [u_low, u_high], [v_low, v_high]] = sums;
            let (low, high) = (rgb(y_low, u_low, v_low), rgb(y_high, u_high, v_high));
            let [red, green, blue] =
                [0, 1, 2].map(|color: usize| _mm256_packs_epi32(low[color], high[color]));
            store_rgb(_mm256_packus_epi16(red, green), _mm256_packus_epi16(blue, blue), target);
        }
    }

    /// Red, green and blue of sums of rows; they may be beyond what a byte holds.
    #[target_feature(enable = "avx2")]
    fn rgb(y: __m256i, u: __m256i, v: __m256i) -> [__m256i; 3] {
        let times = |value, factor| _mm256_mullo_epi32(value, _mm256_set1_epi32(factor));
        let [y, u, v] = [y, u, v].map(|sum| _mm256_srai_epi32::<ROWS_SHIFT>(sum));
        let addend = (1 << (RGB_SHIFT - 1)) - Y_BLACK * RGB_OF_Y;
        let y = _mm256_add_epi32(times(y, RGB_OF_Y), _mm256_set1_epi32(addend));
        let red = _mm256_add_epi32(y, times(v, R_OF_V));
        let green = _mm256_add_epi32(y, _mm256_add_epi32(times(v, G_OF_V), times(u, G_OF_U)));
        let blue = _mm256_add_epi32(y, times(u, B_OF_U));
        [red, green, blue].map(|value| _mm256_srai_epi32::<RGB_SHIFT>(value))
    }

    /// Sixteen pixels. In each half there are eight bytes of red and eight of green, and eight of blue.
    #[target_feature(enable = "avx2")]
    fn store_rgb(red_green: __m256i, blue: __m256i, target: &mut [u8; 48]) {
        let twice = |mask: __m128i| _mm256_set_m128i(mask, mask);
        let red_green_low = _mm_setr_epi8(0, 8, ZERO, 1, 9, ZERO, 2, 10, ZERO, 3, 11, ZERO, 4, 12, ZERO, 5);
        let blue_low =
            _mm_setr_epi8(ZERO, ZERO, 0, ZERO, ZERO, 1, ZERO, ZERO, 2, ZERO, ZERO, 3, ZERO, ZERO, 4, ZERO);
        let red_green_high =
            _mm_setr_epi8(13, ZERO, 6, 14, ZERO, 7, 15, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO);
        let blue_high = _mm_setr_epi8(
            ZERO, 5, ZERO, ZERO, 6, ZERO, ZERO, 7, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO,
        );
        let mixed = |red_green_mask, blue_mask| {
            let red_green = _mm256_shuffle_epi8(red_green, twice(red_green_mask));
            _mm256_or_si256(red_green, _mm256_shuffle_epi8(blue, twice(blue_mask)))
        };
        let (low, high) = (mixed(red_green_low, blue_low), mixed(red_green_high, blue_high));
        let at = target.as_mut_ptr();
        // SAFETY: bytes 0 to 15 of 48.
        unsafe { _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(low)) };
        // SAFETY: bytes 16 to 23.
        unsafe { _mm_storel_epi64(at.add(16).cast(), _mm256_castsi256_si128(high)) };
        // SAFETY: bytes 24 to 39.
        unsafe { _mm_storeu_si128(at.add(24).cast(), _mm256_extracti128_si256::<1>(low)) };
        // SAFETY: bytes 40 to 47.
        unsafe { _mm_storel_epi64(at.add(40).cast(), _mm256_extracti128_si256::<1>(high)) };
    }

    /// Two weights in thirty-two bits, everywhere.
    #[target_feature(enable = "avx2")]
    fn pair(low: i16, high: i16) -> __m256i {
        _mm256_set1_epi32(i32::from(low) & 0xffff | i32::from(high) << 16)
    }

    #[target_feature(enable = "avx2")]
    fn load_bytes(bytes: &[u8; 48], at: usize) -> __m128i {
        let bytes = &bytes[at..at + 16];
        // SAFETY: there are sixteen bytes.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn load_16(values: &[i16], at: usize) -> __m256i {
        let values = &values[at..at + 16];
        // SAFETY: there are sixteen values.
        unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store_8(values: __m128i, target: &mut [i16]) {
        let target = &mut target[..8];
        // SAFETY: there is room for eight values.
        unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), values) };
    }

    #[target_feature(enable = "avx2")]
    fn store_16(values: __m256i, target: &mut [i16]) {
        let target = &mut target[..16];
        // SAFETY: there is room for sixteen values.
        unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), values) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use super::super::Converted;
    use super::Woven;

    /// The steps. There is no such value on this processor.
    #[derive(Clone, Copy)]
    pub enum Kernels {}

    impl Kernels {
        pub fn new() -> Option<Self> {
            None
        }

        pub fn convert(self, _row: &[u8], _is_halved: bool, _converted: &mut Converted) {
            match self {}
        }

        pub fn scale(self, _row: &[i16], _columns: &Woven, _target: &mut [i16]) {
            match self {}
        }

        pub fn blend(self, _: &[i16], _: &[usize], _: &[i16], _: bool, _: &mut [u8]) {
            match self {}
        }
    }
}
