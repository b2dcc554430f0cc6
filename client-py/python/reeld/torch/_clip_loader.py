"""`ClipLoader`: batches of clips without worker processes, several of them on their way at any time.

What is asked for is the dataset's matter, and how samples become a batch that of `_collate.py`.
"""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, cast

from torch.utils.data import DataLoader, Dataset, Subset

from reeld.client import statistics
from reeld.errors import ArgumentTypeError, InvalidRequestError
from reeld.torch._collate import collate

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Sampler

    from reeld.torch._video_clips import PendingSamples

    # Whatever the dataset and `collate_fn` make of it.
    Batch = Any
    Submission = tuple[Future["PendingSamples"], list[int]]

# Results that together are larger than one half of the quota are copied on their arrival.
_SHARE_UNCOPIED = 2
# Slots are whole pages, and hold the times of their frames as well.
_SLOT_OVERHEAD_SHARE = 64
_PAGE_BYTES = 4096


class SubmittingDataset(Protocol):
    """What :class:`ClipLoader` needs of a dataset; :class:`VideoClips` is one.

    Example:
        >>> import reeld
        >>> from reeld.torch import ClipLoader, PendingSamples
        >>> class Ends:
        ...     '''The first and the last frame of each video, with its name.'''
        ...
        ...     def __init__(self, paths):
        ...         self.paths = paths
        ...
        ...     def __len__(self):
        ...         return len(self.paths)
        ...
        ...     def submit(self, indices):
        ...         paths = [self.paths[index] for index in indices]
        ...         frames = reeld.submit([reeld.Clip(path, indices=[0, -1]) for path in paths])
        ...         return PendingSamples(frames, lambda clips: list(zip(clips, paths, strict=True)))
        >>> for clips, paths in ClipLoader(Ends([video_path, video_path]), batch_size=2):
        ...     print(tuple(clips.data.shape[:2]), len(paths))
        (2, 2) 2
    """

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def submit(self, indices: list[int], /) -> PendingSamples:
        """Asks for samples and returns without waiting for them. Called in a thread of the loader.

        Args:
            indices: Of the samples of one batch, each from 0 to below the dataset's length.

        Example:
            >>> from reeld.torch import VideoClips
            >>> len(VideoClips([video_path], frames_per_clip=2).submit([0]).result())
            1
        """
        ...


class ClipLoader:
    """Batches of clips for training, without worker processes.

    It gives what ``DataLoader(dataset, collate_fn=reeld.torch.collate, …)`` gives: the same batches in the
    same order, given the same sampler and generator. But the requests go to the daemon from this process,
    ``window`` of them at a time, so that batches are decoded while the model trains; no batch passes through
    another process, and its pixels are not copied. Each ``for`` loop over the loader is an epoch.

    *Threads.* Each iteration has one thread, which calls ``dataset.submit``: that opens videos, and sends
    requests. Waiting for the frames and ``collate_fn`` happen in the thread that iterates. The other thread
    ends with the iteration; it is a daemon thread, so that it never holds up the interpreter's exit. An
    iterator may not be used in a forked child.

    *Memory.* Batches that this process holds, and those that have arrived, count against its quota
    (``reeld.statistics()["quota_bytes"]``). Above one half of that, results would be copied out of shared
    memory. So the window shrinks, down to one request, where a further batch as large as the largest so
    far would lead there; the first batch is awaited alone, since nobody knows how large it is. Raise
    ``client_memory_mib`` of the daemon for a larger window.

    *Ends.* Leaving the loop early, by ``break`` or by an exception, and Ctrl-C cancel what is on its way, and
    its memory goes back. What goes wrong with a batch is raised when that batch's turn comes; the next
    ``next()`` gives the batch behind it.

    Args:
        dataset: :class:`VideoClips`, or another :class:`SubmittingDataset`, or a ``torch.utils.data.Subset``
            of such, as ``random_split`` makes them.
        batch_size: Samples in a batch.
        shuffle: Whether to take them in random order, another one in each epoch.
        sampler: Gives the indices in their order, instead of ``shuffle``.
        batch_sampler: Gives lists of indices, instead of ``batch_size``, ``shuffle``, ``sampler`` and
            ``drop_last``.
        drop_last: Whether to leave out a last batch that is smaller.
        collate_fn: Makes a batch of a list of samples. Default: :func:`collate`.
        generator: Of the random order.
        window: How many batches are on their way at most, at least 1.

    Raises:
        ValueError: Arguments exclude each other, as for a ``DataLoader``.
        InvalidRequestError: ``window`` is below 1, or ``batch_size`` is None.
        ArgumentTypeError: The dataset has no ``submit``, or ``window`` is no integer.

    Example:
        >>> import torch
        >>> from reeld.torch import ClipLoader, VideoClips
        >>> dataset = VideoClips([video_path], frames_per_clip=2, clips_per_video=10, sampling="random")
        >>> generator = torch.Generator().manual_seed(1)
        >>> loader = ClipLoader(dataset, batch_size=4, shuffle=True, generator=generator)
        >>> len(loader)
        3
        >>> for epoch in range(2):
        ...     dataset.set_epoch(epoch)
        ...     print([len(clips) for clips in loader])
        [4, 4, 2]
        [4, 4, 2]
    """

    def __init__(
        self,
        dataset: SubmittingDataset | Subset[Any],
        *,
        batch_size: int = 1,
        shuffle: bool | None = None,
        sampler: Sampler[int] | Iterable[int] | None = None,
        batch_sampler: Sampler[list[int]] | Iterable[list[int]] | None = None,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Batch] | None = None,
        generator: torch.Generator | None = None,
        window: SupportsIndex = 4,
    ) -> None:
        self._submitting = _submitting(dataset)
        if batch_size is None:
            raise InvalidRequestError("batch_size=None is not supported: a request is made for each batch.")
        try:
            self.window = operator.index(window)
        except TypeError:
            raise ArgumentTypeError(f"window must be an integer, not {type(window).__name__}.") from None
        if self.window < 1:
            raise InvalidRequestError(f"window={window} must be at least 1.")
        self.dataset = dataset
        self._collate_fn = collate if collate_fn is None else collate_fn
        # Torch's own loader decides which samples belong to which batch, so that its rules and its use of the
        # generator need not be told again here.
        self._order: DataLoader[Any] = DataLoader(
            _Positions(self._submitting),
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            batch_sampler=batch_sampler,
            drop_last=drop_last,
            collate_fn=_unchanged,
            generator=generator,
        )

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        return _Epoch(self._submitting, iter(self._order), self._collate_fn, self.window)


def _submitting(dataset: SubmittingDataset | Subset[Any]) -> SubmittingDataset:
    """What can be asked for batches, also below any number of subsets."""
    if hasattr(dataset, "submit"):
        return cast("SubmittingDataset", dataset)
    if isinstance(dataset, Subset):
        return _Part(_submitting(cast("Any", dataset.dataset)), dataset.indices)
    name = type(dataset).__name__
    raise ArgumentTypeError(f"A {name} has no submit(indices): use VideoClips, or a DataLoader.")


class _Part:
    """Some samples of a dataset, in an order of their own."""

    def __init__(self, whole: SubmittingDataset, indices: Sequence[int]) -> None:
        self._whole = whole
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def submit(self, indices: list[int], /) -> PendingSamples:
        """As the whole dataset does it."""
        return self._whole.submit([self._indices[index] for index in indices])


class _Positions(Dataset[int]):
    """A dataset whose samples are their own indices."""

    def __init__(self, dataset: SubmittingDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int:
        return index


def _unchanged(indices: list[int]) -> list[int]:
    return indices


class _Epoch(Iterator[Any]):
    """One pass over a loader's batches. When it is dropped, what is on its way is cancelled."""

    def __init__(
        self,
        dataset: SubmittingDataset,
        batches: Iterator[list[int]],
        collate_fn: Callable[[list[Any]], Batch],
        window: int,
    ) -> None:
        self._batches = batches
        self._collate_fn = collate_fn
        self._window = window
        self._pid = os.getpid()
        self._in_flight: deque[Future[PendingSamples]] = deque()
        self._largest_bytes: int | None = None
        self._is_exhausted = False
        self._submissions: SimpleQueue[Submission | None] = SimpleQueue()
        # The thread knows the queue and not this object, whose end it would never see otherwise.
        self._stop = weakref.finalize(self, self._submissions.put, None)
        threading.Thread(
            target=_submit_all, args=(dataset, self._submissions), name="reeld-clips", daemon=True
        ).start()

    def __next__(self) -> Batch:
        if self._pid != os.getpid():
            raise InvalidRequestError(
                "A ClipLoader's iterator cannot be used in a forked child: make one there."
            )
        try:
            self._fill_window()
            if not self._in_flight:
                self._stop()
                raise StopIteration
            pending = self._in_flight.popleft().result()
            samples = pending.result()
            self._largest_bytes = max(pending.byte_count(), self._largest_bytes or 0)
            # What is on its way while the caller works on this batch.
            self._fill_window()
        except Exception:
            raise
        except BaseException:
            self._cancel()
            raise
        return self._collate_fn(samples)

    def _fill_window(self) -> None:
        while len(self._in_flight) < self._window and not self._is_exhausted and self._has_room():
            future: Future[PendingSamples] = Future()
            try:
                indices = next(self._batches)
            except StopIteration:
                self._is_exhausted = True
                return
            except Exception as error:
                # Of the sampler: raised when the turn of the batch comes that it was asked for.
                self._is_exhausted = True
                future.set_exception(error)
            else:
                self._submissions.put((future, indices))
            self._in_flight.append(future)

    def _has_room(self) -> bool:
        """Whether a further batch, as large as the largest so far, would be left where it is on arrival."""
        if not self._in_flight:
            return True
        if self._largest_bytes is None:
            return False
        slot_bytes = self._largest_bytes + self._largest_bytes // _SLOT_OVERHEAD_SHARE + _PAGE_BYTES
        # Counted before the numbers are asked for: what arrives in between counts twice rather than never.
        coming_count = sum(not _has_arrived(future) for future in self._in_flight)
        numbers = statistics()
        held_bytes = numbers["leased_bytes"] + numbers["deferred_bytes"]
        return held_bytes + (coming_count + 1) * slot_bytes <= numbers["quota_bytes"] // _SHARE_UNCOPIED

    def _cancel(self) -> None:
        self._is_exhausted = True
        # A request that the thread is about to make is dropped with its future, which cancels it.
        self._in_flight.clear()
        self._stop()


def _has_arrived(future: Future[PendingSamples]) -> bool:
    return future.done() and (future.exception() is not None or future.result().done())


def _submit_all(dataset: SubmittingDataset, submissions: SimpleQueue[Submission | None]) -> None:
    """Makes requests, one after the other, until it is told to end."""
    while (submission := submissions.get()) is not None:
        future, indices = submission
        try:
            future.set_result(dataset.submit(indices))
        except BaseException as error:
            # Of whatever kind: somebody waits for it.
            future.set_exception(error)
        # Nobody else may want it any more, and the next one may be long in coming.
        del future, submission
