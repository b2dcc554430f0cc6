"""`reeld.compat`, and `script/compat`'s program on a checkout that is made up here.

TorchCodec's own tests are not run here: nobody has a checkout of them who has one of this repository.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from reeld import compat
from reeld.metadata import StreamMetadata
from support import CLIPS, REPOSITORY, Reference, VideoDecoder, assert_same_outcome

RUN = REPOSITORY / "tests" / "compat" / "run.py"

# Files as those of a checkout, newer than any TorchCodec that is installed.
CHECKOUT = {
    "test/__init__.py": "",
    "test/conftest.py": "from .utils import VideoDecoder\n",
    "test/utils.py": "from torchcodec.decoders import VideoDecoder\n",
    "test/test_decoders.py": """
        import os
        import pytest
        import torchcodec
        from torchcodec import FrameBatch, NameOfTheFuture
        from torchcodec._core._metadata import StreamMetadata
        from torchcodec.module_of_the_future import Anything
        from .utils import VideoDecoder

        MEDIA = os.environ["COMPAT_TEST_MEDIA"]

        class TestDecoder:
            def test_frames(self):
                decoder = VideoDecoder(MEDIA)
                assert isinstance(decoder.metadata, StreamMetadata)
                assert isinstance(decoder.get_frames_at([0]), FrameBatch)

            def test_is_reeld(self):
                assert VideoDecoder.__module__.startswith("reeld.")

            def test_is_torchcodec(self):
                assert VideoDecoder.__module__.startswith("torchcodec.")

            @pytest.mark.skip(reason="always")
            def test_skipped(self):
                raise AssertionError

            @pytest.mark.parametrize("use", [NameOfTheFuture, Anything])
            def test_placeholder(self, use):
                with pytest.raises(RuntimeError, match="is not in the installed TorchCodec"):
                    use()
                assert not hasattr(use, "anything")

        class TestOther:
            def test_not_chosen(self):
                raise AssertionError
        """,
    "test/test_samplers.py": """
        import torchcodec.samplers
        from torchcodec.samplers import clips_at_random_indices
        from torchcodec.samplers._common import _POLICY_FUNCTIONS

        def test_policies():
            assert _POLICY_FUNCTIONS["repeat_last"]([1, 2], desired_len=3) == [1, 2, 2]
        """,
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    for name, text in CHECKOUT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def run(media: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COMPAT_TEST_MEDIA": str(media / "h264_bframes.mp4")}
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# Two runs of pytest, each of which imports torch, beside whatever else runs.
@pytest.mark.timeout(600)
def test_both_libraries_run_the_same_items_and_what_only_one_passes_is_named(
    checkout: Path, tmp_path: Path, media: Path
) -> None:
    result = run(media, checkout, "--reference", "--json", tmp_path / "out.json")
    assert result.returncode == 1, result.stdout + result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    ours, theirs = report["reeld"]["outcomes"], report["torchcodec"]["outcomes"]
    decoder = "test/test_decoders.py::TestDecoder::"
    assert ours == {
        decoder + "test_frames": "passed",
        decoder + "test_is_reeld": "passed",
        decoder + "test_is_torchcodec": "failed",
        decoder + "test_skipped": "skipped",
        decoder + "test_placeholder[NameOfTheFuture]": "passed",
        decoder + "test_placeholder[Anything]": "passed",
        "test/test_samplers.py::test_policies": "passed",
    }
    swapped = {decoder + "test_is_reeld": "failed", decoder + "test_is_torchcodec": "passed"}
    assert theirs == {**ours, **swapped}
    assert report["failed_here_only"] == [decoder + "test_is_torchcodec"]
    assert report["reeld"]["placeholders"] == [
        "torchcodec.NameOfTheFuture",
        "torchcodec.module_of_the_future",
        "torchcodec.module_of_the_future.Anything",
    ]
    lines = {tuple(line.split()) for line in result.stdout.splitlines()}
    assert ("test/test_decoders.py", "4", "1", "1") in lines
    assert ("This", "checkout", "has", "no", "test/test_transform_ops.py.") in lines
    # Nothing was written into it.
    assert {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()} == set(
        CHECKOUT
    )


@pytest.mark.timeout(600)
def test_chosen_items_that_all_pass_end_with_0(checkout: Path, media: Path) -> None:
    result = run(media, checkout, "test/test_decoders.py::TestDecoder", "-k", "is_reeld")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 failed." in result.stdout


def test_what_is_no_checkout_is_said(tmp_path: Path, media: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        result = run(media, folder)
        assert result.returncode == 1
        assert str(folder) in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("policy", ["repeat_last", "wrap"])
def test_private_names_of_samplers_do_what_torchcodecs_do(policy: str) -> None:
    arguments = {"num_frames_per_clip": 5}
    their_policy = importlib.import_module("torchcodec.samplers._common")._POLICY_FUNCTIONS[policy]
    assert compat._POLICY_FUNCTIONS[policy]([1, 2, 3], desired_len=7) == their_policy(
        [1, 2, 3], desired_len=7
    )

    by_index = importlib.import_module("torchcodec.samplers._index_based")
    indices = {**arguments, "num_indices_between_frames": 2, "num_frames_in_video": 9}
    starts = torch.tensor([0, 3, 8])
    assert compat._build_all_clips_indices(
        clip_start_indices=starts, policy_fun=compat._POLICY_FUNCTIONS[policy], **indices
    ) == by_index._build_all_clips_indices(
        clip_start_indices=starts.tolist(), policy_fun=their_policy, **indices
    )

    by_time = importlib.import_module("torchcodec.samplers._time_based")
    times = {**arguments, "seconds_between_frames": 1.5, "end_stream_seconds": 5.0}
    assert compat._build_all_clips_timestamps(
        clip_start_seconds=[0, 1, 4.9], policy_fun=compat._POLICY_FUNCTIONS[policy], **times
    ) == by_time._build_all_clips_timestamps(clip_start_seconds=[0, 1, 4.9], policy_fun=their_policy, **times)


@pytest.mark.parametrize("clip", CLIPS)
def test_key_frames_are_torchcodecs(clip: str, media: Path) -> None:
    ours, reference = VideoDecoder(media / clip), Reference(media / clip)
    assert torch.equal(ours.key_frame_indices, reference._get_key_frame_indices())
    assert torch.equal(ours._get_key_frame_indices(), ours.key_frame_indices)


def test_key_frames_of_approximate_mode_are_unknown_to_both(media: Path) -> None:
    path = media / "h264_bframes.mp4"
    ours = VideoDecoder(path, seek_mode="approximate")
    reference = Reference(path, seek_mode="approximate")
    assert_same_outcome(ours._get_key_frame_indices, reference._get_key_frame_indices)


def test_mappings_are_read_into_the_same_columns() -> None:
    frames = [
        {"pts": 3 * number, "pkt_duration": "3", "key_frame": int(number % 4 == 0)} for number in range(9)
    ]
    text = json.dumps({"frames": frames})
    theirs = importlib.import_module("torchcodec.decoders._video_decoder")._read_custom_frame_mappings
    ours = compat._read_custom_frame_mappings(text)
    for our_column, their_column in zip(ours, theirs(text), strict=True):
        assert our_column.dtype == their_column.dtype
        assert torch.equal(our_column, their_column)


def test_metadata_can_be_replaced(media: Path) -> None:
    decoder = VideoDecoder(media / "h264_bframes.mp4")
    decoder.metadata = Reference(media / "h264_bframes.mp4").metadata
    assert isinstance(VideoDecoder(media / "h264_bframes.mp4").metadata, StreamMetadata)
    assert decoder._num_frames == len(decoder) == decoder.metadata.num_frames
