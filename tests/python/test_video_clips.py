"""`reeld.torch.VideoClips`: which frames its clips have, and how it behaves in processes and caches."""

from __future__ import annotations

import copy
import gc
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import reeld
import torch
from reeld.torch import VideoClips, collate
from reeld.transforms import Resize
from support import TWENTY, Daemon, Reference, digest, eventually, run_together
from torchcodec.transforms import Resize as ReferenceResize

# All of these have 30 frames at 25 per second.
FRAME_COUNT = 30


@pytest.fixture
def paths(media: Path) -> list[str]:
    """Twenty short videos."""
    return [str(media / name) for name in TWENTY]


def open_files() -> list[str]:
    """What the descriptors of this process lead to."""
    folder, found = Path("/proc/self/fd"), []
    for entry in os.listdir(folder):
        try:
            found.append(os.readlink(folder / entry))
        except FileNotFoundError:
            # The descriptor of the listing itself.
            continue
    return found


def open_videos(media: Path) -> int:
    """How many clips this process has open."""
    return sum(name.startswith(str(media)) for name in open_files())


# -------------------------------------------------------------------------------------- which frames


def test_regular_clips_reach_from_the_beginning_to_the_end(paths: list[str]) -> None:
    dataset = VideoClips(paths[:2], frames_per_clip=4, step=3, clips_per_video=3)
    starts = [dataset.clip(index).indices for index in range(len(dataset))]
    assert starts == [range(0, 10, 3), range(10, 20, 3), range(20, 30, 3)] * 2


def test_clips_have_the_frames_that_they_name(paths: list[str]) -> None:
    dataset = VideoClips(paths[:3], frames_per_clip=3, step=2, clips_per_video=4, sampling="random", seed=5)
    for index in range(len(dataset)):
        indices = dataset.clip(index).indices
        assert indices is not None
        expected = Reference(paths[index // 4]).get_frames_at(list(indices))
        assert torch.equal(dataset[index].data, expected.data)
        assert dataset[index].pts_seconds.tolist() == expected.pts_seconds.tolist()


def test_random_clips_lie_anywhere_and_fit(paths: list[str]) -> None:
    dataset = VideoClips(paths[:1], frames_per_clip=3, step=9, clips_per_video=400, sampling="random")
    clips = [dataset.clip(index).indices for index in range(len(dataset))]
    assert {clip[0] for clip in clips if clip is not None} == set(range(FRAME_COUNT - 18))
    assert {(len(clip), clip[-1] - clip[0]) for clip in clips if clip is not None} == {(3, 18)}


@pytest.mark.parametrize("sampling", ["regular", "random"])
def test_clips_by_rate_show_what_plays_then(paths: list[str], sampling: Any) -> None:
    dataset = VideoClips(paths[:1], frames_per_clip=5, fps=10, clips_per_video=20, sampling=sampling)
    reference = Reference(paths[0])
    begins = set()
    for index in range(len(dataset)):
        seconds = dataset.clip(index).seconds
        assert seconds is not None
        assert [after - seconds[0] for after in seconds] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        assert 0 <= seconds[0] <= 1.2 - 0.5 + 1e-9
        assert torch.equal(dataset[index].data, reference.get_frames_played_at(list(seconds)).data)
        begins.add(seconds[0])
    assert len(begins) == 20


def test_a_video_shorter_than_a_clip_repeats_its_last_frame(paths: list[str]) -> None:
    by_step = VideoClips(paths[:1], frames_per_clip=5, step=9, sampling="random")
    assert by_step.clip(0).indices == [0, 9, 18, 27, 27]
    by_rate = VideoClips(paths[:1], frames_per_clip=4, fps=2, sampling="random")
    assert by_rate.clip(0).seconds == [0.0, 0.5, 1.0, 1.0]
    assert len(by_rate[0]) == 4
    assert torch.equal(by_rate[0].data[2], by_rate[0].data[3])


def test_options_reach_the_decoder(paths: list[str]) -> None:
    options: dict[str, Any] = {"dimension_order": "NHWC", "output_dtype": torch.float32}
    clip = VideoClips(paths[:1], frames_per_clip=2, seek_mode="approximate", **options)[0]
    assert torch.equal(clip.data, Reference(paths[0], **options).get_frames_at([0, 1]).data)


def test_transforms_make_one_batch_of_videos_of_different_sizes(paths: list[str], media: Path) -> None:
    videos = [paths[0], str(media / "h264_bframes.mp4"), str(media / "odd_width.webm")]
    dataset = VideoClips(videos, frames_per_clip=2, transforms=[Resize((48, 64))])
    copied_before = reeld.statistics()["bytes_copied_out"]
    batch = collate(dataset.__getitems__([0, 1, 2]))
    assert batch.data.shape == (3, 2, 3, 48, 64)
    assert reeld.statistics()["bytes_copied_out"] == copied_before
    for video, clip in zip(videos, batch.data, strict=True):
        expected = Reference(video, transforms=[ReferenceResize((48, 64))]).get_frames_at([0, 1]).data
        assert torch.equal(clip, expected)


# --------------------------------------------------------------------------------------- randomness


def places(dataset: VideoClips) -> list[int]:
    """Where each clip begins."""
    clips = [dataset.clip(index).indices for index in range(len(dataset))]
    return [int(clip[0]) for clip in clips if clip is not None]


def test_random_places_depend_on_seed_epoch_and_index_alone(paths: list[str]) -> None:
    def made(seed: int, epoch: int) -> list[int]:
        dataset = VideoClips(paths[:10], frames_per_clip=2, clips_per_video=3, sampling="random", seed=seed)
        dataset.set_epoch(epoch)
        return places(dataset)

    torch.manual_seed(1)
    first = made(0, 0)
    torch.manual_seed(2)
    assert made(0, 0) == first
    others = [made(1, 0), made(0, 1), made(10, 0), made(1, 1)]
    assert len({tuple(other) for other in [first, *others]}) == 5
    assert len(set(first)) > 10


def test_random_places_do_not_change_from_one_version_to_the_next(paths: list[str]) -> None:
    dataset = VideoClips(paths[:6], frames_per_clip=2, sampling="random", seed=42)
    dataset.set_epoch(3)
    assert places(dataset) == [21, 0, 4, 1, 3, 12]


# ------------------------------------------------------------------------------ requests and caches


def test_a_batch_is_one_request_and_one_lease(paths: list[str], daemon: Daemon) -> None:
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")
    dataset = VideoClips(paths, frames_per_clip=2, clips_per_video=3, targets=range(20))
    requests_before = reeld.status()["totals"]["requests"]
    samples = dataset.__getitems__([59, 0, 7, 7, -1])
    assert reeld.status()["totals"]["requests"] == requests_before + 1
    assert daemon.lease_count() == 1
    assert [target for _, target in samples] == [19, 0, 2, 2, 19]
    clips, targets = collate(samples)
    assert clips.data.data_ptr() == samples[0][0].data.data_ptr()
    assert targets.tolist() == [19, 0, 2, 2, 19]
    assert digest(clips.data[4]) == digest(clips.data[0]) == digest(dataset[59][0].data)


def test_a_dataset_opens_nothing_before_it_is_asked_and_keeps_few_open(paths: list[str], media: Path) -> None:
    gc.collect()
    before = open_videos(media)
    dataset = VideoClips(paths, frames_per_clip=1, decoders_max=6)
    assert open_videos(media) == before
    for index in range(20):
        assert len(dataset[index]) == 1
    gc.collect()
    assert open_videos(media) <= before + 6
    # Those that were used last are open still: nothing more is opened for them.
    sources = reeld.status()["totals"]["requests"]
    assert len(dataset.__getitems__([14, 15, 16, 17, 18, 19])) == 6
    assert reeld.status()["totals"]["requests"] == sources + 1
    del dataset
    gc.collect()
    assert open_videos(media) == before


def first_digest(_number: int, dataset: VideoClips) -> str:
    """The content of the first clip."""
    return digest(dataset[0].data)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_dataset_works_in_a_forked_child(paths: list[str]) -> None:
    dataset = VideoClips(paths[:1], frames_per_clip=3, sampling="random", seed=9)
    dataset.set_epoch(4)
    mine = first_digest(0, dataset)
    assert run_together("fork", first_digest, 2, dataset) == [mine, mine]
    assert first_digest(0, dataset) == mine


@pytest.mark.parametrize("epoch", [1.5, 2**63, "1", None])
def test_what_is_no_epoch_is_a_type_error(paths: list[str], epoch: Any) -> None:
    dataset = VideoClips(paths[:1], frames_per_clip=1)
    with pytest.raises(TypeError, match="epoch"):
        dataset.set_epoch(epoch)


def test_a_copy_is_a_dataset_of_its_own(paths: list[str]) -> None:
    dataset = VideoClips(paths[:4], frames_per_clip=2, sampling="random")
    dataset.set_epoch(7)
    expected = places(dataset)
    for other in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert places(other) == expected
        other.set_epoch(8)
        assert places(other) != expected
        assert places(dataset) == expected


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frames_per_clip": 0}, "frames_per_clip"),
        ({"frames_per_clip": 2, "step": 0}, "step"),
        ({"frames_per_clip": 2, "step": 2, "fps": 5}, "either step or fps"),
        ({"frames_per_clip": 2, "fps": 0}, "fps"),
        ({"frames_per_clip": 2, "fps": float("nan")}, "fps"),
        ({"frames_per_clip": 2, "clips_per_video": 0}, "clips_per_video"),
        ({"frames_per_clip": 2, "decoders_max": 0}, "decoders_max"),
        ({"frames_per_clip": 2, "sampling": "uniform"}, "random"),
        ({"frames_per_clip": 2, "targets": [1]}, "1 targets for 20 videos"),
    ],
)
def test_wrong_arguments_are_value_errors(paths: list[str], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VideoClips(paths, **arguments)


def test_options_that_no_decoder_has_are_type_errors_at_once(paths: list[str]) -> None:
    with pytest.raises(TypeError, match="dimension_ordre"):
        VideoClips(paths, frames_per_clip=2, dimension_ordre="NHWC")


def test_one_path_is_not_many_videos(paths: list[str]) -> None:
    with pytest.raises(TypeError, match="list of one"):
        VideoClips(paths[0], frames_per_clip=2)


def test_a_clip_that_is_not_there_is_an_index_error(paths: list[str]) -> None:
    dataset = VideoClips(paths[:2], frames_per_clip=2, clips_per_video=2)
    with pytest.raises(IndexError, match="4"):
        dataset[4]
    with pytest.raises(IndexError, match="-5"):
        dataset[-5]
    assert len([*dataset]) == 4


def test_a_video_that_is_none_is_named_when_it_is_needed(paths: list[str], media: Path) -> None:
    dataset = VideoClips([paths[0], str(media / "broken_text.mp4")], frames_per_clip=2)
    assert len(dataset[0]) == 2
    with pytest.raises(reeld.MediaError):
        dataset[1]
