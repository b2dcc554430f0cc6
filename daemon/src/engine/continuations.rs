//! How often a run goes on where an earlier one has ended, so that it can be told what a warm decoder is worth. Pure.
//!
//! What does not live here: the decoders; see `sessions`.

/// Each run moves the share by one part in so many: some tens of runs tell.
const WEIGHT: f64 = 1.0 / 8.0;

/// The share of the runs that lately went on with a warm decoder.
#[derive(Clone, Copy, Debug)]
pub struct Continuations {
    share: f64,
}

impl Default for Continuations {
    /// Whoever begins to read is expected to go on.
    fn default() -> Self {
        Continuations { share: 1.0 }
    }
}

impl Continuations {
    /// A run has begun.
    pub fn note(&mut self, went_on: bool) {
        self.share += (f64::from(u8::from(went_on)) - self.share) * WEIGHT;
    }

    /// True if so few runs go on that saving `saved` pictures in each run outweighs decoding `way` pictures anew in those.
    pub fn are_rarer_than(&self, saved: u64, way: u64) -> bool {
        self.share * (way as f64) < saved as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_is_expected_to_go_on() {
        assert!(!Continuations::default().are_rarer_than(2, 24));
    }

    #[test]
    fn random_reader_is_known_after_some_runs() {
        let mut continuations = Continuations::default();
        let runs = (1..100).find(|_| {
            continuations.note(false);
            continuations.are_rarer_than(2, 24)
        });
        assert_eq!(runs, Some(19));
    }

    #[test]
    fn sequential_reader_is_known_before_the_way_is_long() {
        let mut continuations = Continuations { share: 0.0 };
        let mut decoded_again = 0;
        for way in 1..100 {
            if continuations.are_rarer_than(2, way) {
                decoded_again += way;
            }
            continuations.note(true);
        }
        assert!(decoded_again <= 15, "{decoded_again} pictures");
    }

    #[test]
    fn decoder_that_holds_nothing_back_is_never_cut() {
        assert!(!Continuations { share: 0.0 }.are_rarer_than(0, 24));
    }
}
