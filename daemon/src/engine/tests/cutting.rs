//! Decoders that are made to put out what they have because nobody is likely to go on from there: that all pictures
//! stay what they were, and that whoever does go on is not sent back each time.

use std::path::{Path, PathBuf};

use reeld_protocol::message::Dtype;
use tempfile::TempDir;

use super::{Broker, clip, first, frames, remux, start_of, video, wanted};
use crate::link::Target;
use crate::link::index::Index;

/// 40 stretches of 10, so that none is visited twice before it is forgotten.
const SOURCE: &str = "testsrc2=s=160x96:r=25:d=16";
const X264: &[&str] = &["-c:v", "libx264", "-bf", "3", "-g", "10"];

struct Reader {
    broker: Broker,
    index: Index,
    truth: Vec<Vec<u8>>,
    path: PathBuf,
    header: reeld_protocol::metadata::VideoHeader,
}

impl Reader {
    fn open(path: &Path) -> Reader {
        let (mut broker, media) = Broker::open(path);
        let header = video(&media).clone();
        let index = broker.scan();
        let truth = frames(path, &header, "rgb24", 3);
        assert_eq!(index.entries.len(), truth.len(), "{}", path.display());
        Reader { broker, index, truth, path: path.to_owned(), header }
    }

    /// Some frames by one run each; returns how many pictures were decoded for it.
    fn read(&mut self, positions: &[usize]) -> u64 {
        let before = self.broker.report.pictures_decoded;
        let named = positions.iter().enumerate().map(|(slot, &position)| {
            let target = Target::AtOrAfter(self.index.entries[position].pts);
            wanted(slot as u64, &self.header, target, Dtype::Uint8)
        });
        let named: Vec<_> = named.collect();
        assert_eq!(self.broker.decode(start_of(&self.index, positions[0]), &named).0, []);
        for (wanted, &position) in named.iter().zip(positions) {
            let is_equal = self.broker.pixels(wanted) == self.truth[position];
            assert!(is_equal, "frame {position} of {}", self.path.display());
        }
        self.broker.report.pictures_decoded - before
    }

    /// One frame of each stretch but the last two, in no order.
    fn read_here_and_there(&mut self) {
        for step in 0..38 {
            self.read(&[step * 7 % 38 * 10 + step % 10]);
        }
    }
}

#[test]
fn pictures_of_cut_decoders_are_the_same() {
    let folder = TempDir::new().unwrap();
    let h264 = clip(&folder, "h264.mp4", SOURCE, X264);
    let open_gop = "keyint=10:min-keyint=10:open-gop=1:scenecut=0";
    let refresh = "intra-refresh=1:keyint=10";
    let x264 = |name: &str, parameters: &str| {
        clip(&folder, name, SOURCE, &[X264, &["-x264-params", parameters]].concat())
    };
    let x265 = |name: &str, parameters: &str| {
        let parameters = format!("log-level=none:keyint=10:{parameters}");
        clip(&folder, name, SOURCE, &["-c:v", "libx265", "-x265-params", &parameters])
    };
    let paths = [
        remux(&h264, "h264.ts", &[]),
        h264,
        clip(&folder, "ten.mkv", SOURCE, &[X264, &["-pix_fmt", "yuv420p10le"]].concat()),
        x264("fields.mp4", "tff=1"),
        x264("open.mp4", open_gop),
        x264("refresh.mp4", refresh),
        x265("h265.mp4", "open-gop=1"),
        x265("layers.mp4", "temporal-layers=1"),
    ];
    for path in &paths {
        for thread_count in [1, 3] {
            let mut reader = Reader::open(path);
            reader.broker.thread_count = thread_count;
            reader.read_here_and_there();
            // The last stretches hold what was never visited.
            for positions in [&[381, 382, 385, 389][..], &[390], &[399]] {
                reader.read(positions);
            }
        }
    }
}

#[test]
fn decoder_is_cut_once_nobody_goes_on() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "h264.mp4", SOURCE, X264);
    let mut fresh = Reader::open(&path);
    fresh.read(&[386]);
    assert_eq!(fresh.read(&[387]), 1, "whoever begins is expected to go on");
    let mut reader = Reader::open(&path);
    reader.read_here_and_there();
    reader.read(&[386]);
    assert!(reader.read(&[387]) > 1, "decoded from the keyframe");
    assert_eq!(reader.read(&[388]), 1, "a stretch that was visited twice is gone on with");
}

#[test]
fn whoever_goes_on_after_all_is_soon_believed() {
    let folder = TempDir::new().unwrap();
    let path = clip(&folder, "h264.mp4", SOURCE, &[X264, &["-g", "400", "-keyint_min", "400"]].concat());
    let mut reader = Reader::open(&path);
    // Backwards, so that none goes on.
    for position in (100..140).rev() {
        let frame = reader.broker.frame(&reader.index, position, first(&reader.header));
        assert!(frame == reader.truth[position], "frame {position}");
    }
    let forward: u64 = (141..200).map(|position| reader.read(&[position])).sum();
    assert!(forward < 2 * 200, "{forward} pictures for 59");
}
