"""Transforms: frames equal TorchCodec's with tolerance 0, whoever wrote the objects; so do errors."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reeld
import reeld.transforms
import torch
import torchcodec.transforms
from support import (
    CLIPS,
    SUBJECT,
    Reference,
    VideoDecoder,
    assert_error_fits,
    assert_same,
    assert_same_outcome,
    outcome,
    run_python,
)
from torchvision.transforms import v2

# What comes out of these is decided by the height and the width of a clip; `kind` has the three classes.
LOOKS: dict[str, Callable[[Any, int, int], list[Any]]] = {
    # To a width of 32 by libswscale alone, where the clip's is one too; else by filters.
    "resize": lambda kind, height, width: [kind.Resize((90, 160))],
    "resize_odd": lambda kind, height, width: [kind.Resize((91, 161))],
    "enlarge": lambda kind, height, width: [kind.Resize((height * 2, width * 2))],
    "same_size": lambda kind, height, width: [kind.Resize((height, width))],
    "center": lambda kind, height, width: [kind.CenterCrop((height // 2 + 1, width // 2))],
    # Odd remainders of 1 and 3, whose halves are rounded to different sides.
    "center_odd": lambda kind, height, width: [kind.CenterCrop((height - 1, width - 3))],
    "random": lambda kind, height, width: [kind.RandomCrop((height // 2, width // 3))],
    "resize_random": lambda kind, height, width: [kind.Resize((100, 200)), kind.RandomCrop((50, 77))],
    "crop_resize": lambda kind, height, width: [
        kind.CenterCrop((height // 2 + 1, width // 2)),
        kind.Resize((64, 64)),
    ],
    "resize_twice": lambda kind, height, width: [kind.Resize((64, 64)), kind.Resize((96, 96))],
}
DTYPES = [torch.uint8, torch.float32, "auto"]

ALL = [(clip, look, dtype) for clip in CLIPS for look in LOOKS for dtype in DTYPES]
# Each clip with one look and type; all looks and types come up.
CHOSEN = [(clip, list(LOOKS)[place % 10], DTYPES[place % 3]) for place, clip in enumerate(CLIPS)]

OURS: Any = reeld.transforms if SUBJECT == "reeld" else torchcodec.transforms


def decoder(make: Any, kind: Any, file: Path, look: str, **arguments: Any) -> Any:
    """A decoder with a look, whose random places are always the same."""
    header = Reference(str(file)).metadata
    torch.manual_seed(5)
    return make(str(file), transforms=LOOKS[look](kind, header.height, header.width), **arguments)


def assert_frames_are_equal(file: Path, look: str, dtype: Any) -> None:
    ours = decoder(VideoDecoder, OURS, file, look, output_dtype=dtype)
    reference = decoder(Reference, torchcodec.transforms, file, look, output_dtype=dtype)
    last = len(reference) - 1
    # Twice the same frame: decoded, and out of the cache.
    indices = [0, last // 2, last // 2, last]
    assert_same(ours.get_frames_at(indices), reference.get_frames_at(indices))
    assert_same(ours.get_frames_at(indices), reference.get_frames_at(indices))
    assert_same(ours.get_frame_at(last // 3), reference.get_frame_at(last // 3))


@pytest.mark.parametrize(("clip", "look", "dtype"), CHOSEN)
def test_frames_equal_torchcodecs(media: Path, clip: str, look: str, dtype: Any) -> None:
    assert_frames_are_equal(media / clip, look, dtype)


@pytest.mark.full
@pytest.mark.parametrize(("clip", "look", "dtype"), [cell for cell in ALL if cell not in CHOSEN])
def test_frames_equal_torchcodecs_in_all_combinations(media: Path, clip: str, look: str, dtype: Any) -> None:
    assert_frames_are_equal(media / clip, look, dtype)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("clip", ["rotated_90.mp4", "width_32.mp4", "odd_both.webm"])
def test_looks_of_turned_and_odd_videos(media: Path, clip: str, look: str) -> None:
    assert_frames_are_equal(media / clip, look, torch.uint8)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", [v2, torchcodec.transforms], ids=["torchvision", "torchcodec"])
def test_objects_of_others_do_the_same(media: Path, kind: Any, look: str) -> None:
    file = media / "h264_bframes.mp4"
    own = decoder(VideoDecoder, OURS, file, look)
    foreign = decoder(VideoDecoder, kind, file, look)
    assert_same(foreign.get_frames_at([0, 7]), own.get_frames_at([0, 7]))


def test_random_places_are_torchs_random_numbers(media: Path) -> None:
    file = str(media / "h264_bframes.mp4")

    def drawn(make: Any, kind: Any) -> list[torch.Tensor]:
        torch.manual_seed(1234)
        crop = kind.RandomCrop((60, 80))
        frames = [make(file, transforms=[crop, kind.RandomCrop((30, 20))])[3].clone() for _ in range(3)]
        return [*frames, torch.randint(0, 1 << 30, (4,))]

    for ours, reference in zip(
        drawn(VideoDecoder, OURS), drawn(Reference, torchcodec.transforms), strict=True
    ):
        assert torch.equal(ours, reference)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda kind: [kind.Resize((0, 5))],
    "negative": lambda kind: [kind.CenterCrop((5, -3))],
    "one_number": lambda kind: [kind.Resize([100])],
    "three_numbers": lambda kind: [kind.RandomCrop((1, 2, 3))],
    "no_pair": lambda kind: [kind.CenterCrop(100)],
    "a_word": lambda kind: [kind.Resize(("wide", 100))],
    "crop_too_high": lambda kind: [kind.CenterCrop((1000, 5))],
    "crop_too_wide": lambda kind: [kind.CenterCrop((5, 1000))],
    "random_too_large": lambda kind: [kind.RandomCrop((1000, 5))],
    "crop_of_a_crop": lambda kind: [kind.CenterCrop((10, 10)), kind.CenterCrop((11, 10))],
    "bicubic": lambda _: [v2.Resize((100, 100), interpolation=v2.InterpolationMode.BICUBIC)],
    "no_antialias": lambda _: [v2.Resize((100, 100), antialias=False)],
    "shorter_side": lambda _: [v2.Resize(100)],
    "max_size": lambda _: [v2.Resize(None, max_size=100)],
    "padding": lambda _: [v2.RandomCrop((100, 100), padding=5)],
    "pad_if_needed": lambda _: [v2.RandomCrop((100, 100), pad_if_needed=True)],
    "fill": lambda _: [v2.RandomCrop((100, 100), fill=255)],
    "padding_mode": lambda _: [v2.RandomCrop((100, 100), padding_mode="edge")],
    "flip": lambda _: [v2.RandomHorizontalFlip(p=1.0)],
    "composed": lambda _: [v2.Compose([v2.Resize((100, 100))])],
    "no_list": lambda kind: kind.Resize((100, 100)),
    "no_transform": lambda _: ["resize, 100, 100"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_torchcodec_refuses_is_refused_by_the_same_class(media: Path, case: str) -> None:
    file = str(media / "h264_bframes.mp4")
    refused = outcome(lambda: Reference(file, transforms=REFUSED[case](torchcodec.transforms))).error
    assert refused is not None
    error = outcome(lambda: VideoDecoder(file, transforms=REFUSED[case](OURS))).error
    assert error is not None
    assert_error_fits(error, type(refused))


@pytest.mark.parametrize("transforms", [None, [], ()])
def test_no_transforms_are_none(media: Path, transforms: Any) -> None:
    file = str(media / "h264_bframes.mp4")
    assert_same(VideoDecoder(file, transforms=transforms)[2], Reference(file)[2])


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_shapes_are_those_after_the_transforms_and_metadata_those_before(media: Path, order: Any) -> None:
    file = str(media / "h264_bframes.mp4")
    arguments: dict[str, Any] = {
        "transforms": [torchcodec.transforms.Resize((40, 50))],
        "dimension_order": order,
    }
    ours, reference = VideoDecoder(file, **arguments), Reference(file, **arguments)
    assert_same(ours[0:0], reference[0:0])
    assert_same(ours[0:3], reference[0:3])
    for field in ("height", "width", "num_frames"):
        assert getattr(ours.metadata, field) == getattr(reference.metadata, field)


@pytest.mark.parametrize("clip", ["hevc_10bit.mp4", "h264_422.mp4", "rotated_90.mp4"])
def test_type_is_chosen_by_the_depth(media: Path, clip: str) -> None:
    file = str(media / clip)
    ours, reference = (make(file, output_dtype="auto") for make in (VideoDecoder, Reference))
    assert_same(ours.get_frames_at([0, 4]), reference.get_frames_at([0, 4]))


def test_times_of_transformed_frames_are_the_videos(media: Path) -> None:
    file = str(media / "variable_rate.mp4")
    transforms = [torchcodec.transforms.CenterCrop((31, 33))]
    ours, reference = VideoDecoder(file, transforms=transforms), Reference(file, transforms=transforms)
    for call in (
        lambda decoder: decoder.get_frame_played_at(0.5),
        lambda decoder: decoder.get_frames_played_at([1.9, 0.0]),
        lambda decoder: decoder.get_frames_played_in_range(0.1, 0.9),
        lambda decoder: decoder.get_frames_in_range(3, 20, 4),
    ):
        assert_same_outcome(lambda call=call: call(ours), lambda call=call: call(reference))


def test_pictures_of_another_size_are_transformed_from_their_own(media: Path, tmp_path: Path) -> None:
    # TorchCodec does not find frames of MPEG-TS by index; in Matroska it does.
    file = tmp_path / "size_change.mkv"
    source = ["-i", str(media / "size_change.ts"), "-c", "copy", str(file)]
    subprocess.run(["ffmpeg", "-v", "error", *source], check=True)
    reference = Reference(str(file))
    shapes = {tuple(reference[index].shape) for index in (0, 49)}
    assert shapes == {(3, 120, 160), (3, 180, 320)}
    for kind in (torchcodec.transforms.Resize, torchcodec.transforms.CenterCrop):
        for size in ((64, 64), (51, 49)):
            transforms = [kind(size)]
            ours, reference = (make(str(file), transforms=transforms) for make in (VideoDecoder, Reference))
            # Some of the frames between have equal times, of which each library finds another.
            for index in [*range(0, 22, 3), *range(30, 50, 3)]:
                assert_same(ours.get_frame_at(index), reference.get_frame_at(index))


def test_transforms_of_callers_own_are_asked_for_what_they_do(media: Path) -> None:
    class Lower(OURS.DecoderTransform):
        """The lower half."""

        def _make_transform_spec(self, input_dims: Any) -> str:
            height, width = input_dims
            return f"crop, {height // 2}, {width}, 0, {height - height // 2}"

        def _get_output_dims(self) -> None:
            return None

    file = str(media / "h264_bframes.mp4")
    whole = VideoDecoder(file)[1]
    half = whole.shape[1] // 2
    assert torch.equal(VideoDecoder(file, transforms=[Lower()])[1], whole[:, -half:])


if SUBJECT == "reeld":

    def test_copy_by_pickle_keeps_the_place_that_was_drawn(media: Path) -> None:
        file = str(media / "h264_bframes.mp4")
        decoder = VideoDecoder(file, transforms=[OURS.Resize((100, 120)), v2.RandomCrop((30, 40))])
        torch.manual_seed(1)
        state = torch.get_rng_state()
        copy = pickle.loads(pickle.dumps(decoder))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(copy[5], decoder[5])

    def test_looks_of_one_video_in_one_request_do_not_mix(media: Path) -> None:
        file = str(media / "h264_one_gop.mp4")
        whole = Reference(file)
        sizes = [(40 + number, 50 + 2 * number) for number in range(70)]
        decoders = [VideoDecoder(file, transforms=[OURS.CenterCrop(size)]) for size in sizes]
        crops = [Reference(file, transforms=[torchcodec.transforms.CenterCrop(size)])[9] for size in sizes]
        clips = [reeld.Clip(decoder, indices=[9, 2]) for decoder in decoders]
        # More looks than one message has room for. Decoded, from native pictures, from frames that were kept.
        for _ in range(3):
            first, *batches = reeld.submit([reeld.Clip(file, indices=[9, 2]), *clips]).result()
            assert_same(first, whole.get_frames_at([9, 2]))
            for batch, crop in zip(batches, crops, strict=True):
                assert_same(batch.data[0], crop)

    @pytest.mark.parametrize(
        "transforms",
        [[OURS.Resize((5, 5))] * 9, [OURS.Resize((70_000, 5))], [OURS.Resize((10_000, 10_000))]],
        ids=["nine", "too_high", "too_large"],
    )
    def test_more_than_the_daemon_does_is_an_error(media: Path, transforms: Any) -> None:
        with pytest.raises(reeld.RangeError, match="transform"):
            VideoDecoder(str(media / "h264_bframes.mp4"), transforms=transforms)

    def test_what_says_no_transform_is_refused(media: Path) -> None:
        class Flip(reeld.transforms.DecoderTransform):
            def _make_transform_spec(self, input_dims: Any) -> str:
                return "flip, 1"

        with pytest.raises(reeld.ArgumentTypeError, match="flip"):
            VideoDecoder(str(media / "h264_bframes.mp4"), transforms=[Flip()])

    def test_without_torch_numpy_draws_the_place(media: Path) -> None:
        code = """
import sys
sys.modules["torch"] = None
import numpy
from reeld.decoders import VideoDecoder
from reeld.transforms import RandomCrop, Resize
def drawn(seed):
    numpy.random.seed(seed)
    return VideoDecoder(sys.argv[1], transforms=[RandomCrop((60, 80))])[0]
frame = drawn(3)
assert type(frame) is numpy.ndarray and frame.shape == (3, 60, 80)
assert numpy.array_equal(frame, drawn(3)) and not numpy.array_equal(frame, drawn(4))
numpy.random.seed(3)
top, left = numpy.random.randint(180 - 60 + 1), numpy.random.randint(320 - 80 + 1)
assert numpy.array_equal(frame, VideoDecoder(sys.argv[1])[0][:, top : top + 60, left : left + 80])
assert VideoDecoder(sys.argv[1], transforms=[Resize((30, 20))])[0:0].shape == (0, 3, 30, 20)
"""
        result = run_python(code, str(media / "h264_bframes.mp4"))
        assert result.returncode == 0, result.stderr
