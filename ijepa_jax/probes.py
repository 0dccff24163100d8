"""The probes of a run: while it trains and at its end, of its encoder and of what that is compared with."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from ijepa_jax import build, metrics, processes, sharding
from ijepa_jax.data.sources import DataError, Source
from ijepa_jax.evaluate import features, probe
from ijepa_jax.run import Run
from ijepa_jax.step import random_encoder
from ijepa_jax.visualize.live import feature_strip


def baselines(run: Run) -> None:
    """Probes a random encoder and raw pixels on the sample that probes during training use."""
    begun, data = time.monotonic(), _data(run, during=True)
    run.display.log("first what this run is compared with: a random encoder, and raw pixels")
    random_encoder = _random_encoder(run)
    random_init = data.measure(partial(run.pooled, random_encoder)).results
    pixels = data.measure(features.pixels(run.mesh)).results
    if run.writer:
        named = {"baseline/random_init": random_init, "baseline/pixels": pixels, "probe": random_init}
        run.writer.write(0, {f"{name}/{key}": value for name, results in named.items() for key, value in results.items()})
    _show_features(run, 0, random_encoder)
    run.probed += time.monotonic() - begun
    run.display.probes("random init", random_init, f"probes of a random encoder: {_one_line(random_init)}")
    run.display.probes("pixels", pixels, f"probes of raw pixels: {_one_line(pixels)}")


def recall(run: Run) -> None:
    """Shows again, of a run that goes on, what was probed before."""
    lines = metrics.read(run.workdir) if processes.is_first() else []
    for name, prefix in (
        ("random init", "baseline/random_init/"),
        ("pixels", "baseline/pixels/"),
        (run.method.title, "probe/"),
    ):
        found = [{key: line[key] for key in line if key.startswith(prefix) and line[key] is not None} for line in lines]
        last = next((results for results in reversed(found) if results), {})
        run.display.recall_probes(name, {key.removeprefix(prefix): value for key, value in last.items()})


def during(run: Run, step: int, encoder: Any) -> float:
    """Probes the encoder after a step; returns the score by which the best checkpoint is chosen."""
    begun = time.monotonic()
    results, _, strengths = _data(run, during=True).measure(partial(run.pooled, encoder))
    _show_features(run, step, encoder)
    run.probed += time.monotonic() - begun
    if run.writer:
        chosen = {f"l2/{task}": value for task, value in strengths.items()}
        run.writer.write(step, {f"probe/{key}": value for key, value in {**results, **chosen}.items()})
        run.writer.flush()
    run.display.probes(run.method.title, results, f"step {step} probes: {_one_line(results)}")
    return probe.score(results)


def final(run: Run, encoder: Any) -> dict[str, Any]:
    """The report's probes, of the trained encoder and of both baselines; on more images than those during training."""
    run.display.log("final probes: trained encoder, random encoder, raw pixels")
    data = _data(run, during=False)
    trained = data.measure(partial(run.pooled, encoder))
    random_init = data.measure(partial(run.pooled, _random_encoder(run)))
    if run.writer:
        # not under probe/: these are fitted on more images than the probes during training, and would look like a jump
        run.writer.write(run.total_steps, {f"final/{key}": value for key, value in trained.results.items()})
        run.writer.flush()
    return probe.compare(trained, random_init, data.measure(features.pixels(run.mesh)))


def _data(run: Run, during: bool) -> probe.ProbeData:
    settings = run.config.probe
    return probe.ProbeData(
        run.train, run.test, partial(_eval_batches, run), partial(build.crops, run.config), run.mesh,
        train_images=settings.during_train_images if during else settings.train_images,
        test_images=settings.during_test_images if during else settings.test_images,
        knn_k=settings.knn_k, knn_temperature=settings.knn_temperature,
        lidar_images=settings.lidar_images, lidar_views=settings.lidar_views,
    )  # fmt: skip


def _eval_batches(run: Run, source: Source, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for batch in build.eval_batches(run.config, source, rows, run.mesh):
        run.bad.account(source, batch["bad"])
        yield batch


def _random_encoder(run: Run) -> Any:
    """The parameters of the encoder as it was before any training, placed like the trained one's."""
    fresh = jax.jit(partial(random_encoder, run.method, run.config.seed))
    return jax.jit(fresh, out_shardings=sharding.state_shardings(jax.eval_shape(fresh), run.mesh))()


def _show_features(run: Run, step: int, encoder: Any) -> None:
    """Writes a picture of what an encoder's patches hold, for whoever watches the run; no run stops for want of it."""
    try:
        picture = feature_strip(run.config, run.test, partial(run.patches, encoder), run.encoder.grid, run.mesh)
    except DataError:  # none of these few images can be read
        return
    if run.writer:
        run.writer.pictures(step, {"features/patches": picture})


def _one_line(results: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in results.items() if name != "feature_std")
