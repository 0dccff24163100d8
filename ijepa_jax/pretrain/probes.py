"""The probes of a run: while it trains and at its end, of its encoder and of what that is compared with."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ijepa_jax.build import Parts
from ijepa_jax.data.source import DataError
from ijepa_jax.devices import processes
from ijepa_jax.evaluate import features, probe
from ijepa_jax.host.console import Display
from ijepa_jax.train import metrics
from ijepa_jax.train.recorder import Recorder
from ijepa_jax.train.run import Data, Run
from ijepa_jax.train.step import State, random_encoder
from ijepa_jax.visualize.live import feature_strip
from ijepa_jax.visualize.page import worded


def check_labels(parts: Parts, data: Data, display: Display) -> None:
    """Says where nothing can be probed. Raises DataError for labels of which no probes could be made."""
    settings = parts.config.probe
    if parts.method.backbone() is None:
        display.log(f"no probes: {parts.method.title} trains no encoder")
    elif not probe.check_labels(data.train, data.test, settings.train_images, settings.test_images):
        splits = {"training": data.train, "test": data.test}
        classes = ", ".join(f"{name} {dict(split.classes) or 'none'}" for name, split in splits.items())
        display.log(f"no probes, as not both splits have labels of two classes: {classes}")


class Probes:
    """Measures a run's encoder: during training on small samples, as `loop.Watch`, and at the end."""

    def __init__(self, run: Run, recorder: Recorder):
        self._run, self._recorder = run, recorder
        self.every = run.config.probe.every if run.encoder else 0

    @functools.cached_property
    def pooled(self) -> Callable[[Any, np.ndarray], features.Features]:
        """(encoder parameters, this process's images) -> features."""
        return features.extractor(self._run.encoder, self._run.mesh)

    @functools.cached_property
    def _patches(self) -> Callable[[Any, np.ndarray], features.Features]:
        """Likewise, of patches."""
        return features.extractor(self._run.encoder, self._run.mesh, ("patches",))

    @property
    def _raw(self) -> str:
        """What examples themselves are called, as a baseline."""
        return worded("raw pixels", self._run.encoder.modality)

    def begin(self, continued: bool) -> None:
        """Probes what the run is compared with, or shows again, of one that goes on, what was probed before."""
        if self.every:
            self._recall() if continued else self._baselines()

    def _baselines(self) -> None:
        """Probes a random encoder and raw pixels on the sample that probes during training use."""
        run, data = self._run, self._data(during=True)
        run.display.log(f"first what this run is compared with: a random encoder, and {self._raw}")
        with self._recorder.probing():
            encoder = random_encoder(run.method, run.config.seed, run.mesh)
            random_init = data.measure(partial(self.pooled, encoder)).results
            pixels = data.measure(features.pixels(run.mesh)).results
            self._show_features(0, encoder)
        named = {"baseline/random_init": random_init, "baseline/pixels": pixels, "probe": random_init}
        self._recorder.write(0, {f"{name}/{key}": value for name, found in named.items() for key, value in found.items()})
        run.display.probes("random init", random_init, f"probes of a random encoder: {_one_line(random_init)}")
        run.display.probes("pixels", pixels, f"probes of {self._raw}: {_one_line(pixels)}")

    def _recall(self) -> None:
        run = self._run
        lines = metrics.read(run.workdir) if processes.is_first() else []
        prefixes = {"random init": "baseline/random_init/", "pixels": "baseline/pixels/", run.method.title: "probe/"}
        for name, prefix in prefixes.items():
            found = [{key: line[key] for key in line if key.startswith(prefix) and line[key] is not None} for line in lines]
            last = next((results for results in reversed(found) if results), {})
            run.display.recall_probes(name, {key.removeprefix(prefix): value for key, value in last.items()})

    def during(self, step: int, state: State) -> float:
        """Probes the encoder after a step; returns the score by which the best checkpoint is chosen."""
        run = self._run
        with self._recorder.probing():
            encoder = run.trained(state)
            results, _, strengths = self._data(during=True).measure(partial(self.pooled, encoder))
            self._show_features(step, encoder)
        chosen = {f"l2/{task}": value for task, value in strengths.items()}
        self._recorder.write(step, {f"probe/{key}": value for key, value in {**results, **chosen}.items()})
        self._recorder.flush()
        run.display.probes(run.method.title, results, f"step {step} probes: {_one_line(results)}")
        return probe.score(results)

    def final(self, encoder: Any) -> dict[str, Any]:
        """The report's probes, of the trained encoder and of both baselines; on more images than those during training."""
        run, data = self._run, self._data(during=False)
        run.display.log(f"final probes: trained encoder, random encoder, {self._raw}")
        trained = data.measure(partial(self.pooled, encoder))
        random_init = data.measure(partial(self.pooled, random_encoder(run.method, run.config.seed, run.mesh)))
        # not under probe/: these are fitted on more images than the probes during training, and would look like a jump
        self._recorder.write(run.total_steps, {f"final/{key}": value for key, value in trained.results.items()})
        self._recorder.flush()
        return probe.compare(trained, random_init, data.measure(features.pixels(run.mesh)))

    def _data(self, during: bool) -> probe.ProbeData:
        run, settings = self._run, self._run.config.probe
        return probe.ProbeData(
            run.train, run.test, run.eval_batches, run.loader, run.mesh,
            train_images=settings.during_train_images if during else settings.train_images,
            test_images=settings.during_test_images if during else settings.test_images,
            lidar_images=settings.lidar_images,
        )  # fmt: skip

    def _show_features(self, step: int, encoder: Any) -> None:
        """Writes a picture of what an encoder's patches hold, for whoever watches; no run stops for want of it."""
        run = self._run
        try:
            picture = feature_strip(run.loader, run.test, partial(self._patches, encoder), run.encoder.grid, run.mesh)
        except DataError:  # none of these few images can be read
            return
        self._recorder.pictures(step, {"features/patches": picture})


def _one_line(results: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in results.items() if name != "feature_std")
