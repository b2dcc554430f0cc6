"""A forked child neither crashes, nor reads wrong pixels, nor gives back what its parent holds."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Daemon, VideoDecoder, digest, eventually, reference_digests

CLIP = "h264_bframes.mp4"

# Python 3.12 warns of forking with threads around. That it works all the same is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def fork(work: Callable[[], bool]) -> int:
    """Forks; the child runs `work` and ends at once, with 0 where it returned True."""
    pid = os.fork()
    if pid == 0:
        # As a DataLoader does in its workers: the threads that OpenMP had in the parent are not here, and
        # torch would wait for them.
        torch.set_num_threads(1)
        status = 1
        try:
            status = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def exit_code(pid: int) -> int:
    """Waits for a child; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def expected(media: Path) -> list[str]:
    """The digest of every frame, as TorchCodec decodes it."""
    return reference_digests(media / CLIP)


def test_parent_and_children_use_one_decoder_at_the_same_time(media: Path, expected: list[str]) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    decoder.get_frame_at(10)

    def read(start: int, step: int) -> bool:
        indices = [(start + number * step) % 50 for number in range(100)]
        return all(digest(decoder[index]) == expected[index] for index in indices)

    children = [fork(lambda start=start: read(start, 3)) for start in range(4)]
    assert read(49, -7)
    assert [exit_code(child) for child in children] == [0, 0, 0, 0]
    assert read(0, 1)


def test_a_child_opens_decoders_of_its_own(media: Path, expected: list[str]) -> None:
    VideoDecoder(str(media / CLIP)).get_frame_at(0)
    child = fork(lambda: [digest(frame) for frame in VideoDecoder(str(media / CLIP))] == expected)
    assert exit_code(child) == 0


def test_a_child_that_drops_what_it_inherited_releases_nothing(
    media: Path, daemon: Daemon, expected: list[str]
) -> None:
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")
    decoder = VideoDecoder(str(media / CLIP))
    held = [decoder.get_frame_at(index) for index in (4, 5, 6)]

    def drop() -> bool:
        held.clear()
        gc.collect()
        # Asking for something flushes what the client library would have to say.
        return digest(decoder[20]) == expected[20]

    assert exit_code(fork(drop)) == 0
    assert daemon.lease_count() == 3
    for index in range(50):
        decoder.get_frame_at(index)
    assert [digest(frame.data) for frame in held] == expected[4:7]


def test_what_a_child_inherited_stays_right_while_the_parent_goes_on(
    media: Path, expected: list[str]
) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    held = [decoder.get_frame_at(7)]
    wait_end, go_end = os.pipe()

    def look_later() -> bool:
        os.close(go_end)
        # Ends when the parent closes its end of the pipe.
        os.read(wait_end, 1)
        return digest(held[0].data) == expected[7]

    child = fork(look_later)
    os.close(wait_end)
    held.clear()
    gc.collect()
    for _ in range(4):
        for index in range(50):
            decoder.get_frame_at(index)
    os.close(go_end)
    assert exit_code(child) == 0


def test_leases_come_back_after_the_children_are_gone(media: Path, daemon: Daemon) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    held = [decoder.get_frame_at(7)]
    children = [fork(lambda: decoder.get_frame_at(3) is not None) for _ in range(3)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    held.clear()
    gc.collect()
    # What was held back for the children is given back with the parent's next words at the latest.
    decoder.get_frame_at(0)
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "no lease is left after the children have ended")


def test_a_killed_child_takes_nothing_with_it(media: Path, daemon: Daemon, expected: list[str]) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    frame = decoder.get_frame_at(11)
    ready_end, say_end = os.pipe()

    def hold_for_ever() -> bool:
        kept = decoder.get_frames_at(range(10))
        os.write(say_end, b"x")
        signal.pause()
        return kept is not None

    child = fork(hold_for_ever)
    os.read(ready_end, 1)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    os.close(ready_end)
    os.close(say_end)
    assert digest(frame.data) == expected[11]
    del frame
    gc.collect()
    decoder.get_frame_at(0)
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of the killed child are given back")


def test_a_grandchild_is_a_child_too(media: Path, expected: list[str]) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    decoder.get_frame_at(1)

    def have_a_child() -> bool:
        mine = digest(decoder[2]) == expected[2]
        return mine and exit_code(fork(lambda: digest(decoder[3]) == expected[3])) == 0

    assert exit_code(fork(have_a_child)) == 0
