//! The quarter turns that make a picture upright.
//!
//! What does not live here: turning pixels; that is the devices' matter.

/// Counter-clockwise, as a display matrix counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotation {
    /// Upright already.
    None,
    /// A quarter turn counter-clockwise.
    CounterClockwise,
    /// Upside down.
    Half,
    /// A quarter turn clockwise.
    Clockwise,
}

impl Rotation {
    /// The nearest quarter turn; halves go away from zero.
    pub fn from_degrees(degrees: Option<f64>) -> Rotation {
        let quarters = degrees.map_or(0.0, |degrees| (degrees / 90.0).round());
        match quarters as i64 {
            1 => Rotation::CounterClockwise,
            -1 => Rotation::Clockwise,
            2 | -2 => Rotation::Half,
            _ => Rotation::None,
        }
    }

    /// Width and height after the turn.
    pub fn apply<T>(self, (width, height): (T, T)) -> (T, T) {
        match self {
            Rotation::None | Rotation::Half => (width, height),
            Rotation::CounterClockwise | Rotation::Clockwise => (height, width),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degrees_round_to_the_nearest_quarter() {
        let quarters = [
            (0.0, Rotation::None),
            (44.9, Rotation::None),
            (45.0, Rotation::CounterClockwise),
            (-90.0, Rotation::Clockwise),
            (-135.0, Rotation::Half),
            (180.0, Rotation::Half),
        ];
        for (degrees, rotation) in quarters {
            assert_eq!(Rotation::from_degrees(Some(degrees)), rotation, "{degrees} degrees");
        }
        assert_eq!(Rotation::from_degrees(None), Rotation::None);
    }

    #[test]
    fn quarter_turn_swaps_width_and_height() {
        assert_eq!(Rotation::Clockwise.apply((640, 360)), (360, 640));
        assert_eq!(Rotation::Half.apply((640, 360)), (640, 360));
    }
}
