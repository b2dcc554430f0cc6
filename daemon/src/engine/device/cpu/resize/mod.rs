//! [`Resizer`]: pictures of red, green and blue in another size, with the values that libswscale's bilinear
//! scaling has, in a fraction of its time.
//!
//! libswscale goes from red, green and blue to luma and chroma, scales rows, then columns, and goes back;
//! each step rounds, so that each step has to be done as it does it. What it does in scalar code is done
//! with vectors here.
//!
//! - [`taps`]: which values make a scaled one
//! - `kernels`: the steps, each for a whole row, with AVX2
//!
//! What does not live here: where the weights come from, and whether results are libswscale's; see
//! `resizers`.

mod kernels;
mod taps;

use kernels::{Kernels, Woven};
pub use taps::{Impulses, Taps, transposed};

/// Rows and widths are handled by so many pixels at once. Wherever scaling is direct, widths are multiples
/// of 32.
const WIDTH_MULTIPLE: usize = 16;

/// What a value of a row weighs that counts alone.
pub const COLUMN_UNIT: u16 = 1 << 14;

/// What a row weighs that counts alone.
pub const ROW_UNIT: u16 = 1 << 12;

/// From what size to what size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Columns and rows of the source.
    pub source: (usize, usize),
    /// Columns and rows of the result.
    pub target: (usize, usize),
}

impl Sizes {
    /// Where the result is at most half as wide, colour is taken from pairs of pixels.
    pub fn is_chroma_halved(&self) -> bool {
        self.target.0 <= self.source.0 / 2
    }

    /// The columns that chroma is scaled from.
    pub fn chroma_width(&self) -> usize {
        if self.is_chroma_halved() { self.source.0 / 2 } else { self.source.0 }
    }
}

/// How pictures are resized.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From what to what.
    pub sizes: Sizes,
    /// Columns of luma, in parts of [`COLUMN_UNIT`].
    pub luma: Taps,
    /// Columns of chroma, in parts of [`COLUMN_UNIT`].
    pub chroma: Taps,
    /// Rows, in parts of [`ROW_UNIT`].
    pub rows: Taps,
    /// Sums of rows are rounded to the nearest, else down: libswscale does that where it takes two rows at
    /// a time.
    pub is_nearest: bool,
}

/// A resizing that is prepared.
pub struct Resizer {
    kernels: Kernels,
    sizes: Sizes,
    luma: Woven,
    chroma: Woven,
    rows: Taps,
    is_nearest: bool,
    /// The row of the source that is being scaled.
    converted: Converted,
    /// The last rows that were scaled, as many as make one of the result: luma, then both kinds of chroma.
    /// A row's place is its number's remainder. None is needed again behind them, since each row of the
    /// result begins no further up than the one before.
    ring: Vec<i16>,
    ring_rows: usize,
    /// Where in the ring the rows are that make the next one of the result.
    offsets: Vec<usize>,
}

/// One row of the source as luma and chroma, with six bits more than it had; beyond it whatever there is
/// room for.
struct Converted {
    y: Vec<i16>,
    u: Vec<i16>,
    v: Vec<i16>,
}

impl Resizer {
    /// None where the processor lacks the instructions, or the sizes are none that this can be done for.
    pub fn new(plan: Plan) -> Option<Self> {
        let Plan { sizes, luma, chroma, rows, is_nearest } = plan;
        let Sizes { source, target } = sizes;
        let is_whole = |width: usize| width > 0 && width.is_multiple_of(WIDTH_MULTIPLE);
        let is_fitting = |taps: &Taps, from, to| taps.lines().len() == to && taps.reach() <= from;
        let is_possible = is_whole(source.0)
            && is_whole(target.0)
            && is_fitting(&luma, source.0, target.0)
            && is_fitting(&chroma, sizes.chroma_width(), target.0)
            && is_fitting(&rows, source.1, target.1)
            && rows.lines().is_sorted_by_key(|(first, _)| *first);
        if !is_possible {
            return None;
        }
        let kernels = Kernels::new()?;
        let (luma, chroma) = (Woven::new(&luma), Woven::new(&chroma));
        let line = |width: usize, woven: &Woven| vec![0; width.max(woven.reach())];
        let ring_rows = rows.weight_count_max();
        Some(Resizer {
            kernels,
            sizes,
            converted: Converted {
                y: line(source.0, &luma),
                u: line(sizes.chroma_width(), &chroma),
                v: line(sizes.chroma_width(), &chroma),
            },
            luma,
            chroma,
            is_nearest,
            ring: vec![0; ring_rows * 3 * target.0],
            ring_rows,
            offsets: Vec::with_capacity(ring_rows),
            rows,
        })
    }

    /// Resizes the picture whose rows `source` knows by their numbers; rows of the result follow each other.
    ///
    /// # Panics
    /// Where the source's rows or the destination have another size than this was made for.
    pub fn resize<'a>(&mut self, source: impl Fn(usize) -> &'a [u8], destination: &mut [u8]) {
        let Resizer { ref rows, ring_rows, ref mut offsets, .. } = *self;
        let (width, height) = self.sizes.target;
        let row_values = 3 * width;
        assert_eq!(destination.len(), row_values * height, "the destination has another size");
        let mut scaled_end = 0;
        for ((first, weights), target) in rows.lines().iter().zip(destination.chunks_exact_mut(row_values)) {
            let needed = *first..first + weights.len();
            for row in scaled_end.max(needed.start)..needed.end {
                let row_source = source(row);
                assert_eq!(row_source.len(), 3 * self.sizes.source.0, "the source has another width");
                self.kernels.convert(row_source, self.sizes.is_chroma_halved(), &mut self.converted);
                let place = &mut self.ring[row % ring_rows * row_values..][..row_values];
                let (y, chroma) = place.split_at_mut(width);
                let (u, v) = chroma.split_at_mut(width);
                self.kernels.scale(&self.converted.y, &self.luma, y);
                self.kernels.scale(&self.converted.u, &self.chroma, u);
                self.kernels.scale(&self.converted.v, &self.chroma, v);
            }
            scaled_end = scaled_end.max(needed.end);
            offsets.clear();
            offsets.extend(needed.map(|row| row % ring_rows * row_values));
            self.kernels.blend(&self.ring, offsets, weights, self.is_nearest, target);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::kernels::*;
    use super::*;

    /// What is to be computed, value by value.
    fn slow(plan: &Plan, picture: &[u8]) -> Vec<u8> {
        let Sizes { source, target } = plan.sizes;
        let pixel = |x: usize, y: usize, color: usize| i32::from(picture[3 * (y * source.0 + x) + color]);
        let weighted = |matrix: [i16; 3], pixel: &dyn Fn(usize) -> i32| -> i32 {
            (0..3).map(|color| i32::from(matrix[color]) * pixel(color)).sum()
        };
        let luma = |x, y| (weighted(Y_OF_RGB, &|color| pixel(x, y, color)) + Y_ADDEND) >> CONVERTED_SHIFT;
        let chroma = |matrix, x, y| {
            if plan.sizes.is_chroma_halved() {
                let two = |color| pixel(2 * x, y, color) + pixel(2 * x + 1, y, color);
                (weighted(matrix, &two) + 2 * UV_ADDEND) >> (CONVERTED_SHIFT + 1)
            } else {
                (weighted(matrix, &|color| pixel(x, y, color)) + UV_ADDEND) >> CONVERTED_SHIFT
            }
        };
        let sum = |(first, weights): &(usize, Vec<i16>), value: &dyn Fn(usize) -> i32| -> i32 {
            (0..).zip(weights).map(|(at, weight)| value(first + at) * i32::from(*weight)).sum()
        };
        let column = |taps: &Taps, x: usize, value: &dyn Fn(usize) -> i32| {
            (sum(&taps.lines()[x], value) >> COLUMNS_SHIFT).min(i32::from(i16::MAX))
        };
        let addend = if plan.is_nearest { 1 << (ROWS_SHIFT - 1) } else { 0 };
        let mut result = Vec::new();
        for rows in plan.rows.lines() {
            for x in 0..target.0 {
                let y = sum(rows, &|row| column(&plan.luma, x, &|at| luma(at, row)));
                let [u, v] = [U_OF_RGB, V_OF_RGB].map(|matrix| {
                    sum(rows, &|row| column(&plan.chroma, x, &|at| chroma(matrix, at, row))) - ROWS_GREY
                });
                let [y, u, v] = [y, u, v].map(|sum| (sum + addend) >> ROWS_SHIFT);
                let y = (y - Y_BLACK) * RGB_OF_Y + (1 << (RGB_SHIFT - 1));
                let rgb = [y + v * R_OF_V, y + v * G_OF_V + u * G_OF_U, y + u * B_OF_U];
                result.extend(rgb.map(|value| (value >> RGB_SHIFT).clamp(0, 255) as u8));
            }
        }
        result
    }

    /// Weights that add up to the unit, of any number up to `longest`, anywhere in the source.
    fn taps(source: usize, target: usize, longest: usize, unit: u16) -> impl Strategy<Value = Taps> {
        let line = (1..=longest.min(source), any::<prop::sample::Index>());
        let lines = prop::collection::vec(line, target);
        lines.prop_map(move |lines| {
            let line = |(count, first): (usize, prop::sample::Index)| {
                let mut weights = vec![(usize::from(unit) / count) as i16; count];
                weights[0] += (usize::from(unit) % count) as i16;
                (first.index(source - count + 1), weights)
            };
            let mut lines: Vec<_> = lines.into_iter().map(line).collect();
            lines.sort_by_key(|(first, _)| *first);
            Taps::new(lines)
        })
    }

    fn plan() -> impl Strategy<Value = Plan> {
        let size = || (1usize..7, 1usize..20).prop_map(|(width, height)| (16 * width, height));
        let sizes = (size(), size()).prop_map(|(source, target)| Sizes { source, target });
        (sizes, 1usize..40).prop_flat_map(|(sizes, longest)| {
            let Sizes { source, target } = sizes;
            let taps = (
                taps(source.0, target.0, longest, COLUMN_UNIT),
                taps(sizes.chroma_width(), target.0, longest, COLUMN_UNIT),
                taps(source.1, target.1, longest, ROW_UNIT),
                any::<bool>(),
            );
            taps.prop_map(move |(luma, chroma, rows, is_nearest)| Plan {
                sizes,
                luma,
                chroma,
                rows,
                is_nearest,
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn vectors_compute_what_is_to_be_computed(plan in plan(), seed in any::<u64>()) {
            let Sizes { source, target } = plan.sizes;
            let mut state = seed | 1;
            let mut value = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let value = (state >> 40) as u8;
                if seed % 3 == 0 { 255 * (value >> 7) } else { value }
            };
            let picture: Vec<u8> = (0..3 * source.0 * source.1).map(|_| value()).collect();
            let expected = slow(&plan, &picture);
            let row_bytes = 3 * source.0;
            if let Some(mut resizer) = Resizer::new(plan) {
                let mut result = vec![0; 3 * target.0 * target.1];
                for _ in 0..2 {
                    resizer.resize(|row| &picture[row * row_bytes..][..row_bytes], &mut result);
                    prop_assert!(result == expected);
                }
            }
        }
    }

    #[test]
    fn plan_that_does_not_fit_its_sizes_is_none() {
        let same =
            |count: usize, unit: u16| Taps::new((0..count).map(|at| (at, vec![unit as i16])).collect());
        let sizes = Sizes { source: (32, 4), target: (32, 4) };
        let (columns, rows) = (same(32, COLUMN_UNIT), same(4, ROW_UNIT));
        let plan = Plan { sizes, luma: columns.clone(), chroma: columns, rows, is_nearest: true };
        assert_eq!(Resizer::new(plan.clone()).is_some(), Kernels::new().is_some());
        assert!(Resizer::new(Plan { rows: same(5, ROW_UNIT), ..plan.clone() }).is_none());
        assert!(Resizer::new(Plan { chroma: same(16, COLUMN_UNIT), ..plan.clone() }).is_none());
        let beyond = Taps::new((0..32).map(|at| (at + 1, vec![1 << 14])).collect());
        assert!(Resizer::new(Plan { luma: beyond, ..plan.clone() }).is_none());
        let narrow = Sizes { source: (24, 4), target: (24, 4) };
        let (luma, chroma) = (same(24, COLUMN_UNIT), same(24, COLUMN_UNIT));
        assert!(Resizer::new(Plan { sizes: narrow, luma, chroma, ..plan }).is_none());
    }
}
