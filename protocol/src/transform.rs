//! [`Transforms`]: what is done to a picture between its decoding and its delivery, after it was turned upright.
//!
//! What does not live here: how pixels are computed; that is the engine's matter.

use std::sync::Arc;

use crate::codec::{Decode, Encode};

/// Transforms of one part. Two or three are usual; each message that names some has room for 64 times as many.
pub const TRANSFORMS_MAX: usize = 8;

/// Pixels of what one transform makes: twice a picture of 8K. Enlarging a small picture is cheap to ask for, and
/// costs the engine up to six bytes for each of these.
const PIXELS_MAX: u64 = 1 << 26;

/// Rows or columns of what one transform makes, within what FFmpeg can hold of pictures as large as allowed.
const SIDE_MAX: u32 = 16_384;

/// One step from the decoded picture to the frame. Rows come first, as in the shape of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Transform {
    /// Scaled to this size, bilinear with antialiasing.
    Resize {
        /// Rows of the result.
        height: u32,
        /// Columns of the result.
        width: u32,
    },
    /// A part of the picture.
    Crop {
        /// The first row.
        top: u32,
        /// The first column.
        left: u32,
        /// Rows of the result.
        height: u32,
        /// Columns of the result.
        width: u32,
    },
    /// The middle of the picture. What is left over by an odd number of rows or columns is halved to the even
    /// number.
    CenterCrop {
        /// Rows of the result.
        height: u32,
        /// Columns of the result.
        width: u32,
    },
}

impl Transform {
    /// Height and width of what it makes.
    pub fn result_size(self) -> (u32, u32) {
        match self {
            Transform::Resize { height, width }
            | Transform::Crop { height, width, .. }
            | Transform::CenterCrop { height, width } => (height, width),
        }
    }

    /// Fails where no picture whatsoever can be transformed so.
    fn check(self) -> Result<(), TransformError> {
        let (height, width) = self.result_size();
        let pixels = u64::from(height) * u64::from(width);
        let is_allowed = (1..=PIXELS_MAX).contains(&pixels) && height.max(width) <= SIDE_MAX;
        if is_allowed { Ok(()) } else { Err(TransformError::Size { height, width }) }
    }

    /// Fails where a picture of this size does not have what is to be cut out.
    fn check_input(self, (input_height, input_width): (u32, u32)) -> Result<(), TransformError> {
        let (height, width) = self.result_size();
        let (top, left) = match self {
            Transform::Resize { .. } => return Ok(()),
            Transform::Crop { top, left, .. } => (top, left),
            Transform::CenterCrop { .. } => (0, 0),
        };
        let reaches =
            |begin: u32, length: u32, end: u32| u64::from(begin) + u64::from(length) <= u64::from(end);
        if reaches(top, height, input_height) && reaches(left, width, input_width) {
            return Ok(());
        }
        Err(TransformError::OutsideInput { top, left, height, width, input_height, input_width })
    }
}

/// Why transforms are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// Too many of them.
    #[error("{count} transforms are more than {TRANSFORMS_MAX}")]
    TooMany {
        /// As many as there are.
        count: usize,
    },
    /// Nothing is left, or too much is made.
    #[error(
        "a transform to {height} rows and {width} columns: both must be positive, at most {SIDE_MAX}, and not \
         more than {PIXELS_MAX} pixels together"
    )]
    Size {
        /// Rows of the result.
        height: u32,
        /// Columns of the result.
        width: u32,
    },
    /// The picture ends before the crop does.
    #[error(
        "a crop of {height} rows and {width} columns from row {top} and column {left} is greater than its input, \
         which has {input_height} rows and {input_width} columns"
    )]
    OutsideInput {
        /// The first row.
        top: u32,
        /// The first column.
        left: u32,
        /// Rows of the result.
        height: u32,
        /// Columns of the result.
        width: u32,
        /// Rows of what is cropped.
        input_height: u32,
        /// Columns of what is cropped.
        input_width: u32,
    },
}

/// Transforms that were checked, in the order in which they are applied. A clone is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transforms(Arc<[Transform]>);

impl Transforms {
    /// Checks all that can be said without a picture.
    pub fn new(transforms: impl Into<Arc<[Transform]>>) -> Result<Self, TransformError> {
        let transforms = transforms.into();
        if transforms.len() > TRANSFORMS_MAX {
            return Err(TransformError::TooMany { count: transforms.len() });
        }
        transforms.iter().try_for_each(|transform| transform.check())?;
        Ok(Transforms(transforms))
    }

    /// Height and width of a picture of this height and width after all of them.
    pub fn size_after(&self, size: (u32, u32)) -> Result<(u32, u32), TransformError> {
        self.0.iter().try_fold(size, |size, transform| {
            transform.check_input(size)?;
            Ok(transform.result_size())
        })
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Transform] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CROP: Transform = Transform::Crop { top: 10, left: 20, height: 30, width: 40 };

    fn size_after(transforms: &[Transform], size: (u32, u32)) -> Result<(u32, u32), TransformError> {
        Transforms::new(transforms)?.size_after(size)
    }

    #[test]
    fn size_is_that_of_the_last_transform_and_unchanged_by_none() {
        assert_eq!(size_after(&[], (180, 320)), Ok((180, 320)));
        assert_eq!(
            size_after(&[Transform::Resize { height: 50, width: 70 }, CROP], (180, 320)),
            Ok((30, 40))
        );
    }

    #[test]
    fn crop_may_reach_the_edge_and_not_beyond() {
        assert_eq!(size_after(&[CROP], (40, 60)), Ok((30, 40)));
        assert!(matches!(size_after(&[CROP], (39, 60)), Err(TransformError::OutsideInput { .. })));
        assert!(matches!(size_after(&[CROP], (40, 59)), Err(TransformError::OutsideInput { .. })));
        let far = Transform::Crop { top: u32::MAX, left: 0, height: 1, width: 1 };
        assert!(matches!(size_after(&[far], (40, 60)), Err(TransformError::OutsideInput { .. })));
    }

    #[test]
    fn crop_is_checked_against_what_the_transform_before_it_makes() {
        let middle = Transform::CenterCrop { height: 20, width: 20 };
        assert!(matches!(size_after(&[middle, CROP], (180, 320)), Err(TransformError::OutsideInput { .. })));
    }

    #[test]
    fn sizes_of_nothing_or_too_much_are_refused() {
        for (height, width) in
            [(0, 5), (5, 0), (16_385, 1), (1, 16_385), (8_193, 8_192), (u32::MAX, u32::MAX)]
        {
            let refused = Err(TransformError::Size { height, width });
            assert_eq!(Transforms::new([Transform::Resize { height, width }]), refused);
            assert_eq!(Transforms::new([Transform::CenterCrop { height, width }]), refused);
        }
        assert!(Transforms::new([Transform::Resize { height: 8_192, width: 8_192 }]).is_ok());
    }

    #[test]
    fn more_transforms_than_allowed_are_refused() {
        assert!(Transforms::new([CROP; TRANSFORMS_MAX]).is_ok());
        let count = TRANSFORMS_MAX + 1;
        assert_eq!(Transforms::new([CROP; TRANSFORMS_MAX + 1]), Err(TransformError::TooMany { count }));
    }
}
