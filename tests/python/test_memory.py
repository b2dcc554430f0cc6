"""Results are views of the shared arena: not copied, writable, given back with the last view, in a quota."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reeld
import torch
from support import (
    Daemon,
    Reference,
    VideoDecoder,
    assert_same,
    chunks,
    digest,
    eventually,
    mapping_of,
    outcome,
    reference_digests,
    run_python,
)

ARENA = "memfd:reeld-arena"
CLIP = "h264_bframes.mp4"


@pytest.fixture(autouse=True)
def no_leases_before(daemon: Daemon) -> None:
    """What earlier tests held is dead by now; its leases may still be on their way."""
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function` in a process of its own, which connects to the daemon that REELD_SOCKET names now."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(timeout=100)


# ------------------------------------------------------------------------------------------ no copy


def test_a_frame_lies_in_the_arena(media: Path) -> None:
    frame = VideoDecoder(str(media / CLIP)).get_frame_at(3)
    assert ARENA in mapping_of(frame.data.data_ptr())


def test_a_batch_lies_in_the_arena_from_its_first_byte_to_its_last(media: Path) -> None:
    data = VideoDecoder(str(media / CLIP)).get_frames_at([3, 17]).data
    assert ARENA in mapping_of(data.data_ptr())
    assert ARENA in mapping_of(data.data_ptr() + data.nbytes - 1)


def test_subscripts_and_slices_lie_in_the_arena(media: Path) -> None:
    decoder = VideoDecoder(str(media / CLIP), dimension_order="NHWC")
    assert ARENA in mapping_of(decoder[5].data_ptr())
    assert ARENA in mapping_of(decoder[5:9].data_ptr())


def test_numpy_sees_the_same_memory(media: Path) -> None:
    data = VideoDecoder(str(media / CLIP)).get_frame_at(3).data
    array = np.asarray(data)
    assert array.ctypes.data == data.data_ptr()
    assert ARENA in mapping_of(array.ctypes.data)


def test_numpy_alone_gets_views_of_the_arena(media: Path) -> None:
    # An interpreter in which torch cannot be imported stands for one in which it is not installed.
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from reeld.decoders import VideoDecoder
decoder = VideoDecoder(sys.argv[1])
frame = decoder.get_frame_at(3)
array = np.asarray(frame.data)
print(array.shape, array.dtype, array.flags.writeable, frame.pts_seconds)
print(hex(array.ctypes.data))
print(open("/proc/self/maps").read())
"""
    result = run_python(code, str(media / CLIP))
    assert result.returncode == 0, result.stderr
    facts, address, *maps = result.stdout.splitlines()
    assert facts == "(3, 180, 320) uint8 True 0.12"
    spans = [line.split()[0].split("-") for line in maps if ARENA in line]
    assert any(int(start, 16) <= int(address, 16) < int(end, 16) for start, end in spans)


def test_frames_can_be_written_to_and_the_next_one_is_clean(media: Path) -> None:
    decoder, expected = VideoDecoder(str(media / CLIP)), Reference(str(media / CLIP))[4]
    for _ in range(3):
        frame = decoder.get_frame_at(4)
        assert torch.equal(frame.data, expected)
        frame.data.fill_(255)
        frame.data[0, :5] //= 2
        assert np.asarray(frame.data).flags.writeable


def test_frames_that_are_held_do_not_change(media: Path) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    held = [decoder.get_frame_at(index) for index in range(50)]
    for index in range(49, -1, -1):
        decoder.get_frame_at(index)
    expected = reference_digests(media / CLIP)
    assert [digest(frame.data) for frame in held] == expected


# ------------------------------------------------------------------------------------------- leases


def test_a_lease_lives_as_long_as_any_view(media: Path, daemon: Daemon) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    frames = decoder.get_frames_at([1, 2, 3])
    assert daemon.lease_count() == 1
    view = np.asarray(frames.data[1:])[0]
    del frames
    gc.collect()
    assert daemon.lease_count() == 1
    assert digest(view) == reference_digests(media / CLIP)[2]
    del view
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the lease is given back when its last view has died")


def test_a_view_may_die_in_another_thread(media: Path, daemon: Daemon) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    held = [decoder.get_frame_at(index).data for index in range(20)]
    assert daemon.lease_count() == 20
    thread = threading.Thread(target=held.clear, name="undertaker")
    thread.start()
    thread.join()
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases are given back from the other thread")


def test_threads_share_one_decoder(media: Path, daemon: Daemon) -> None:
    decoder, expected = VideoDecoder(str(media / CLIP)), reference_digests(media / CLIP)
    wrong: list[int] = []

    def work(start: int) -> None:
        for step in range(60):
            index = (start + step * 7) % 50
            if digest(decoder[index]) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(start,), name=f"reader-{start}") for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    eventually(lambda: daemon.lease_count() == 0, "all leases of the threads are given back")


def test_a_decoder_may_die_before_its_frames(media: Path) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    frame = decoder.get_frame_at(9)
    del decoder
    gc.collect()
    for index in range(9):
        VideoDecoder(str(media / CLIP)).get_frame_at(index)
    assert digest(frame.data) == reference_digests(media / CLIP)[9]


# ---------------------------------------------------------------------------------- sizes and quota


def test_ten_thousand_frames_in_one_result(media: Path) -> None:
    ours, reference = VideoDecoder(str(media / "many_frames.mp4")), Reference(str(media / "many_frames.mp4"))
    assert len(ours) == len(reference) == 10_000
    assert_same(ours.get_frames_at(range(10_000)), reference.get_frames_at(range(10_000)))


def test_three_hundred_mebibytes_in_one_result(media: Path) -> None:
    ours, reference = (
        VideoDecoder(str(media / "large_result.mp4")),
        Reference(str(media / "large_result.mp4")),
    )
    frames = ours.get_frames_in_range(0, len(ours))
    assert frames.data.nbytes > 300 << 20
    assert "memfd:reeld" in mapping_of(frames.data.data_ptr())
    for part in chunks(reference, range(len(reference))):
        assert_same(frames.data[part[0] : part[-1] + 1], reference.get_frames_at(part).data)


def keep_all(file: str) -> list[str]:
    """Every frame asked for alone and kept until the end."""
    decoder = VideoDecoder(file)
    kept = [decoder[index] for index in range(len(decoder))]
    return [digest(frame) for frame in kept]


def keep_until_refused(file: str) -> tuple[str, str]:
    """A result above the quota: the class of the error and its sentence."""
    decoder = VideoDecoder(file)
    result = outcome(lambda: decoder.get_frames_at(range(len(decoder))))
    assert isinstance(result.error, reeld.NoSlotsError)
    # The connection has survived it.
    decoder.get_frame_at(0)
    return type(result.error).__name__, str(result.error)


def test_keeping_a_video_of_ten_quotas_works(media: Path, start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("--client-memory-mib", "8")
    file = media / "ten_quotas.mp4"
    assert in_new_process(keep_all, str(file)) == reference_digests(file)
    eventually(lambda: daemon.lease_count() == 0, "the leases of the ended process are given back")


def test_a_result_above_the_quota_is_refused_by_name(
    media: Path, start_daemon: Callable[..., Daemon]
) -> None:
    start_daemon("--client-memory-mib", "8")
    name, sentence = in_new_process(keep_until_refused, str(media / "ten_quotas.mp4"))
    assert name == "NoSlotsError"
    assert "8" in sentence
