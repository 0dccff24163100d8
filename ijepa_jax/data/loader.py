"""A data set as a run reads it: which one, what is shown of its images, and how batches of them are made."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np

from ijepa_jax.data import images, pipeline
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.multiview import Views
from ijepa_jax.data.open import open_source
from ijepa_jax.data.pipeline import ALONE, BY_THREADS, Loading, Share
from ijepa_jax.data.scenes import Progress
from ijepa_jax.data.source import Arrays, DataError, Source
from ijepa_jax.data.views import View


@dataclasses.dataclass(frozen=True)
class Loader:
    """How the examples of a data set come; `dataclasses.replace` makes others of it."""

    name: str  # as for `open.open_source`
    directory: str
    scenes: dict[str, int]  # how many to generate, by split
    view: View
    seed: int  # of the order of training examples, and of their crops
    batch_size: int  # of training, over all processes
    eval_batch_size: int
    max_bad_fraction: float  # more unreadable images than this are an error
    share: Share = ALONE
    loading: Loading = BY_THREADS

    def with_view(self, **changes: object) -> Self:
        """The same with something else shown of images."""
        return dataclasses.replace(self, view=dataclasses.replace(self.view, **changes))

    def open(self, split: str, progress: Progress | None = None) -> Source:
        """The images of a split ("train" or "test")."""
        found = open_source(
            self.name, split, size=self.scenes[split], seed=0, directory=self.directory or None, image_size=self.view.size,
            progress=progress,
        )  # fmt: skip
        if isinstance(found, ArraySource):  # all of one shape: what the first cannot be, none can
            try:
                self.view.shown(found[0])
            except images.BadImage as error:
                raise DataError(f"{self.name}: {error} (data.channels)") from error
            except DataError as error:
                raise DataError(f"{self.name}: {error}") from error
        if self.view.modality == "signal":
            self._warn_of_scale(found)
        return found

    def _warn_of_scale(self, signals: ArraySource) -> None:
        """Says where signals are far from standardised: networks that start with small weights learn little of them."""
        few = np.stack([self.view.shown(signals[int(row)]) for row in np.linspace(0, len(signals) - 1, 100)])
        mean, deviation = float(few.mean()), float(few.std())
        if abs(mean) > 2 or not 0.1 < deviation < 10:
            logging.warning(
                "%s: less data.mean %s, divided by data.std %s, signals have mean %.3g and standard deviation %.3g: "
                "give those of the data, for values near 0 and 1", self.name, self.view.mean, self.view.std, mean, deviation,
            )  # fmt: skip

    def train_batches(
        self,
        source: Source,
        sampler: Callable[[np.ndarray], Arrays] | None,
        start_step: int = 0,
        views: Sequence[Views] = (),
    ) -> Iterator[Arrays]:
        """This process's stream of training batches from a step on, see `pipeline.train_batches`."""
        return pipeline.train_batches(
            source, sampler, self.view, seed=self.seed, batch_size=self.batch_size, start_step=start_step, share=self.share,
            loading=self.loading, views=views,
        )  # fmt: skip

    def blank(self, count: int, views: Sequence[Views] = ()) -> Arrays:
        """Room for what training shows of so many examples: zeros, as `pipeline.blank` has it."""
        return pipeline.blank(self.view, views, count)

    def crops(self, source: Source, steps: int) -> Iterator[Arrays]:
        """This process's rows of so many training batches, without masks."""
        with contextlib.closing(self.train_batches(source, None)) as stream:
            yield from itertools.islice(stream, steps)

    def eval_batches(self, source: Source, indices: np.ndarray, devices: int = 1) -> Iterator[Arrays]:
        """This process's rows of the images at `indices`, centre-cropped, in order, in batches that divide among devices."""
        return pipeline.eval_batches(
            source, indices, self.view, batch_size=-(-self.eval_batch_size // devices) * devices, share=self.share,
            loading=self.loading,
        )  # fmt: skip
