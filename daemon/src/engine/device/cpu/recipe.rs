//! [`Recipe`]: by which of FFmpeg's means a look is reached. Pure.
//!
//! The rule is TorchCodec's, because the ways differ in single values: libswscale directly where no rotation is
//! needed, the width is a multiple of 32 and nothing is to be done but perhaps one resizing to such a width; else
//! a filter graph with libswscale inside. Crops at the end are left to the copy that follows the graph: they
//! then cost nothing, and one graph serves any number of random crops.
//!
//! What does not live here: the converters that are made by it; see `convert`.

use reeld_protocol::Transform;

use crate::engine::device::Look;
use crate::engine::media::Rotation;
use crate::ffi::{PixelLayout, Window};

/// libswscale's fast loops write whole vectors: rows of other widths would overrun into the next one.
const DIRECT_WIDTH_MULTIPLE: u32 = 32;

/// How pictures of one size come to look as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What computes.
    pub means: Means,
    /// What of its result is wanted.
    pub window: Window,
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Means {
    /// libswscale, straight into the destination.
    Direct,
    /// libswscale twice: to red, green and blue, and from there to this size.
    Resized {
        /// Columns.
        width: i32,
        /// Rows.
        height: i32,
    },
    /// A filter graph, in FFmpeg's notation.
    Filtered(String),
}

impl Recipe {
    /// For pictures of this width and height, which `look` fits.
    pub fn new(coded_size: (i32, i32), look: &Look, layout: PixelLayout) -> Recipe {
        let transforms = look.transforms.as_slice();
        let resize_count =
            transforms.iter().rposition(|transform| matches!(transform, Transform::Resize { .. }));
        let (filtered, crops) = transforms.split_at(resize_count.map_or(0, |position| position + 1));
        let means = direct_means(coded_size, look)
            .unwrap_or_else(|| Means::Filtered(filters(layout, look.rotation, filtered)));
        let (width, height) = look.rotation.apply(coded_size);
        let upright = (height.unsigned_abs(), width.unsigned_abs());
        let whole = filtered.last().map_or(upright, |last| last.result_size());
        Recipe { means, window: window(whole, crops) }
    }
}

/// None where filters are needed.
fn direct_means((width, height): (i32, i32), look: &Look) -> Option<Means> {
    let is_direct = |width: u32| width.is_multiple_of(DIRECT_WIDTH_MULTIPLE);
    if look.rotation != Rotation::None || !is_direct(width.unsigned_abs()) {
        return None;
    }
    match *look.transforms.as_slice() {
        [] => Some(Means::Direct),
        [Transform::Resize { height: rows, width: columns }] if is_direct(columns) => {
            let size = (i32::try_from(columns).ok()?, i32::try_from(rows).ok()?);
            let is_resized = size != (width, height);
            Some(if is_resized { Means::Resized { width: size.0, height: size.1 } } else { Means::Direct })
        }
        _ => None,
    }
}

/// Everything comes after the conversion, as in TorchCodec: turning YUV first would move the chroma samples.
fn filters(layout: PixelLayout, rotation: Rotation, transforms: &[Transform]) -> String {
    let format = match layout {
        PixelLayout::Rgb24 => "format=rgb24",
        PixelLayout::Rgb48 => "format=rgb48",
    };
    let turn = match rotation {
        Rotation::None => None,
        Rotation::CounterClockwise => Some("transpose=cclock".to_owned()),
        Rotation::Half => Some("hflip,vflip".to_owned()),
        Rotation::Clockwise => Some("transpose=clock".to_owned()),
    };
    let mut filters = vec![format.to_owned()];
    filters.extend(turn);
    filters.extend(transforms.iter().map(filter));
    if !transforms.is_empty() {
        // Scaling may end in any format, unless it is told.
        filters.push(format.to_owned());
    }
    filters.join(",")
}

fn filter(transform: &Transform) -> String {
    match *transform {
        Transform::Resize { height, width } => format!("scale={width}:{height}:flags=bilinear"),
        Transform::Crop { top, left, height, width } => format!("crop={width}:{height}:{left}:{top}:exact=1"),
        Transform::CenterCrop { height, width } => format!("crop={width}:{height}:exact=1"),
    }
}

/// What is left of a picture of this height and width after crops that fit into it. As in FFmpeg, a crop that
/// begins too far right or down is moved, and half a pixel goes to the even side.
fn window((height, width): (u32, u32), crops: &[Transform]) -> Window {
    let whole = Window { top: 0, left: 0, height: height as usize, width: width as usize };
    crops.iter().fold(whole, |window, crop| {
        let (height, width) = crop.result_size();
        let (height, width) = (height as usize, width as usize);
        let (spare_rows, spare_columns) =
            (window.height.saturating_sub(height), window.width.saturating_sub(width));
        let (top, left) = match *crop {
            Transform::Crop { top, left, .. } => {
                (spare_rows.min(top as usize), spare_columns.min(left as usize))
            }
            Transform::CenterCrop { .. } => (half_to_even(spare_rows), half_to_even(spare_columns)),
            Transform::Resize { .. } => (0, 0),
        };
        Window { top: window.top + top, left: window.left + left, height, width }
    })
}

fn half_to_even(spare: usize) -> usize {
    let half = spare / 2;
    half + usize::from(spare % 2 == 1 && half % 2 == 1)
}

#[cfg(test)]
mod tests {
    use reeld_protocol::Transforms;
    use reeld_protocol::message::Dtype;

    use super::*;

    const RESIZE: Transform = Transform::Resize { height: 90, width: 160 };
    const CROP: Transform = Transform::Crop { top: 5, left: 7, height: 40, width: 50 };

    fn recipe(coded_size: (i32, i32), rotation: Rotation, transforms: &[Transform]) -> Recipe {
        let transforms = Transforms::new(transforms).unwrap();
        let look = Look { rotation, transforms, width: 0, height: 0, dtype: Dtype::Uint8 };
        Recipe::new(coded_size, &look, PixelLayout::Rgb24)
    }

    fn means(width: i32, transforms: &[Transform]) -> Means {
        recipe((width, 180), Rotation::None, transforms).means
    }

    fn filtered(filters: &str) -> Means {
        Means::Filtered(filters.to_owned())
    }

    #[test]
    fn one_resizing_between_widths_of_32_is_direct_and_any_other_is_filtered() {
        let scaled = filtered("format=rgb24,scale=160:90:flags=bilinear,format=rgb24");
        assert_eq!(means(320, &[RESIZE]), Means::Resized { width: 160, height: 90 });
        assert_eq!(means(322, &[RESIZE]), scaled);
        assert_eq!(recipe((320, 180), Rotation::Half, &[RESIZE]).means, {
            filtered("format=rgb24,hflip,vflip,scale=160:90:flags=bilinear,format=rgb24")
        });
        let odd = Transform::Resize { height: 90, width: 161 };
        assert_eq!(means(320, &[odd]), filtered("format=rgb24,scale=161:90:flags=bilinear,format=rgb24"));
        assert_eq!(means(320, &[Transform::Resize { height: 180, width: 320 }]), Means::Direct);
    }

    #[test]
    fn crops_at_the_end_are_a_window_of_what_comes_before_them() {
        let last = recipe((320, 180), Rotation::None, &[RESIZE, CROP, CROP_OF_CROP]);
        assert_eq!(last.means, means(322, &[RESIZE]));
        assert_eq!(last.window, Window { top: 5 + 1, left: 7 + 2, height: 4, width: 3 });
        assert_eq!(recipe((320, 180), Rotation::None, &[CROP]).means, filtered("format=rgb24"));
        assert_eq!(
            means(320, &[CROP, RESIZE]),
            filtered("format=rgb24,crop=50:40:7:5:exact=1,scale=160:90:flags=bilinear,format=rgb24")
        );
    }

    const CROP_OF_CROP: Transform = Transform::Crop { top: 1, left: 2, height: 4, width: 3 };

    #[test]
    fn window_without_crops_is_the_upright_picture() {
        let whole = Window { top: 0, left: 0, height: 320, width: 180 };
        assert_eq!(recipe((320, 180), Rotation::Clockwise, &[]).window, whole);
    }

    #[test]
    fn middle_of_an_odd_remainder_is_at_the_even_half() {
        let left = |width| window((1, 10), &[Transform::CenterCrop { height: 1, width }]).left;
        assert_eq!([10, 9, 8, 7, 6, 5, 4, 3].map(left), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn crop_beyond_a_smaller_picture_is_moved_into_it() {
        assert_eq!(window((42, 52), &[CROP]), Window { top: 2, left: 2, height: 40, width: 50 });
    }
}
