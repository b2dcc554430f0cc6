"""Random programs of decoder calls have the same answers from TorchCodec and from this package.

A few hundred of them here; `script/bench fuzz-parity` runs thousands. Also shown: that a wrong answer would
be found, and made short.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parity import clips, generator, pool, runner
from parity.oracle import InOrder
from parity.programs import Program
from parity.shrink import shrunk
from support import SUBJECT, Daemon, Reference, assert_same

only_ours = pytest.mark.skipif(SUBJECT == "torchcodec", reason="TorchCodec's decoders cannot be pickled")

SEED = 20_26
PROGRAM_COUNT = 250


@only_ours
# Half a minute on two idle processors.
@pytest.mark.timeout(1800)
def test_a_few_hundred_programs_have_torchcodecs_answers(daemon: Daemon, tmp_path: Path) -> None:
    programs = (generator.program(SEED, number) for number in range(PROGRAM_COUNT))
    process_count = min(2, len(os.sched_getaffinity(0)))
    report = pool.run_all(programs, process_count=process_count, log=tmp_path / "log")
    assert report.program_count == PROGRAM_COUNT
    words = [f"{found['words']}: {found.get('shortest', found['program'])}" for found in report.differences]
    assert not words, "\n".join(words)
    # They were about something: most of the calls, and most of the files.
    assert report.calls.keys() >= {"get_frames_at", "get_frames_played_at", "[]", "pickle", "submit"}
    assert len(report.clips) > len(clips.all_clips()) // 2
    assert report.verdicts[runner.SAME] > 0.9 * report.verdicts.total()


def test_a_program_is_the_same_each_time_and_survives_json() -> None:
    for number in range(50):
        program = generator.program(SEED, number)
        assert program == generator.program(SEED, number)
        assert Program.from_json(program.to_json()).to_json() == program.to_json()


class OffByOne(Reference):
    """A decoder with a mistake: where it is asked for five frames or more, the third is the one behind it."""

    def get_frames_at(self, indices: Any) -> Any:
        """As TorchCodec's, but for the mistake."""
        indices = list(indices)
        if len(indices) >= 5:
            indices[2] += 1
        return super().get_frames_at(indices)


WRONG = replace(runner.REFERENCE, decoder=OffByOne)
WITH_A_DIFFERENCE = Program(
    clip="h264_bframes.mp4",
    source="Path",
    options=(("dimension_order", "NHWC"), ("num_ffmpeg_threads", 2)),
    calls=(
        ("get_frame_at", 3),
        ("get_frames_at", [1, 2, 3]),
        ("get_frames_at", [4, 9, 2, 30, 31, 32, 12, 7]),
        ("len",),
    ),
)


def test_a_wrong_frame_is_found(media: Path) -> None:
    verdicts = [finding.verdict for finding in runner.run(WITH_A_DIFFERENCE, ours=WRONG)]
    # The first is the opening.
    assert verdicts == ["same", "same", "same", "different", "same"]


def test_a_program_with_a_difference_is_made_as_short_as_can_be(media: Path) -> None:
    def still_differs(program: Program) -> bool:
        return any(finding.verdict == "different" for finding in runner.run(program, ours=WRONG))

    short = shrunk(WITH_A_DIFFERENCE, still_differs)
    ((name, indices),) = short.calls
    assert (name, len(indices)) == ("get_frames_at", 5)
    assert short == replace(WITH_A_DIFFERENCE, source="str", options=(), calls=short.calls)


@pytest.mark.parametrize(
    "clip", ["h264_open_gop.mp4", "edit_list_cut_open_gop.mp4", "two_videos.mkv", "rotated_90.mp4"]
)
def test_frames_in_order_are_those_that_torchcodec_seeks(media: Path, clip: str) -> None:
    in_order, seeking = InOrder(Program(clip=clip)), Reference(str(media / clip))
    count = len(seeking)
    assert_same(in_order.get_frames_at(range(count)), seeking.get_frames_at(range(count)))
    begin, end = seeking.metadata.begin_stream_seconds, seeking.metadata.end_stream_seconds
    times = [begin + (end - begin) * step / 100 for step in range(100)]
    assert_same(in_order.get_frames_played_at(times), seeking.get_frames_played_at(times))
    for start in times[::7]:
        stop = (start + end) / 2
        for fps in (None, 12):
            assert_same(
                in_order.get_frames_played_in_range(start, stop, fps),
                seeking.get_frames_played_in_range(start, stop, fps),
            )
    # Last, because TorchCodec does not take note of where these lead it.
    for seconds in times:
        assert_same(in_order.get_frame_played_at(seconds), seeking.get_frame_played_at(seconds))


@pytest.mark.parametrize("form", ["str", "bytes", "file"])
def test_frames_in_order_know_mappings(media: Path, form: str) -> None:
    mapping = {"mappings": {"form": form, "count": 1000, "prefix": ""}}
    program = Program(clip="h264_open_gop.mp4", options=(("custom_frame_mappings", mapping),))
    seeking = Reference(str(media / program.clip))
    assert_same(InOrder(program).get_frames_at([0, 20, 7]), seeking.get_frames_at([0, 20, 7]))
    crop = {"transform": "RandomCrop", "arguments": [[40, 50]]}
    cropped = replace(program, options=(*program.options, ("transforms", [crop])))
    assert_same(
        InOrder(cropped).get_frame_at(7), runner.opened(runner.REFERENCE, cropped).value.get_frame_at(7)
    )


def test_who_crashed_is_told_by_this_package_alone(tmp_path: Path) -> None:
    worker = pool._Worker(tmp_path / "log")
    process = worker._process.pid
    assert process is not None
    # So that it is in the middle of the program, and not behind it, when it ends.
    os.kill(process, signal.SIGSTOP)
    worker.begin(Program(clip="h264_bframes.mp4", calls=(("len",),)))
    os.kill(process, signal.SIGKILL)
    _, (finding,) = worker.finish()
    worker.end()
    assert finding["verdict"] == pool.REFERENCE_CRASHED
    assert finding["words"] == "the process crashed by SIGKILL; with this package alone it came to its end"
