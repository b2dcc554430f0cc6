"""What the daemon does to frames before it delivers them: `Resize`, `CenterCrop` and `RandomCrop`.

Given to :class:`reeld.decoders.VideoDecoder`, as are the objects of TorchCodec and torchvision (v2) with
these names. Pixels are not touched here: this module checks the objects, draws what is random, and says the
rest to the native module.

Transforms, whoever wrote them, say what they do by a private method of TorchCodec's, `_make_transform_spec`.
It gives one of ``"resize, height, width"``, ``"center_crop, height, width"`` and
``"crop, height, width, left, top"``.

Example:
    >>> from reeld.decoders import VideoDecoder
    >>> from reeld.transforms import CenterCrop, Resize
    >>> VideoDecoder(video_path, transforms=[Resize((90, 160)), CenterCrop((64, 64))])[0].shape
    torch.Size([3, 64, 64])
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from reeld._native import Transform
from reeld.errors import ArgumentTypeError, InvalidRequestError, RangeError

if TYPE_CHECKING:
    from torch import nn
    from torchvision.transforms import v2

    Dims = tuple[int | None, int | None]

__all__ = ["CenterCrop", "DecoderTransform", "RandomCrop", "Resize"]

# As C's atoi, by which TorchCodec reads them: what follows the digits is ignored.
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)")
_SIDE_MAX = 2**31 - 1


class DecoderTransform(ABC):
    """The base of all transforms that decoders take.

    Transforms are applied in their order, to frames that were turned upright and converted to RGB. What a
    decoder delivers is then smaller: it takes less memory, and less time than transforming it afterwards.

    Example:
        >>> from reeld.transforms import DecoderTransform, Resize
        >>> isinstance(Resize((90, 160)), DecoderTransform)
        True
    """

    @abstractmethod
    def _make_transform_spec(self, input_dims: Dims) -> str:
        """What it does to frames of this height and width, in the words of TorchCodec's transforms."""

    def _get_output_dims(self) -> Dims | None:
        """Height and width of what it makes; None where it leaves them as they are."""
        return None


class _Sized(DecoderTransform):
    """A transform to frames of a given size."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = _checked_size(size, type(self).__name__)

    def _get_output_dims(self) -> Dims:
        return self.size[0], self.size[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


class Resize(_Sized):
    """Frames scaled to a size, bilinear and with antialiasing, whatever that does to their proportions.

    Args:
        size: Height and width of the result.

    Raises:
        InvalidRequestError: These are not two numbers. It is a ``ValueError``.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.transforms import Resize
        >>> VideoDecoder(video_path, transforms=[Resize((90, 160))]).get_frames_at([0, 5]).data.shape
        torch.Size([2, 3, 90, 160])
    """

    def _make_transform_spec(self, input_dims: Dims) -> str:
        return f"resize, {self.size[0]}, {self.size[1]}"


class CenterCrop(_Sized):
    """The middle of frames.

    Args:
        size: Height and width of the result, not larger than the frame.

    Raises:
        InvalidRequestError: These are not two numbers. It is a ``ValueError``.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.transforms import CenterCrop
        >>> VideoDecoder(video_path, transforms=[CenterCrop((100, 100))])[0].shape
        torch.Size([3, 100, 100])
    """

    def _make_transform_spec(self, input_dims: Dims) -> str:
        return f"center_crop, {self.size[0]}, {self.size[1]}"


class RandomCrop(_Sized):
    """A part of frames at a random place, which is drawn when a decoder is made and stays its place.

    It is drawn by ``torch.randint``, first the top row and then the left column, as TorchCodec and
    torchvision do: the same seed gives the same place. Without torch it is drawn by ``numpy.random.randint``.
    A pickled decoder keeps its place; the transform itself has none, and draws anew for each decoder that it
    is given to.

    Args:
        size: Height and width of the result, not larger than the frame.

    Raises:
        InvalidRequestError: These are not two numbers. It is a ``ValueError``.

    Example:
        >>> import torch
        >>> from reeld.decoders import VideoDecoder
        >>> from reeld.transforms import RandomCrop
        >>> _ = torch.manual_seed(0)
        >>> VideoDecoder(video_path, transforms=[RandomCrop((100, 100))])[0].shape
        torch.Size([3, 100, 100])
    """

    def _make_transform_spec(self, input_dims: Dims) -> str:
        height, width = input_dims
        if height is None or width is None:
            side = "height" if height is None else "width"
            raise InvalidRequestError(f"The video's header tells no {side}, which RandomCrop needs to know.")
        if height < self.size[0] or width < self.size[1]:
            raise RangeError(f"Input dimensions {input_dims} are smaller than the crop size {self.size}.")
        top = _random_below(height - self.size[0] + 1)
        left = _random_below(width - self.size[1] + 1)
        return f"crop, {self.size[0]}, {self.size[1]}, {left}, {top}"


class SettledTransform(DecoderTransform):
    """A transform in which nothing is left to be drawn: what a pickled decoder takes along."""

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def _make_transform_spec(self, input_dims: Dims) -> str:
        return self.spec


def settled(transforms: Iterable[DecoderTransform | nn.Module], input_dims: Dims) -> list[SettledTransform]:
    """Transforms of all kinds with everything random drawn, for frames of this height and width.

    Raises:
        InvalidRequestError: One of them is of a kind that decoders do not take, or has options of that kind.
        RangeError: Frames are smaller than a random crop.
        ArgumentTypeError: It is no list of transforms.
    """
    try:
        each = list(transforms)
    except TypeError:
        name = type(transforms).__name__
        raise ArgumentTypeError(f"transforms must be a list of transforms, not {name}.") from None
    # All are looked at before the first one draws.
    known = [_known(transform) for transform in each]
    specs: list[SettledTransform] = []
    for transform in known:
        specs.append(SettledTransform(transform._make_transform_spec(input_dims)))
        input_dims = transform._get_output_dims() or input_dims
    return specs


def native(transforms: Iterable[SettledTransform]) -> list[Transform]:
    """The same in the words of the native module.

    Raises:
        InvalidRequestError: One of them says something that is no transform.
        RangeError: A size or a place is not a positive number.
    """
    return [_native(transform.spec) for transform in transforms]


def _native(spec: str) -> Transform:
    name, *numbers = [part.strip() for part in spec.split(",")]
    if name == "resize" and len(numbers) == 2:
        height, width = (_integer(number, least=1) for number in numbers)
        return Transform.resize(height, width)
    if name == "center_crop" and len(numbers) == 2:
        height, width = (_integer(number, least=1) for number in numbers)
        return Transform.center_crop(height, width)
    if name == "crop" and len(numbers) == 4:
        height, width = (_integer(number, least=1) for number in numbers[:2])
        left, top = (_integer(number, least=0) for number in numbers[2:])
        return Transform.crop(top, left, height, width)
    raise ArgumentTypeError(
        f"The transform {spec!r} is not one that the daemon has: resize, crop, center_crop."
    )


def _integer(text: str, *, least: int) -> int:
    digits = _LEADING_INTEGER.match(text)
    if not digits:
        raise ArgumentTypeError(f"{text} cannot be converted to an int, for the size of a transform.")
    value = int(digits[1])
    if not least <= value <= _SIDE_MAX:
        kind = "positive" if least else "non-negative"
        raise RangeError(f"{text} must be a {kind} integer of 32 bits, for the size of a transform.")
    return value


def _known(transform: DecoderTransform | nn.Module) -> DecoderTransform:
    """The transform itself, TorchCodec's included, or the equivalent of torchvision's."""
    is_object = not isinstance(transform, type)
    if is_object and hasattr(transform, "_make_transform_spec") and hasattr(transform, "_get_output_dims"):
        return cast("DecoderTransform", transform)
    # Where nobody has imported it, none of its objects can be here.
    loaded = sys.modules.get("torchvision.transforms.v2")
    if loaded is not None and isinstance(transform, loaded.Resize):
        return _from_torchvision_resize(cast("v2.Resize", transform), loaded.InterpolationMode.BILINEAR)
    if loaded is not None and isinstance(transform, loaded.CenterCrop):
        return CenterCrop(_torchvision_size(cast("v2.CenterCrop", transform)))
    if loaded is not None and isinstance(transform, loaded.RandomCrop):
        return _from_torchvision_random_crop(cast("v2.RandomCrop", transform))
    raise InvalidRequestError(
        f"Unsupported transform: {transform}. Decoders take Resize, CenterCrop and RandomCrop, of "
        "reeld.transforms, TorchCodec or torchvision.transforms.v2."
    )


def _from_torchvision_resize(resize: v2.Resize, bilinear: object) -> Resize:
    if resize.interpolation not in (bilinear, "bilinear"):
        raise InvalidRequestError(f"{resize} must use bilinear interpolation: decoders have no other.")
    if resize.antialias is False:
        raise InvalidRequestError(f"{resize} must have antialias enabled: decoders cannot do without.")
    if resize.size is None:
        raise InvalidRequestError(f"{resize} must have a size specified: decoders do not know max_size.")
    return Resize(_torchvision_size(resize))


def _from_torchvision_random_crop(crop: v2.RandomCrop) -> RandomCrop:
    if crop.padding is not None:
        raise InvalidRequestError(f"{crop} must not specify padding: decoders have none.")
    if crop.pad_if_needed is True:
        raise InvalidRequestError(f"{crop} must not specify pad_if_needed: decoders have no padding.")
    if crop.fill != 0:
        raise InvalidRequestError(f"{crop}: fill must be 0, decoders have no padding.")
    if crop.padding_mode != "constant":
        raise InvalidRequestError(f"{crop}: padding_mode must be constant, decoders have no padding.")
    return RandomCrop(_torchvision_size(crop))


def _torchvision_size(transform: v2.Resize | v2.CenterCrop | v2.RandomCrop) -> Sequence[int]:
    return _checked_size(transform.size, f"TorchVision {type(transform).__name__}")


def _checked_size(size: object, name: str) -> Sequence[int]:
    try:
        count = len(cast("Sequence[int]", size))
    except TypeError:
        raise ArgumentTypeError(f"{name} takes (height, width) for the size, not {size!r}.") from None
    if count != 2:
        raise InvalidRequestError(f"{name} must have a (height, width) pair for the size, not {size}.")
    return cast("Sequence[int]", size)


def _random_below(limit: int) -> int:
    try:
        import torch
    except ImportError:
        # The global generator, which np.random.seed seeds: as with torch, so callers choose the crops.
        return int(np.random.randint(limit))
    return int(torch.randint(0, limit, size=(), device="cpu").item())
