"""`VideoClips`: a dataset of clips of many videos, and the samples that it asks for.

How the samples become batches is not decided here but in `_collate.py`.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import torch
from torch.utils.data import Dataset

from reeld.clips import Clip, PendingFrames, prefetch, submit
from reeld.decoders import VideoDecoder
from reeld.errors import ArgumentTypeError, InvalidRequestError, RangeError

if TYPE_CHECKING:
    from reeld.decoders._sources import Source
    from reeld.frames import FrameBatch

    # A clip, alone or with its target.
    Sample = Any
    # As VideoDecoder takes it.
    Option = Any

_SAMPLINGS = ("regular", "random")
# An open decoder costs this process one descriptor, of which it may usually have 1024, and the daemon an open
# file. Opening one anew costs a round trip.
_DECODERS_MAX = 128


class PendingSamples:
    """Samples of a dataset that are on their way.

    A dataset of one's own gives such from ``submit``, see :class:`SubmittingDataset`.

    Args:
        frames: The frames of all samples: one request.
        samples_of: Makes the samples of their frames, in the order in which these were asked for. Default:
            the frames are the samples.

    Example:
        >>> import reeld
        >>> from reeld.torch import PendingSamples
        >>> frames = reeld.submit([reeld.Clip(video_path, indices=[index]) for index in (3, 5)])
        >>> PendingSamples(frames, lambda batches: [len(batch) for batch in batches]).result()
        [1, 1]
    """

    def __init__(
        self, frames: PendingFrames, samples_of: Callable[[list[FrameBatch]], list[Any]] | None = None
    ) -> None:
        self._frames = frames
        self._samples_of = samples_of

    def result(self) -> list[Any]:
        """Waits for the samples.

        Returns:
            One sample for each index that was submitted, in that order.

        Raises:
            ReeldError: As :meth:`reeld.PendingFrames.result` does.

        Example:
            >>> from reeld.torch import VideoClips
            >>> pending = VideoClips([video_path], frames_per_clip=2, clips_per_video=3).submit([0, 2])
            >>> [len(clip) for clip in pending.result()]
            [2, 2]
        """
        batches = self._frames.result()
        return list(batches) if self._samples_of is None else self._samples_of(batches)

    def byte_count(self) -> int:
        """The size of the pixels of all samples, once they are there: it waits for them.

        Example:
            >>> from reeld.torch import VideoClips
            >>> VideoClips([video_path], frames_per_clip=2).submit([0]).byte_count() == 2 * 320 * 180 * 3
            True
        """
        return sum(batch.data.nbytes for batch in self._frames.result())

    def done(self) -> bool:
        """Whether ``result`` would return, or raise, at once.

        Example:
            >>> from reeld.torch import VideoClips
            >>> pending = VideoClips([video_path], frames_per_clip=2).submit([0])
            >>> _ = pending.result()
            >>> pending.done()
            True
        """
        return self._frames.done()

    def cancel(self) -> None:
        """Tells the daemon that the samples are not needed any more.

        Example:
            >>> from reeld.torch import VideoClips
            >>> VideoClips([video_path], frames_per_clip=2).submit([0]).cancel()
        """
        self._frames.cancel()


class VideoClips(Dataset[Any]):
    """Clips of many videos: a map-style dataset that asks for each batch by one request.

    Clip ``i`` is clip ``i % clips_per_video`` of video ``i // clips_per_video``. A ``DataLoader`` asks for
    all clips of a batch at once (``__getitems__``); with ``collate_fn=reeld.torch.collate`` they become one
    batch without a copy. :class:`ClipLoader` does the same without worker processes.

    Videos are opened when they are first needed, in the process that needs them, and the least recently used
    are closed. So a dataset is made at once, and survives ``fork``, ``spawn`` and pickling.

    Where a random clip lies is decided by ``(seed, epoch, index)`` alone. So it is the same with any number
    of workers, of whatever kind, in any order, with ``ClipLoader`` and after a restart from a checkpoint; and
    neither torch's nor Python's own random state has a part in it. Call :meth:`set_epoch` before each epoch,
    or every epoch has the same clips.

    A video that is shorter than a clip gives the frames it has, the last of them repeated.

    Args:
        videos: Paths, or whatever else ``VideoDecoder`` opens.
        frames_per_clip: N, the number of frames of a clip.
        step: Frames from one frame of a clip to the next.
        fps: Instead of ``step``: frames of a clip per second of the video; frames are then those on display
            at these times.
        clips_per_video: How many clips each video has.
        sampling: ``"regular"``: clips begin at even distances over the whole video, the first at its
            beginning; ``"random"``: anywhere, each place as likely as any other.
        seed: Of the random places.
        targets: One for each video, such as its label: samples are then ``(clip, target)``.
        decoders_max: How many videos each process keeps open.
        decoder_options: What ``VideoDecoder`` takes beside the source: ``transforms``, ``output_dtype``,
            ``seek_mode`` and so on.

    Raises:
        InvalidRequestError: An argument has a value that is not allowed.
        TypeError: ``VideoDecoder`` has no such option.

    Example:
        >>> from reeld.torch import VideoClips
        >>> dataset = VideoClips([video_path], frames_per_clip=4, fps=5, clips_per_video=3, targets=["blue"])
        >>> len(dataset)
        3
        >>> clip, target = dataset[1]
        >>> clip.data.shape[0], target
        (4, 'blue')
        >>> [len(clip) for clip, _ in dataset.__getitems__([2, 0])]
        [4, 4]
    """

    def __init__(
        self,
        videos: Sequence[Source],
        *,
        frames_per_clip: int,
        step: int | None = None,
        fps: float | None = None,
        clips_per_video: int = 1,
        sampling: Literal["regular", "random"] = "regular",
        seed: int = 0,
        targets: Sequence[Any] | None = None,
        decoders_max: int = _DECODERS_MAX,
        **decoder_options: Option,
    ) -> None:
        if isinstance(videos, str | bytes):
            raise ArgumentTypeError("videos must be a sequence of videos: for one video, a list of one.")
        if targets is not None and len(targets) != len(videos):
            raise InvalidRequestError(f"There are {len(targets)} targets for {len(videos)} videos.")
        if sampling not in _SAMPLINGS:
            raise InvalidRequestError(f"Invalid sampling {sampling!r}: use one of {_SAMPLINGS}.")
        if step is not None and fps is not None:
            raise InvalidRequestError("Give either step or fps: each decides how far apart frames are.")
        if fps is not None and not (fps > 0 and math.isfinite(fps)):
            raise InvalidRequestError(f"fps={fps} must be above 0.")
        # Whoever misspells an option shall learn it here, and not in a worker process.
        inspect.signature(VideoDecoder).bind(None, **decoder_options)
        self.videos = videos
        self.targets = targets
        self.frames_per_clip = _at_least_one("frames_per_clip", frames_per_clip)
        self.clips_per_video = _at_least_one("clips_per_video", clips_per_video)
        self._step = _at_least_one("step", 1 if step is None else step)
        self._fps = fps
        self._sampling = sampling
        self._seed = operator.index(seed)
        self._decoders_max = _at_least_one("decoders_max", decoders_max)
        self._decoder_options = decoder_options
        self._decoder_of = self._decoder_cache()
        # In shared memory, so that workers that outlive an epoch hear of the next one.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()

    def __len__(self) -> int:
        """The number of clips of all videos."""
        return len(self.videos) * self.clips_per_video

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """One clip.

        Args:
            index: Of the clip; negative ones count from the end.

        Returns:
            A ``FrameBatch`` whose ``data`` is (N, C, H, W), or with C last; with ``targets`` a tuple of that
            and the video's target.

        Raises:
            RangeError: There is no such clip; it is an ``IndexError``, too.
            MediaError: The video cannot be opened, or is damaged there.

        Example:
            >>> from reeld.torch import VideoClips
            >>> VideoClips([video_path], frames_per_clip=4, clips_per_video=2)[-1].data.shape
            torch.Size([4, 3, 180, 320])
        """
        return self.submit([index]).result()[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Any]:
        """Several clips by one request: in one stretch of memory, side by side."""
        return self.submit(indices).result()

    def submit(self, indices: Sequence[SupportsIndex]) -> PendingSamples:
        """Asks for clips and returns without waiting for them; videos that are not open yet are opened.

        Args:
            indices: At least one.

        Returns:
            The samples to come, in the order of the indices.

        Raises:
            RangeError: There is no such clip; it is an ``IndexError``, too.
            MediaError: A video cannot be opened.

        Example:
            >>> from reeld.torch import VideoClips
            >>> dataset = VideoClips([video_path], frames_per_clip=2, clips_per_video=5)
            >>> [len(clip) for clip in dataset.submit([4, 0, 1]).result()]
            [2, 2, 2]
        """
        places = [self._checked(index) for index in indices]
        frames = submit([self.clip(place) for place in places])
        if self.targets is None:
            return PendingSamples(frames)
        targets = [self.targets[place // self.clips_per_video] for place in places]
        return PendingSamples(frames, lambda clips: list(zip(clips, targets, strict=True)))

    def prefetch(self, keys: Sequence[SupportsIndex], /) -> None:
        """Tells the daemon which clips will be asked for, here or in workers; see :class:`PrefetchSampler`.

        Videos that are not open yet are opened, so that it may take a while. Random clips are those of the
        epoch that is set.

        Args:
            keys: The indices of the clips.

        Raises:
            RangeError: There is no such clip; it is an ``IndexError``, too.
            MediaError: A video cannot be opened.

        Example:
            >>> from reeld.torch import VideoClips
            >>> dataset = VideoClips([video_path], frames_per_clip=2, clips_per_video=5)
            >>> dataset.prefetch([4, 0, 1])
            >>> [len(clip) for clip in dataset.__getitems__([4, 0, 1])]
            [2, 2, 2]
        """
        prefetch([self.clip(self._checked(key)) for key in keys])

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Chooses other random clips than in other epochs: call it before each one.

        Workers hear of it, too, also those that outlive an epoch.

        Args:
            epoch: Any integer of 64 bits.

        Raises:
            ArgumentTypeError: It is none.

        Example:
            >>> from reeld.torch import VideoClips
            >>> dataset = VideoClips([video_path], frames_per_clip=1, sampling="random")
            >>> first = dataset.clip(0).indices
            >>> dataset.set_epoch(1)
            >>> dataset.clip(0).indices == first
            False
        """
        try:
            number = operator.index(epoch)
            self._epoch.fill_(number)
        except (TypeError, RuntimeError):
            raise ArgumentTypeError(
                f"An epoch must be an integer of 64 bits, which {epoch!r} is not."
            ) from None

    def clip(self, index: SupportsIndex) -> Clip:
        """Which frames of which video a clip consists of, in the epoch that was set.

        Args:
            index: Of the clip; negative ones count from the end.

        Example:
            >>> from reeld.torch import VideoClips
            >>> dataset = VideoClips([video_path], frames_per_clip=3, step=10, clips_per_video=2)
            >>> dataset.clip(0).indices, dataset.clip(1).indices
            (range(0, 21, 10), range(29, 50, 10))
        """
        place = self._checked(index)
        number, position = divmod(place, self.clips_per_video)
        decoder = self._decoder_of(number)
        if self._fps is None:
            return Clip(decoder, indices=self._indices(len(decoder), place, position))
        return Clip(decoder, seconds=self._seconds(decoder, self._fps, place, position))

    def _indices(self, frame_count: int, place: int, position: int) -> range | list[int]:
        span = (self.frames_per_clip - 1) * self._step + 1
        # As many places as there are for a clip that fits, and one for a clip that does not.
        begin_count = max(frame_count - span, 0) + 1
        if self._sampling == "random":
            begin = int(self._random_share(place) * begin_count)
        else:
            begin = int(self._regular_share(position) * (begin_count - 1))
        if frame_count >= span:
            return range(begin, begin + span, self._step)
        there = list(range(0, frame_count, self._step))
        return there + there[-1:] * (self.frames_per_clip - len(there))

    def _seconds(self, decoder: VideoDecoder, fps: float, place: int, position: int) -> list[float]:
        first, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        # A decoder without these could not have been opened.
        assert first is not None
        assert end is not None
        room = max(end - first - self.frames_per_clip / fps, 0.0)
        is_random = self._sampling == "random"
        share = self._random_share(place) if is_random else self._regular_share(position)
        begin = first + share * room
        there = [begin + number / fps for number in range(self.frames_per_clip)]
        there = [seconds for seconds in there if seconds < end]
        return there + there[-1:] * (self.frames_per_clip - len(there))

    def _regular_share(self, position: int) -> float:
        return position / (self.clips_per_video - 1) if self.clips_per_video > 1 else 0.0

    def _random_share(self, place: int) -> float:
        """A number from 0 to below 1, the same for the same seed, epoch and clip, also in other versions."""
        return random.Random(f"{self._seed}/{int(self._epoch)}/{place}").random()

    def _checked(self, index: SupportsIndex) -> int:
        place, count = operator.index(index), len(self)
        if not -count <= place < count:
            raise RangeError(f"There is no clip {place}: there are {count}.")
        return place % count

    def _decoder_cache(self) -> Callable[[int], VideoDecoder]:
        # It knows the videos and not this object, so that both are gone with the last who uses them.
        opened = functools.partial(_opened, self.videos, self._decoder_options)
        return functools.lru_cache(maxsize=self._decoders_max)(opened)

    def __getstate__(self) -> dict[str, Any]:
        """All but the open decoders: whoever gets a copy opens those that it needs."""
        return {name: value for name, value in self.__dict__.items() if name != "_decoder_of"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._decoder_of = self._decoder_cache()


def _opened(videos: Sequence[Source], options: dict[str, Any], number: int) -> VideoDecoder:
    return VideoDecoder(videos[number], **options)


def _at_least_one(name: str, value: SupportsIndex) -> int:
    number = operator.index(value)
    if number < 1:
        raise InvalidRequestError(f"{name}={number} must be at least 1.")
    return number
