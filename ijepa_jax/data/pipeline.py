"""From a source to a stream of batches, through grain: each example a pure function of (seed, epoch, global index).

An element of the grain data set is some rows of one local batch, made from its number alone; consecutive elements are joined
to batches. Hence the stream does not depend on threads, workers or processes, starting at any step costs nothing, masks are
made for many images in one call, and memory is bounded by the rows under way and not by whole batches for every thread.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from ijepa_jax.data import changes, counter, images
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.multiview import Views
from ijepa_jax.data.source import Arrays, DataError, Source
from ijepa_jax.data.views import UNIFORMS, Augment, ColorJitter, View, examples
from ijepa_jax.host.signals import end_with_parent

_SHUFFLE, _CROP, _FLIP, _JITTER, _REPLACE, _AUGMENT = range(0x1DA7A00, 0x1DA7A06)  # what a random number is for
_ROUNDS = 8  # of the shuffle; with 6, small data sets show a pattern
_MAX_BAD = 10  # bad images in a row
_ENDLESS = 1 << 48  # elements
_PART_BYTES = 16 << 20  # of pixels made at a time: 111 images of 224x224, a tenth of a second of work


@dataclasses.dataclass(frozen=True)
class Share:
    """Which of several processes this is: each makes its own rows of every batch."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> range:
        """This process's rows of a global batch. Raises `DataError` where it does not divide."""
        if batch_size % self.count:
            raise DataError(f"a batch of {batch_size} cannot be divided among {self.count} processes")
        local = batch_size // self.count
        return range(self.index * local, (self.index + 1) * local)


@dataclasses.dataclass(frozen=True)
class Loading:
    """Who makes batches: `threads` work `buffer` batches ahead.

    By default that is one thread for pixels in memory (small images keep the interpreter's lock, and more threads only fight
    over it), else one a core, at most 16. With `workers` > 0 that many processes do this, each with `threads` of its own (by
    default one), together `buffer` batches ahead; as each gets a copy of the source, threads are the better choice for
    pixels in memory. A script that uses workers needs the usual `if __name__ == "__main__"`, and should close the iterator
    at the end, as workers left running complain.
    """

    workers: int = 0
    threads: int | None = None
    buffer: int = 2


ALONE, BY_THREADS = Share(), Loading()


def train_batches(
    source: Source,
    sampler: Callable[[np.ndarray], Arrays] | None,
    view: View,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    share: Share = ALONE,
    loading: Loading = BY_THREADS,
    views: Sequence[Views] = (),
) -> Iterator[Arrays]:
    """An endless stream of this process's rows of the global batches from `start_step` on.

    With b = batch_size / processes rows, a batch holds

    - `image` uint8 [b, h, w, channels]: random resized crops as `view` has them, not normalised; of videos it is `video` uint8
      [b, t, h, w, channels], and of signals `signal` float32 [b, l, channels], standardised. With `views` it is instead what
      these make of each image, which is decoded once (see `multiview.Views`);
    - `index` int64 [b]: the global example index, step * batch_size + row;
    - `source` int64 [b]: the example of the source that is shown; each appears once an epoch, in an order shuffled anew for
      every epoch, but for the last len(source) % batch_size of that order, which are dropped;
    - `bad` int64 [b]: -1, or the example that should have been shown, had it been readable;
    - whatever `sampler` makes of `index` (masks).

    Raises `DataError` if the source is smaller than a batch, if the batch does not divide among the processes, and, from the
    stream, if ten images in a row are bad or a worker dies.
    """
    rows = share.rows(batch_size)
    if len(source) < batch_size:
        raise DataError(f"the data set has {len(source)} images, which is less than one batch of {batch_size}")
    make_batch = _TrainBatches(source, view, rows, sampler, seed, batch_size, tuple(views))
    return _stream(make_batch, start_step, None, loading)


def eval_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    view: View,
    *,
    batch_size: int,
    share: Share = ALONE,
    loading: Loading = BY_THREADS,
) -> Iterator[Arrays]:
    """This process's rows of batches of the examples `indices` of the source, in order, each once.

    With b = batch_size / processes rows, a batch holds `image` uint8 [b, h, w, channels] (central crops; `video` or `signal`
    as above), `index` int64 (the example of the source), `valid` bool and `bad` int64, [b] each. The last batch is padded with
    zeros, marked invalid. An unreadable image is black, invalid, and named by `bad`, which is -1 elsewhere: leave rows that are
    not valid out of every sum.
    """
    make_batch = _EvalBatches(source, view, share.rows(batch_size), np.asarray(indices, np.int64), batch_size)
    batches = -(-len(make_batch.indices) // batch_size)
    return _stream(make_batch, 0, batches, loading)


def blank(view: View, views: Sequence[Views], count: int) -> Arrays:
    """Room in a batch for what is shown of so many examples, the plain view, or several: zeros."""
    if not views:
        return {view.modality: view.blank(count)}
    return {name: array for of in views for name, array in of.blank(count).items()}


def shown_at(index: np.ndarray, count: int, seed: int, batch_size: int) -> np.ndarray:
    """Which of `count` examples the global indices [n] of a run show, all of them readable."""
    step, row = np.divmod(index, batch_size)
    epoch, step_of_epoch = np.divmod(step, count // batch_size)
    return permute(step_of_epoch * batch_size + row, count, seed, epoch)


def permute(position: np.ndarray, count: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Looks up `position` (int64 [n]) in a random permutation of range(count), one for each epoch, which is never stored.

    A Feistel network on the smallest near-square grid with `count` cells or more: each round shifts one coordinate by a
    hash of the other. A position that lands on one of the few cells past `count` is sent through again until it does not.
    (grain's `index_shuffle` works on 2**16 cells at least, and so takes 0.6 ms for one of 64 images.)
    """
    side = math.isqrt(count - 1) + 1
    sides = (-(-count // side), side)
    permuted = np.array(position, np.int64)
    todo = np.arange(len(permuted))
    while len(todo):
        coordinates = list(np.divmod(permuted[todo], side))
        epochs = epoch[todo] if np.ndim(epoch) else epoch  # one for all is hashed once
        for round_ in range(_ROUNDS):
            moved, fixed = round_ % 2, 1 - round_ % 2
            shift = counter.bits(seed, _SHUFFLE, epochs, round_, coordinates[fixed]) % np.uint64(sides[moved])
            coordinates[moved] = (coordinates[moved] + shift.astype(np.int64)) % sides[moved]
        permuted[todo] = coordinates[0] * side + coordinates[1]
        todo = todo[permuted[todo] >= count]
    return permuted


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Makes rows of the local batch of a step."""

    source: Source
    view: View
    rows: range  # of the global batch, that are this process's
    sampler: Callable[[np.ndarray], Arrays] | None
    seed: int
    batch_size: int
    views: tuple[Views, ...] = ()

    def blank(self, count: int) -> Arrays:
        """Room for what is shown of so many examples: zeros."""
        return blank(self.view, self.views, count)

    def __call__(self, step: int, part: slice) -> Arrays:
        rows = np.asarray(self.rows[part], dtype=np.int64)
        index = step * self.batch_size + rows
        batch = {
            **self.blank(len(index)),
            "index": index,
            "source": shown_at(index, len(self.source), self.seed, self.batch_size),
            "bad": np.full(len(index), -1, np.int64),
        }
        if self.views:
            self._fill_views(batch)
        else:
            self._fill_view(batch)
        return batch if self.sampler is None else batch | self.sampler(index)

    def _fill_view(self, batch: Arrays) -> None:
        """The one plain view of each example."""
        shown, index = examples(batch), batch["index"]
        for row, u in enumerate(self._uniforms(_CROP, index, UNIFORMS).tolist()):
            self._show(batch, row, lambda data, out=shown[row], u=u: self.view.shown_at_random(out, data, u))
        if self.view.flip:
            mirrored = counter.uniform(self.seed, _FLIP, index) < 0.5
            shown[mirrored] = shown[mirrored][..., ::-1, :]
        jitter = ColorJitter(self.view.color_jitter) if self.view.color_jitter else None
        for purpose, augment in ((_JITTER, jitter), (_AUGMENT, self.view.augment)):
            if augment is not None:
                self._augment(batch, purpose, augment)

    def _fill_views(self, batch: Arrays) -> None:
        """Several views of each example."""
        rooms = [of.blank(0).keys() for of in self.views]
        for row, index in enumerate(batch["index"]):
            u = changes.uniforms(self.views, self.seed, index)
            outs = [{name: batch[name][row] for name in names} for names in rooms]
            self._show(batch, row, lambda data, outs=outs, u=u: changes.show(outs, data, self.views, u))

    def _show(self, batch: Arrays, row: int, show: Callable[[np.ndarray | bytes], None]) -> None:
        """Shows the row's example; if it is bad, another one drawn for it, which is noted in the batch."""
        first, index = int(batch["source"][row]), batch["index"][row]
        chosen = first
        for attempt in range(_MAX_BAD):
            try:
                show(self.source[chosen])
            except (images.BadImage, OSError) as error:
                problem = f"{self.source.name(chosen)}: {error}"
                batch["bad"][row] = first
                chosen = int(counter.bits(self.seed, _REPLACE, index, attempt) % np.uint64(len(self.source)))
            except DataError as error:
                raise DataError(f"{self.source.name(chosen)}: {error}") from error
            else:
                batch["source"][row] = chosen
                return
        raise DataError(f"{_MAX_BAD} bad images in a row, the last of them {problem}")

    def _augment(self, batch: Arrays, purpose: int, augment: Augment) -> None:
        uniforms = self._uniforms(purpose, batch["index"], augment.uniforms).tolist()
        for example, u in zip(examples(batch), uniforms, strict=True):
            for frame in example.reshape(-1, *example.shape[-3:]):
                frame[:] = augment(frame, u)

    def _uniforms(self, purpose: int, index: np.ndarray, count: int) -> np.ndarray:
        return counter.uniform(self.seed, purpose, index[:, None], np.arange(count))


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    """Makes rows of the local part of one batch of an evaluation."""

    source: Source
    view: View
    rows: range  # of the global batch, that are this process's
    indices: np.ndarray
    batch_size: int

    def blank(self, count: int) -> Arrays:
        """Room for what is shown of so many examples: zeros."""
        return blank(self.view, (), count)

    def __call__(self, step: int, part: slice) -> Arrays:
        positions = step * self.batch_size + np.asarray(self.rows[part], dtype=np.int64)
        index = self.indices[np.minimum(positions, len(self.indices) - 1)]
        valid = positions < len(self.indices)
        shown = self.view.blank(len(index))
        bad = np.full(len(index), -1, np.int64)
        for row in np.flatnonzero(valid):
            try:
                shown[row] = self.view.shown(self.source[int(index[row])])
            except (images.BadImage, OSError):
                bad[row] = index[row]
            except DataError as error:
                raise DataError(f"{self.source.name(int(index[row]))}: {error}") from error
        return {self.view.modality: shown, "index": index, "valid": valid & (bad < 0), "bad": bad}


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Numbers the parts of batches through, and makes the one of a number."""

    make: _TrainBatches | _EvalBatches
    slices: Sequence[slice]

    def __call__(self, number: int) -> Arrays:
        batch, part = divmod(number, len(self.slices))
        return self.make(batch, self.slices[part])


def _stream(make: _TrainBatches | _EvalBatches, first: int, last: int | None, loading: Loading) -> Iterator[Arrays]:
    """Batches `first` up to `last` (None: endless), made in parts by grain's threads or processes."""
    rows, workers, threads = len(make.rows), loading.workers, loading.threads
    per_batch = min(rows, -(-rows * sum(array.nbytes for array in make.blank(1).values()) // _PART_BYTES))
    edges = np.linspace(0, rows, per_batch + 1).astype(int).tolist()
    parts = _Parts(make, [slice(*edge) for edge in itertools.pairwise(edges)])
    numbers = grain.MapDataset.range(first * per_batch, _ENDLESS if last is None else last * per_batch)
    if threads is None:
        threads = 1 if workers or isinstance(make.source, ArraySource) else min(16, cores())
    ahead = max(-(-loading.buffer * per_batch // max(workers, 1)), threads, 1)
    # grain's own defaults, 16 threads and 500 elements, would hold 500 parts in memory.
    dataset = numbers.map(parts).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if workers:
        if not flags.FLAGS.is_parsed():  # in a notebook or a test; grain reads a flag of its own when it starts workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    return _join(iter(dataset), per_batch)


def _join(parts: Iterator[Arrays], per_batch: int) -> Iterator[Arrays]:
    """Joins each `per_batch` elements to a batch."""
    try:
        while True:
            batch = _concatenate(list(itertools.islice(parts, per_batch)))
            if batch is None:
                return
            yield batch
            del batch  # no more memory than need be while the next one is collected
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise DataError(
            "a loader worker was killed, perhaps for want of memory: give fewer data.workers, or a smaller data.buffer"
        ) from error
    finally:
        parts.close()


def _concatenate(parts: list[Arrays]) -> Arrays | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _start_worker(index: int, count: int) -> None:
    del index, count
    end_with_parent()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
