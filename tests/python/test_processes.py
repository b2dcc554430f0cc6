"""Many processes at once: all frames right, each stretch decoded about once, nothing left over afterwards."""

from __future__ import annotations

import gc
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TWENTY, Daemon, VideoDecoder, digest, eventually, reference_digests, run_together

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

PROCESS_COUNT = 8
# The frames of one file, by its path.
Expected = dict[str, list[str]]


@pytest.fixture(autouse=True)
def nothing_is_left_over(daemon: Daemon) -> Iterator[None]:
    """After each of these tests no process holds a lease and no request is open."""
    yield
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "zero leases after the processes have exited")
    eventually(lambda: daemon.status()["request_count"] == 0, "no request is open")
    eventually(lambda: daemon.status()["quarantined_count"] == 0, "no slot waits for an engine")


def read_at_random(number: int, expected: Expected, request_count: int) -> list[str]:
    """Asks for random frames of random files, alone and in batches; returns what was wrong."""
    choice = random.Random(number)
    decoders = {path: VideoDecoder(path) for path in expected}
    wrong = []
    for _ in range(request_count):
        path = choice.choice(list(expected))
        indices = choice.choices(range(len(expected[path])), k=choice.choice((1, 1, 4, 9)))
        frames = decoders[path].get_frames_at(indices).data
        for index, frame in zip(indices, frames, strict=True):
            if digest(frame) != expected[path][index]:
                wrong.append(f"{path} frame {index}")
    return wrong


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_eight_processes_on_one_file(media: Path, method: str) -> None:
    file = media / "h264_bframes.mp4"
    expected = {str(file): reference_digests(file)}
    assert run_together(method, read_at_random, PROCESS_COUNT, expected, 60) == [[]] * PROCESS_COUNT


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_eight_processes_on_twenty_files(media: Path, method: str) -> None:
    expected = {str(media / name): reference_digests(media / name) for name in TWENTY}
    assert run_together(method, read_at_random, PROCESS_COUNT, expected, 60) == [[]] * PROCESS_COUNT


def read_one_gop(_number: int, path: str) -> list[str]:
    """The digests of all frames of a file, asked for at once."""
    return [digest(frame) for frame in VideoDecoder(path).get_frames_at(range(50)).data]


def test_eight_that_ask_for_one_gop_at_once_cost_about_one_decode(
    media: Path, start_daemon: Callable[..., Daemon]
) -> None:
    # A daemon that has seen nothing yet, so that nothing comes from its picture cache.
    own = start_daemon()
    file = media / "h264_one_gop.mp4"
    answers = run_together("spawn", read_one_gop, PROCESS_COUNT, str(file))
    assert answers == [reference_digests(file)] * PROCESS_COUNT
    assert 50 <= own.status()["totals"]["pictures_decoded"] <= 2 * 50


def open_and_leave(number: int, path: str) -> bool:
    """Holds frames and ends without letting go of them."""
    decoder = VideoDecoder(path)
    globals()["held_for_ever"] = [decoder.get_frame_at(number), decoder.get_frames_at([1, 2, 3])]
    return True


def test_processes_that_end_with_frames_in_their_hands(media: Path) -> None:
    assert all(run_together("fork", open_and_leave, PROCESS_COUNT, str(media / "twenty_03.mp4")))


def use_decoder(number: int, decoder: Any) -> str:
    """The digest of one frame from a decoder that came as an argument."""
    return digest(decoder.get_frame_at(number).data)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_decoder_travels_to_other_processes(media: Path, method: str) -> None:
    file = media / "h264_bframes.mp4"
    decoder = VideoDecoder(str(file))
    decoder.get_frame_at(0)
    assert run_together(method, use_decoder, 3, decoder) == reference_digests(file)[:3]


def test_a_decoder_survives_pickling_with_its_arguments(media: Path) -> None:
    decoder = VideoDecoder(
        str(media / "two_videos.mkv"), stream_index=1, dimension_order="NHWC", seek_mode="approximate"
    )
    copy = pickle.loads(pickle.dumps(decoder))
    assert copy.stream_index == 1
    assert copy.metadata == decoder.metadata
    assert copy[3].shape == decoder[3].shape == (128, 224, 3)
    assert digest(copy[3]) == digest(decoder[3])


def test_a_frame_survives_pickling_by_value(media: Path) -> None:
    frame = VideoDecoder(str(media / "h264_bframes.mp4")).get_frame_at(3)
    copy = pickle.loads(pickle.dumps(frame))
    assert digest(copy.data) == digest(frame.data)
    assert copy.data.data_ptr() != frame.data.data_ptr()
    assert copy.pts_seconds == frame.pts_seconds


def test_without_a_picture_cache_frames_are_right_too(
    media: Path, start_daemon: Callable[..., Daemon]
) -> None:
    own = start_daemon("--engine-cache-mib", "0")
    file = media / "h264_bframes.mp4"
    expected = {str(file): reference_digests(file)}
    assert run_together("spawn", read_at_random, 2, expected, 40) == [[], []]
    assert own.status()["totals"]["cache_hits"] == 0
