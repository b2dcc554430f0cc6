"""`PrefetchSampler`: a sampler that tells the daemon what is coming.

Which frames a sample needs is the dataset's matter; when they are decoded, the daemon's.
"""

from __future__ import annotations

import operator
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from torch.utils.data import Sampler

from reeld.errors import ArgumentTypeError, DaemonUnavailableError, InvalidRequestError, ReeldError

if TYPE_CHECKING:
    # What a sampler gives: the key of a sample, or those of a batch.
    Item = Any
    # As the sampler that is wrapped gives it.
    State = Any

T_co = TypeVar("T_co", covariant=True)

# Methods that are there only where the wrapped sampler has them.
_STATE_METHODS = {"state_dict": "_state_of_given", "load_state_dict": "_load_state"}


class PrefetchingDataset(Protocol):
    """What :class:`PrefetchSampler` needs of a dataset; :class:`VideoClips` is one.

    Example:
        >>> import reeld
        >>> from reeld.torch import PrefetchSampler
        >>> class Ends:
        ...     '''The first and the last frame of each video.'''
        ...
        ...     def __init__(self, paths):
        ...         self.paths = paths
        ...
        ...     def _clip(self, key):
        ...         return reeld.Clip(self.paths[key], indices=[0, -1])
        ...
        ...     def prefetch(self, keys):
        ...         reeld.prefetch([self._clip(key) for key in keys])
        ...
        ...     def __getitems__(self, keys):
        ...         return reeld.submit([self._clip(key) for key in keys]).result()
        >>> dataset = Ends([video_path, video_path])
        >>> for keys in PrefetchSampler([[0], [1]], dataset):
        ...     print(len(dataset.__getitems__(keys)[0]))
        2
        2
    """

    def prefetch(self, keys: Sequence[Any], /) -> None:
        """Tells the daemon which frames these samples will need. Called in a thread of the sampler.

        Args:
            keys: Of the samples of one batch, or of one sample, as the sampler gives them.

        Example:
            >>> from reeld.torch import VideoClips
            >>> VideoClips([video_path], frames_per_clip=2).prefetch([0])
        """
        ...


class PrefetchSampler(Sampler[T_co]):
    """Gives what another sampler gives, and has the frames of what comes later decoded ahead.

    It takes ``ahead`` items more from the sampler than it has given, and tells the daemon of each by
    ``dataset.prefetch``. Where no process waits for other frames, they are decoded and kept, so that the
    workers of a ``DataLoader`` find them ready. Requests always go first; hints never hold one up.

    Order and number of the items are those of the sampler, which is asked for them a little earlier. Wrap
    the *batch sampler*, and hand it to a ``DataLoader`` with any number of workers; the sampler itself
    lives in the process that has the loader. What a hint would be for in vain costs idle time only: each
    epoch tells of its own items alone, also with ``persistent_workers``.

    *Threads.* Each iteration has one thread, which calls ``dataset.prefetch``: that may open videos, and
    training does not wait for it. Where it falls behind, what it has not come to is left out. It ends with
    the iteration, or with the process. Where a video cannot be opened, nothing is told of it: who asks for
    it will learn why. Without a daemon, items come as they would without this class.

    *State.* All else that the sampler has is had here, too, such as ``set_epoch`` and ``batch_size``. Where
    it has ``state_dict`` and ``load_state_dict``, this class has them, and they mean the items that were
    given, not those that were taken ahead.

    Args:
        sampler: Gives the keys of the samples of a batch, as torch's ``BatchSampler`` does, or single keys.
        dataset: :class:`VideoClips`, or another :class:`PrefetchingDataset`.
        ahead: How many items are taken before they are given: at least 1. A loader with workers asks for
            ``num_workers * prefetch_factor`` batches before it needs them; these are further ahead.

    Raises:
        ArgumentTypeError: The dataset has no ``prefetch``.
        InvalidRequestError: ``ahead`` is below 1.

    Example:
        >>> from reeld.torch import PrefetchSampler, VideoClips, collate
        >>> from torch.utils.data import BatchSampler, DataLoader, RandomSampler
        >>> dataset = VideoClips([video_path], frames_per_clip=4, clips_per_video=6)
        >>> batches = BatchSampler(RandomSampler(dataset), batch_size=3, drop_last=False)
        >>> sampler = PrefetchSampler(batches, dataset, ahead=2)
        >>> loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        >>> len(loader), [len(clips) for clips in loader]
        (2, [3, 3])
    """

    def __init__(self, sampler: Iterable[T_co], dataset: PrefetchingDataset, *, ahead: int = 4) -> None:
        if not hasattr(dataset, "prefetch"):
            name = type(dataset).__name__
            raise ArgumentTypeError(f"A {name} has no prefetch(keys): use VideoClips, or give it one.")
        if operator.index(ahead) < 1:
            raise InvalidRequestError(f"ahead={ahead} must be at least 1.")
        self.wrapped = sampler
        self.dataset = dataset
        self.ahead = operator.index(ahead)
        self._state: State = None

    def __len__(self) -> int:
        """The number of items of an epoch."""
        return len(cast("Any", self.wrapped))

    def __iter__(self) -> Iterator[T_co]:
        # Asked for now, as without this class: some samplers draw their order at this moment.
        return _Epoch(self, iter(self.wrapped))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 # whatever the sampler has
        """What the sampler has and this class has not, such as ``set_epoch``."""
        # Before there is a sampler, as when it is unpickled, there is nothing else either.
        if name.startswith("__") or "wrapped" not in self.__dict__:
            raise AttributeError(name)
        theirs = getattr(self.wrapped, name)
        own = _STATE_METHODS.get(name)
        return theirs if own is None else object.__getattribute__(self, own)

    def _state_of_given(self) -> State:
        """The sampler's state as it was when the item was taken that was given last."""
        return cast("Any", self.wrapped).state_dict() if self._state is None else self._state

    def _load_state(self, state: State) -> None:
        self._state = None
        cast("Any", self.wrapped).load_state_dict(state)


class _Epoch(Iterator[Any]):
    """One pass over a sampler's items. When it is dropped, nothing more is told."""

    def __init__(self, sampler: PrefetchSampler[Any], items: Iterator[Item]) -> None:
        self._sampler = sampler
        self._items = items
        self._taken: deque[tuple[Item, State]] = deque()
        self._is_exhausted = False
        self._hints = _Hints(sampler.dataset, sampler.ahead)

    def __next__(self) -> Item:
        while len(self._taken) <= self._sampler.ahead and not self._is_exhausted:
            self._take()
        if not self._taken:
            self._hints.end()
            self._hints.report()
            raise StopIteration
        item, self._sampler._state = self._taken.popleft()
        return item

    def _take(self) -> None:
        try:
            item = next(self._items)
        except StopIteration:
            self._is_exhausted = True
            return
        has_state = hasattr(self._sampler, "state_dict")
        wrapped = cast("Any", self._sampler.wrapped)
        self._taken.append((item, wrapped.state_dict() if has_state else None))
        self._hints.put(item)


class _Hints:
    """Tells a dataset of items in a thread of its own, as long as that has an end."""

    def __init__(self, dataset: PrefetchingDataset, waiting_max: int) -> None:
        self._pid = os.getpid()
        self._dataset = dataset
        # Above this the thread has fallen behind.
        self._waiting_max = waiting_max + 1
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._errors: SimpleQueue[Exception] = SimpleQueue()
        # Not started before it is needed: a loader forks its workers before it asks for the first item.
        self._is_started = False
        # The thread knows the queue and not this object, whose end it would never see otherwise.
        self.end = weakref.finalize(self, self._items.put, _END)

    def put(self, item: Item) -> None:
        if self._pid != os.getpid():
            # A forked child has no such thread.
            return
        if not self._is_started:
            self._is_started = True
            threading.Thread(
                target=_tell_all,
                args=(self._dataset, self._items, self._errors),
                name="reeld-prefetch",
                daemon=True,
            ).start()
        if self._items.qsize() < self._waiting_max:
            self._items.put(item)
        self.report()

    def report(self) -> None:
        """Warns of what went wrong."""
        try:
            error = self._errors.get_nowait()
        except Empty:
            return
        warnings.warn(f"{type(self._dataset).__name__}.prefetch raised {error!r}", stacklevel=4)


_END = object()


def _tell_all(dataset: PrefetchingDataset, items: SimpleQueue[Item], errors: SimpleQueue[Exception]) -> None:
    is_of_use = True
    while (item := items.get()) is not _END:
        if not is_of_use:
            continue
        try:
            dataset.prefetch(item if isinstance(item, Sequence) and not isinstance(item, str) else [item])
        except DaemonUnavailableError:
            # Whoever asks for the frames is told.
            is_of_use = False
        except ReeldError:
            continue
        except Exception as error:
            is_of_use = False
            errors.put(error)
