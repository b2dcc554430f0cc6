//! [`Taps`]: which values make each value of a scaled line, and how much each of them counts. Pure.
//!
//! They are not computed but measured, by what the scaler whose results are wanted makes of single bright
//! values among dark ones. How it comes to its weights (with what rounding, and what it does at the
//! borders) is then its own affair, and may change from one version to the next.
//!
//! What does not live here: sending pictures through that scaler; see `resizers`.

use std::ops::Range;

/// The most values in a picture of impulses: as many as in one of 4K. Beyond it, what a measurement costs is
/// felt, and so rare a size is not worth it.
const IMPULSES_MAX: usize = 4096 * 2160;

/// The scaling of lines of one length to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taps {
    lines: Vec<(usize, Vec<i16>)>,
}

/// A picture that shows all weights at once, row by row: in each row there are impulses so far apart that
/// no two of them meet in one value of the result, in each row elsewhere.
pub struct Impulses {
    /// Columns: the line that is scaled.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// As bright as can be, or dark.
    pub values: Vec<u16>,
}

impl Impulses {
    /// For lines of `source` values that are scaled to `target`. None where such a picture is too large.
    pub fn new(source: usize, target: usize) -> Option<Self> {
        let height = period(source, target);
        if source.max(target).checked_mul(height)? > IMPULSES_MAX {
            return None;
        }
        let row = |phase| (0..source).map(move |at| if at % height == phase { u16::MAX } else { 0 });
        Some(Impulses { width: source, height, values: (0..height).flat_map(row).collect() })
    }

    /// With rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let Impulses { width, height, ref values } = *self;
        Impulses { width: height, height: width, values: transposed(values, width) }
    }
}

/// Rows and columns exchanged.
pub fn transposed(values: &[u16], width: usize) -> Vec<u16> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}

impl Taps {
    /// For each value of the result the first one of the source that counts, and the weights from there on.
    pub fn new(lines: Vec<(usize, Vec<i16>)>) -> Self {
        Taps { lines }
    }

    /// What has made `response` of the [`Impulses`], row by row; `unit` is the weight of a value that
    /// counts alone. None where the weights of a value do not add up to it: then they are not what was
    /// measured.
    pub fn measured(source: usize, target: usize, unit: u16, response: &[u16]) -> Option<Self> {
        let period = period(source, target);
        if response.len() != period * target {
            return None;
        }
        let line = |position| {
            let candidates = candidates(source, target, period, position);
            let weight = |at| weight(response[at % period * target + position], unit);
            let weights: Vec<i16> = candidates.clone().map(weight).collect();
            let sum: i64 = weights.iter().copied().map(i64::from).sum();
            let first = weights.iter().position(|weight| *weight != 0)?;
            let last = weights.iter().rposition(|weight| *weight != 0)?;
            (sum == i64::from(unit)).then(|| (candidates.start + first, weights[first..=last].to_vec()))
        };
        (0..target).map(line).collect::<Option<_>>().map(Taps::new)
    }

    /// For each value of the result the first one of the source that counts, and the weights from there on.
    pub fn lines(&self) -> &[(usize, Vec<i16>)] {
        &self.lines
    }

    /// The most weights that one value has.
    pub fn weight_count_max(&self) -> usize {
        self.lines.iter().map(|(_, weights)| weights.len()).max().unwrap_or_default()
    }

    /// The length of line of which all values are there that count.
    pub fn reach(&self) -> usize {
        self.lines.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or_default()
    }
}

/// How far impulses are apart: further than weights of bilinear scaling reach, which are two steps wide.
fn period(source: usize, target: usize) -> usize {
    (2 * source.div_ceil(target.max(1)) + 6).min(source)
}

/// The values of the source that may count at this position: one of each phase.
fn candidates(source: usize, target: usize, period: usize, position: usize) -> Range<usize> {
    if period == source {
        return 0..source;
    }
    let centre = (2 * position + 1) * source / (2 * target);
    centre.saturating_sub(period / 2)..(centre + period.div_ceil(2)).min(source)
}

/// Sixteen bits show a weight of at most fourteen to a fraction of one.
fn weight(value: u16, unit: u16) -> i16 {
    let whole = u32::from(u16::MAX);
    ((u32::from(value) * u32::from(unit) + whole / 2) / whole) as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a scaler with these weights makes of the impulses.
    fn response(taps: &Taps, impulses: &Impulses, unit: i64) -> Vec<u16> {
        let value = |row: &[u16], (first, weights): &(usize, Vec<i16>)| {
            let products = weights.iter().zip(&row[*first..]);
            let sum: i64 = products.map(|(weight, value)| i64::from(*weight) * i64::from(*value)).sum();
            (sum / unit) as u16
        };
        let rows = impulses.values.chunks_exact(impulses.width);
        rows.flat_map(|row| taps.lines().iter().map(move |line| value(row, line))).collect()
    }

    #[test]
    fn weights_are_measured_as_they_are() {
        let narrow = Taps::new(vec![(0, vec![16383, 1]), (2, vec![8000, 8384]), (5, vec![16384])]);
        let impulses = Impulses::new(6, 3).unwrap();
        assert_eq!(Taps::measured(6, 3, 16384, &response(&narrow, &impulses, 16384)), Some(narrow));
        let line = |position: usize| {
            let first = (4 * position).saturating_sub(2).min(393);
            (first, vec![1, 500, 1000, 1595, 999, 1])
        };
        let wide = Taps::new((0..100).map(line).collect());
        let impulses = Impulses::new(400, 100).unwrap();
        assert_eq!(Taps::measured(400, 100, 4096, &response(&wide, &impulses, 4096)), Some(wide));
    }

    #[test]
    fn weights_that_do_not_add_up_are_none() {
        let taps = Taps::new(vec![(0, vec![16384]), (2, vec![8000, 8383])]);
        let impulses = Impulses::new(4, 2).unwrap();
        assert_eq!(Taps::measured(4, 2, 16384, &response(&taps, &impulses, 16384)), None);
        assert_eq!(Taps::measured(4, 2, 16384, &[]), None);
    }

    #[test]
    fn picture_of_impulses_beyond_all_measure_is_none() {
        assert!(Impulses::new(30_000, 32).is_none());
        assert!(Impulses::new(32, 1 << 30).is_none());
    }

    #[test]
    fn transposed_impulses_stand_in_columns() {
        let Impulses { width, height, values } =
            Impulses { width: 3, height: 2, values: vec![1, 2, 3, 4, 5, 6] }.transposed();
        assert_eq!((width, height, values), (2, 3, vec![1, 4, 2, 5, 3, 6]));
    }
}
