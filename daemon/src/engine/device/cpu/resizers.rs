//! [`Resizers`]: who resizes pictures of which sizes: a [`Resizer`] wherever it is proven to be
//! libswscale's equal, else libswscale.
//!
//! The weights are measured at libswscale. Then both resize the same pictures, and a single byte that
//! differs leaves the sizes to libswscale: so another version of it, or another processor, costs time and
//! never a pixel.
//!
//! What does not live here: the arithmetic; see `resize`.

use std::collections::VecDeque;

use super::resize::{COLUMN_UNIT, Impulses, Plan, ROW_UNIT, Resizer, Sizes, Taps, transposed};
use crate::ffi::{FfmpegError, Picture, PictureFormat, PixelLayout, Scaler, ScalerConfig, scale_gray};

/// Sizes that are remembered. A resizer takes some 30 KB.
const TRIALS_MAX: usize = 64;

/// Pictures that libswscale resizes before anything is measured. A trial takes about as long as so many: where
/// sizes change all the time, it does not take more than they did.
const PICTURES_BEFORE: u32 = 8;

/// The largest pictures that are tried, which is 4K: a trial needs three times as much memory for a moment.
const PIXELS_MAX: usize = 4096 * 2160;

/// Values that have to be equal, if not...
const PROOF_VALUES_MIN: usize = 300_000;

/// ...so many pictures were. A weight that is wrong by its last bit shows in a hundredth of the values that
/// it is part of.
const PROOF_PICTURES_MAX: usize = 24;

/// Resizers that were tried, the most recently used first.
#[derive(Default)]
pub struct Resizers {
    trials: VecDeque<(ScalerConfig, Trial)>,
}

enum Trial {
    /// So many pictures were there.
    Due(u32),
    Passed(Box<Resizer>),
    Failed,
}

impl Resizers {
    /// Who resizes this way. None where libswscale has to do it.
    pub fn resizer(&mut self, config: ScalerConfig) -> Option<&mut Resizer> {
        let trial = self.trial(config);
        if let Trial::Due(count) = trial {
            *count += 1;
            if *count <= PICTURES_BEFORE {
                return None;
            }
            let resizer = proven(config).unwrap_or_else(|error| {
                tracing::debug!(%error, "a size cannot be tried");
                None
            });
            tracing::debug!(?config, is_passed = resizer.is_some(), "libswscale was measured");
            *trial = resizer.map_or(Trial::Failed, |resizer| Trial::Passed(Box::new(resizer)));
        }
        match trial {
            Trial::Passed(resizer) => Some(resizer),
            Trial::Due(_) | Trial::Failed => None,
        }
    }

    /// What is known of this resizing, which comes first now.
    fn trial(&mut self, config: ScalerConfig) -> &mut Trial {
        let position = self.trials.iter().position(|(other, _)| *other == config);
        let known = match position {
            Some(0) => None,
            Some(position) => self.trials.remove(position),
            None => Some((config, Trial::Due(0))),
        };
        if let Some(known) = known {
            self.trials.truncate(TRIALS_MAX - 1);
            self.trials.push_front(known);
        }
        &mut self.trials[0].1
    }
}

/// A resizer whose results are libswscale's. None where there is none.
fn proven(config: ScalerConfig) -> Result<Option<Resizer>, FfmpegError> {
    let Some(sizes) = sizes(config) else {
        return Ok(None);
    };
    let Some(plan) = measured(sizes)? else {
        return Ok(None);
    };
    // Where rows have at most two weights, libswscale mostly takes its code for two rows, which rounds
    // otherwise.
    let guess = plan.rows.weight_count_max() > 2;
    let candidate = |is_nearest| Resizer::new(Plan { is_nearest, ..plan.clone() });
    let candidates = [guess, !guess].into_iter().filter_map(candidate).collect();
    Ok(equals(config, sizes, candidates)?.into_iter().next())
}

/// Those of the candidates that make the same as libswscale.
fn equals(
    config: ScalerConfig,
    sizes: Sizes,
    mut candidates: Vec<Resizer>,
) -> Result<Vec<Resizer>, FfmpegError> {
    let ScalerConfig { source, layout, .. } = config;
    let mut scaler = Scaler::new(config)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut expected = vec![0; 3 * sizes.target.0 * sizes.target.1];
    let mut result = expected.clone();
    let picture_count = PROOF_VALUES_MIN.div_ceil(expected.len()).min(PROOF_PICTURES_MAX);
    let mut pixels = Vec::new();
    for count in 0..picture_count {
        if candidates.is_empty() {
            break;
        }
        // Every other picture is the negative of the one before, which costs less than another one.
        if count % 2 == 0 {
            pixels = proof_pixels(sizes, &mut random);
        } else {
            pixels.iter_mut().for_each(|value| *value = !*value);
        }
        let picture = Picture::of_pixels(layout, source.width, source.height, &pixels)?;
        scaler.convert(&picture, &mut expected)?;
        candidates.retain_mut(|candidate| {
            candidate.resize(|row| picture.row(layout, row), &mut result);
            result == expected
        });
    }
    Ok(candidates)
}

/// None where a resizer does not do such pictures.
fn sizes(config: ScalerConfig) -> Option<Sizes> {
    let ScalerConfig { source, layout, width, height } = config;
    let is_rgb24 =
        layout == PixelLayout::Rgb24 && source == PictureFormat::rgb(layout, source.width, source.height);
    let size = |width, height| Some((usize::try_from(width).ok()?, usize::try_from(height).ok()?));
    let sizes = Sizes { source: size(source.width, source.height)?, target: size(width, height)? };
    let is_tried = |(width, height): (usize, usize)| (1..=PIXELS_MAX).contains(&width.saturating_mul(height));
    (is_rgb24 && is_tried(sizes.source) && is_tried(sizes.target)).then_some(sizes)
}

/// By what weights libswscale resizes. None where they cannot be seen.
fn measured(sizes: Sizes) -> Result<Option<Plan>, FfmpegError> {
    let Sizes { source, target } = sizes;
    let Some(rows) = measured_rows(source.1, target.1)? else {
        return Ok(None);
    };
    let Some(luma) = measured_columns(source.0, target.0)? else {
        return Ok(None);
    };
    let chroma = if sizes.is_chroma_halved() {
        measured_columns(sizes.chroma_width(), target.0)?
    } else {
        Some(luma.clone())
    };
    Ok(chroma.map(|chroma| Plan { sizes, luma, chroma, rows, is_nearest: true }))
}

fn measured_columns(source: usize, target: usize) -> Result<Option<Taps>, FfmpegError> {
    let Some(impulses) = Impulses::new(source, target) else {
        return Ok(None);
    };
    let response = scale_gray(&impulses.values, impulses.width, (target, impulses.height))?;
    Ok(Taps::measured(source, target, COLUMN_UNIT, &response))
}

fn measured_rows(source: usize, target: usize) -> Result<Option<Taps>, FfmpegError> {
    let Some(impulses) = Impulses::new(source, target).map(|impulses| impulses.transposed()) else {
        return Ok(None);
    };
    let response = scale_gray(&impulses.values, impulses.width, (impulses.width, target))?;
    Ok(Taps::measured(source, target, ROW_UNIT, &transposed(&response, impulses.width)))
}

/// A picture of blocks, each of one of several kinds, so that each row and column of the result sees all of
/// them: noise, extreme noise, stripes, one of the corners of the colours' cube. Blocks are wider than what
/// becomes one pixel, so that extremes survive. Stripes have the most contrast that rows leave between
/// columns, and slowly become brighter: so they show the smallest differences of columns' weights.
fn proof_pixels(Sizes { source, target }: Sizes, random: &mut Random) -> Vec<u8> {
    let (width, height) = source;
    let step = width.div_ceil(target.0).max(height.div_ceil(target.1));
    let block = 4 * step.max(2);
    let mut pixels = vec![0; (3 * width * height).next_multiple_of(8)];
    for values in pixels.as_chunks_mut::<8>().0 {
        *values = random.bits().to_le_bytes();
    }
    pixels.truncate(3 * width * height);
    let extreme = |value: u8| if value < 128 { 0 } else { 255 };
    for band in pixels.chunks_mut(3 * width * block) {
        for left in (0..width).step_by(block) {
            let [kind, red, green, blue, stripes @ ..] = random.bits().to_le_bytes();
            let within = 3 * left..3 * (left + block).min(width);
            for (row, pixels) in band.chunks_exact_mut(3 * width).enumerate() {
                let pixels = &mut pixels[within.clone()];
                match kind % 8 {
                    0 => {}
                    1 | 2 => pixels.iter_mut().for_each(|value| *value = extreme(*value)),
                    3..=6 => {
                        for (column, pixel) in pixels.as_chunks_mut().0.iter_mut().enumerate() {
                            let brightness = 192 * (stripes[column / 8 % 4] >> (column % 8) & 1);
                            *pixel = [red, green, blue]
                                .map(|color| brightness + color.wrapping_add(row as u8) % 64);
                        }
                    }
                    _ => pixels.as_chunks_mut().0.fill([red, green, blue].map(extreme)),
                }
            }
        }
    }
    pixels
}

/// Numbers without a pattern that matters here, the same ones each time (xorshift64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::time::Instant;

    use super::*;

    type Size = (i32, i32);

    fn config(layout: PixelLayout, (source, target): (Size, Size)) -> ScalerConfig {
        let source = PictureFormat::rgb(layout, source.0, source.1);
        ScalerConfig { source, layout, width: target.0, height: target.1 }
    }

    fn of(sizes: (Size, Size)) -> ScalerConfig {
        config(PixelLayout::Rgb24, sizes)
    }

    /// Pictures other than those of the proof.
    fn pictures(config: ScalerConfig) -> Vec<Picture> {
        let (width, height) = (config.source.width as usize, config.source.height as usize);
        let mut random = Random(4711);
        let mut made = |value: &mut dyn FnMut(usize, &mut Random) -> u8| {
            let pixels: Vec<u8> = (0..3 * width * height).map(|at| value(at, &mut random)).collect();
            Picture::of_pixels(config.layout, config.source.width, config.source.height, &pixels).unwrap()
        };
        let place = |at: usize| (at / 3 % width, at / 3 / width, at % 3);
        vec![
            made(&mut |_, random| (random.bits() >> 30) as u8),
            made(&mut |_, random| if random.bits() & (1 << 30) == 0 { 0 } else { 255 }),
            made(&mut |at, _| {
                let (x, y, color) = place(at);
                (((color + 1) * x + (3 - color) * y) / 3 % 256) as u8
            }),
            made(&mut |at, _| {
                let (x, y, color) = place(at);
                let (x, y) = (x as f64 / 40.0, y as f64 / 23.0);
                ((x.sin() * y.cos() + 1.0 + 0.2 * color as f64) * 110.0) as u8
            }),
            made(&mut |_, _| 255),
        ]
    }

    /// Whether a resizer was taken. It is libswscale's equal then.
    fn is_taken(config: ScalerConfig) -> bool {
        let Some(mut resizer) = proven(config).unwrap() else {
            return false;
        };
        let mut scaler = Scaler::new(config).unwrap();
        for picture in pictures(config) {
            let mut expected = vec![0; (3 * config.width * config.height) as usize];
            let mut result = expected.clone();
            scaler.convert(&picture, &mut expected).unwrap();
            resizer.resize(|row| picture.row(PixelLayout::Rgb24, row), &mut result);
            assert!(result == expected, "{config:?}");
        }
        true
    }

    #[cfg(target_arch = "x86_64")]
    fn has_vectors() -> bool {
        std::is_x86_feature_detected!("avx2")
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn has_vectors() -> bool {
        false
    }

    #[test]
    fn common_sizes_are_taken_and_equal_libswscale() {
        let common = [
            ((640, 360), (224, 224)),
            ((640, 360), (256, 256)),
            ((1280, 720), (224, 224)),
            ((1920, 1080), (224, 224)),
            ((848, 480), (224, 224)),
            ((480, 256), (224, 224)),
            ((320, 180), (640, 360)),
            ((320, 240), (320, 180)),
            ((320, 180), (320, 181)),
            ((320, 180), (160, 180)),
            ((224, 224), (448, 224)),
        ];
        assert_eq!(common.map(|sizes| is_taken(of(sizes))), [has_vectors(); 11]);
    }

    #[test]
    fn odd_and_tiny_sizes_are_taken_and_equal_libswscale() {
        let odd = [
            ((32, 1), (64, 1)),
            ((32, 1), (32, 5)),
            ((64, 2), (32, 1)),
            ((32, 3), (32, 2)),
            ((64, 7), (32, 3)),
            ((256, 57), (224, 56)),
            ((96, 481), (32, 5)),
            ((1600, 5), (32, 4)),
            ((32, 400), (608, 401)),
            ((64, 9), (64, 8)),
        ];
        assert_eq!(odd.map(|sizes| is_taken(of(sizes))), [has_vectors(); 10]);
        // libswscale makes this in two steps.
        assert!(!is_taken(of(((96, 481), (32, 3)))));
    }

    #[test]
    fn random_sizes_equal_libswscale_and_most_are_taken() {
        let mut random = Random(2026);
        let mut side =
            |range: Range<u64>| (range.start + (random.bits() >> 20) % (range.end - range.start)) as i32;
        let mut size = || (32 * side(1..24), side(1..400));
        let taken = (0..60).filter(|_| is_taken(of((size(), size())))).count();
        assert!(taken >= 58 * usize::from(has_vectors()), "{taken} of 60");
    }

    #[test]
    fn wrong_weight_does_not_pass_the_proof() {
        let config = of(((640, 360), (224, 224)));
        let sizes = sizes(config).unwrap();
        let plan = measured(sizes).unwrap().unwrap();
        let shifted = |taps: &Taps, columns: Range<usize>, by: i16| {
            let mut lines = taps.lines().to_vec();
            for (_, weights) in &mut lines[columns] {
                weights[0] += by;
                weights[1] -= by;
            }
            Taps::new(lines)
        };
        let holds = |plan| {
            let candidates = Resizer::new(plan).into_iter().collect();
            !equals(config, sizes, candidates).unwrap().is_empty()
        };
        assert_eq!(holds(plan.clone()), has_vectors());
        for (columns, by) in [(0..1, 8), (100..101, 8), (223..224, 8), (0..224, 1)] {
            let [luma, chroma, rows] =
                [&plan.luma, &plan.chroma, &plan.rows].map(|taps| shifted(taps, columns.clone(), by));
            assert!(!holds(Plan { luma, ..plan.clone() }), "luma {columns:?}");
            assert!(!holds(Plan { chroma, ..plan.clone() }), "chroma {columns:?}");
            assert!(!holds(Plan { rows, ..plan.clone() }), "rows {columns:?}");
        }
        assert!(!holds(Plan { is_nearest: false, ..plan }));
    }

    #[test]
    fn libswscale_resizes_first_and_what_it_resizes_alone() {
        let mut resizers = Resizers::default();
        let mut is_taken = |config| (0..12).map(|_| resizers.resizer(config).is_some()).collect::<Vec<_>>();
        let sizes = ((640, 360), (224, 224));
        let first = [vec![false; 8], vec![has_vectors(); 4]].concat();
        assert_eq!(is_taken(of(sizes)), first);
        assert_eq!(is_taken(config(PixelLayout::Rgb48, sizes)), [false; 12]);
        assert_eq!(is_taken(of(((30_016, 2), (32, 2)))), [false; 12]);
        assert_eq!(is_taken(of(sizes)), [has_vectors(); 12]);
    }

    #[test]
    fn sizes_beyond_the_last_few_are_forgotten() {
        let mut resizers = Resizers::default();
        for height in 1..200 {
            assert!(resizers.resizer(of(((640, 360), (224, height)))).is_none());
        }
        assert_eq!(resizers.trials.len(), TRIALS_MAX);
    }

    /// Microseconds of `work`, the least of many times.
    fn measured_micros(times: &mut [f64], work: &mut dyn FnMut()) {
        let begin = Instant::now();
        work();
        times[0] = times[0].min(begin.elapsed().as_secs_f64() * 1e6);
        times[1] += begin.elapsed().as_secs_f64() * 1e6;
    }

    /// Prints what docs/decisions/0012-resizing.md shows.
    #[test]
    #[ignore = "a measurement, which asserts nothing"]
    fn how_long_resizing_takes() {
        const ROUNDS: u32 = 200;
        let sizes = [((640, 360), (224, 224)), ((1280, 720), (256, 256)), ((848, 480), (224, 224))];
        for sizes in sizes {
            let config = of(sizes);
            let begin = Instant::now();
            let mut resizer = proven(config).unwrap().unwrap();
            let trial = begin.elapsed();
            let mut scaler = Scaler::new(config).unwrap();
            let picture = &pictures(config)[3];
            let mut result = vec![0; (3 * config.width * config.height) as usize];
            let (mut library, mut own) = ([f64::MAX, 0.0], [f64::MAX, 0.0]);
            for _ in 0..ROUNDS {
                measured_micros(&mut library, &mut || scaler.convert(picture, &mut result).unwrap());
                measured_micros(&mut own, &mut || {
                    resizer.resize(|row| picture.row(PixelLayout::Rgb24, row), &mut result);
                });
            }
            let [library, own] = [library, own].map(|[least, sum]| [least, sum / f64::from(ROUNDS)]);
            println!(
                "{sizes:?}: libswscale {library:.0?} us, own {own:.0?} us (least, mean), trial {trial:.1?}"
            );
        }
    }
}
