"""Measures the loader beside plain Pillow, on JPEG files that it makes itself; prints one JSON line.

    python tests/loader_speed.py --images 1000 --workers 1

The files are 500x375 pixels with the spectrum of photographs and ImageNet's mean size of 110 kB. The loader makes training
batches of random resized crops with their masks; Pillow decodes the same files and makes the same crops (`crop`, `resize`).
Workers are threads of one process, as in training by default, or processes. Everything, the reader of the batches too, runs
on as many cores as there are workers, in alternating rounds, of which the medians count:

- `images_per_s`, `images_per_s_per_core`: of the loader in steady state, without the start of its workers
- `pillow_images_per_s_per_core`, `ratio`: of Pillow on one core, and how much faster the loader is on each of its cores
- `mean_error`, `worst_error`: grey levels by which its crops differ from Pillow's, on average, and for the worst image
- `peak_mib`, `base_mib`: peak resident memory of the process that makes batches, and what imports alone take of it
- `array_record`: the same for the files packed by `launch.py prepare`

    python tests/loader_speed.py --views 2x224,6x96

measures several views of an image instead, as LeJEPA has them: crops of shares of 0.3 to 1 of its area of the first size,
and of 0.05 to 0.3 of the others, all flipped, jittered, made grey, blurred and solarised. Beside it, in alternating rounds on
one core, torchvision's transforms (v2) make the same of a Pillow image: `images_per_s`, `torchvision_images_per_s`, `ratio`.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ijepa_jax.data import counter, crops, images, pipeline
from ijepa_jax.data import source as sources
from ijepa_jax.data.multiview import Views
from ijepa_jax.data.open import open_source
from ijepa_jax.data.pack import prepare
from ijepa_jax.host.console import Display
from ijepa_jax.methods.masks import MaskSampler

HEIGHT, WIDTH = 375, 500
DISTINCT = 64  # pictures; more files are copies of these
QUALITY = 92
SCALE, ASPECT = (0.3, 1.0), (3 / 4, 4 / 3)


def picture(seed: int) -> np.ndarray:
    """Noise with the 1/f spectrum of photographs, mostly common to the three channels: uint8 [375, 500, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, HEIGHT, WIDTH))) / frequency**1.1, s=(HEIGHT, WIDTH))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    return np.clip(128 + 36 * noise[:1] + 13 * noise, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def write_files(folder: pathlib.Path, count: int) -> None:
    """Writes `count` JPEG files into folder/train, and one into folder/test."""
    encoded = []
    for seed in range(min(count, DISTINCT)):
        buffer = io.BytesIO()
        Image.fromarray(picture(seed)).save(buffer, "JPEG", quality=QUALITY)
        encoded.append(buffer.getvalue())
    for part, number in (("train", count), ("test", 1)):
        (folder / part).mkdir(parents=True)
        for i in range(number):
            (folder / part / f"{i:06d}.jpg").write_bytes(encoded[i % len(encoded)])


def pillow_crop(data: bytes, u: np.ndarray, size: int) -> np.ndarray:
    """What a loader that uses Pillow alone does for an example."""
    with Image.open(io.BytesIO(data)) as image:
        top, left, height, width = images.random_resized_crop_box(image.height, image.width, u, SCALE, ASPECT)
        return np.asarray(image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR))


def pillow_rate(source: sources.Source, count: int, size: int) -> float:
    """Images a second by Pillow, in this process."""
    uniforms = counter.uniform(0, np.arange(count)[:, None], np.arange(images.CROP_UNIFORMS)).tolist()
    begun = time.perf_counter()
    for i in range(count):
        pillow_crop(source[i], uniforms[i], size)
    return count / (time.perf_counter() - begun)


def loader_rate(
    source: sources.Source, count: int, options: argparse.Namespace, views: Sequence[Views] = ()
) -> tuple[float, float]:
    """Images a second by the loader once it runs, and the peak memory, in MiB, of the largest process that makes batches."""
    grid = (options.size // 16, options.size // 16)
    sampler = MaskSampler(grid=grid, context_patches=min(48, grid[0] * grid[1] // 4))
    threads, processes = (options.workers, 0) if options.kind == "threads" else (1, options.workers)
    view = pipeline.View((options.size, options.size), crop_scale=SCALE, crop_aspect=ASPECT, exact=options.exact)
    loading = pipeline.Loading(processes, threads, buffer=1)
    stream = pipeline.train_batches(source, sampler, view, seed=0, batch_size=options.batch, loading=loading, views=views)
    with contextlib.closing(stream):
        # Workers start together and so deliver together: only whole turns of all of them are timed.
        turns = max(1, round(count / options.batch / options.workers))
        for _ in range(2 * options.workers):
            next(stream)
        begun = time.perf_counter()
        for _ in range(turns * options.workers):
            next(stream)
        rate = turns * options.workers * options.batch / (time.perf_counter() - begun)
        makers = [child.pid for child in multiprocessing.active_children()] if processes else [os.getpid()]
        return rate, max(map(peak_mib, makers))


def peak_mib(process: int) -> float:
    """Peak resident memory of a process (Linux)."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def errors(source: sources.Source, options: argparse.Namespace) -> Iterator[float]:
    """Mean absolute differences from Pillow's crops, one for each of some images."""
    for i in range(min(len(source), DISTINCT)):
        u = counter.uniform(1, i, np.arange(images.CROP_UNIFORMS)).tolist()
        ours = np.empty((options.size, options.size, 3), np.uint8)
        crops.crop_into(
            ours, source[i], lambda h, w, u=u: images.random_resized_crop_box(h, w, u, SCALE, ASPECT), options.exact
        )
        yield np.abs(ours.astype(int) - pillow_crop(source[i], u, options.size)).mean()


def measure(source: sources.Source, options: argparse.Namespace) -> dict[str, float]:
    """All figures for one kind of input."""
    rounds = [
        (pillow_rate(source, len(source), options.size), *loader_rate(source, len(source), options))
        for _ in range(options.rounds)
    ]
    pillow, rate, peak = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(loader / options.workers / plain for plain, loader, _ in rounds)
    difference = list(errors(source, options))
    return {
        "images_per_s": round(rate, 1),
        "images_per_s_per_core": round(rate / options.workers, 1),
        "pillow_images_per_s_per_core": round(pillow, 1),
        "ratio": round(ratio, 3),
        "mean_error": round(float(np.mean(difference)), 3),
        "worst_error": round(float(np.max(difference)), 3),
        "peak_mib": round(peak, 1),
    }


def measure_views(source: sources.Source, options: argparse.Namespace) -> dict[str, float]:
    """The figures of several views of an image."""
    theirs, views = torchvision_views(options.views), [dataclasses.replace(of, exact=options.exact) for of in options.views]
    small = argparse.Namespace(**{**vars(options), "workers": 1, "kind": "threads"})
    rounds = []
    for _ in range(options.rounds):
        begun = time.perf_counter()
        for i in range(len(source)):
            theirs(source[i])
        rounds.append((len(source) / (time.perf_counter() - begun), loader_rate(source, len(source), small, views)[0]))
    plain, rate = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(loader / torchvision for torchvision, loader in rounds)
    return {"images_per_s": round(rate, 1), "torchvision_images_per_s": round(plain, 1), "ratio": round(ratio, 3)}


def parse_views(text: str) -> list[Views]:
    """`2x224,6x96`: views of 224 pixels, two, and six of 96."""
    counts = [tuple(map(int, part.split("x"))) for part in text.split(",")]
    if any(len(count) != 2 or min(count) < 1 for count in counts):
        raise ValueError(text)
    scales = [(0.3, 1.0)] + [(0.05, 0.3)] * (len(counts) - 1)
    return [Views(f"of_{n}", n, (s, s), scale=of, bicubic=True) for (n, s), of in zip(counts, scales, strict=True)]


def torchvision_views(views: list[Views]) -> Callable[[bytes], list[np.ndarray]]:
    """What makes the same views of an encoded image by torchvision."""
    from tests.partners import torch  # before torchvision, which may be one for another torch

    torch.set_num_threads(1)
    from torchvision.transforms import InterpolationMode, v2

    def transform(of: Views):
        return v2.Compose([
            v2.RandomResizedCrop(of.size, of.scale, of.aspect, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(of.flip), v2.RandomApply([v2.ColorJitter(*of.strengths)], of.jitter),
            v2.RandomGrayscale(of.grey), v2.RandomApply([v2.GaussianBlur(of.kernel, of.sigma)], of.blur),
            v2.RandomSolarize(of.threshold, of.solarise),
        ])  # fmt: skip

    made = [(transform(of), of.count) for of in views]

    def show(data: bytes) -> list[np.ndarray]:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return [np.asarray(change(image)) for change, count in made for _ in range(count)]

    return show


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="how many files; each is loaded about once a round")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kind", choices=("threads", "processes"), default="threads", help="of workers")
    parser.add_argument("--exact", action="store_true", help="crops equal to Pillow's to the bit")
    parser.add_argument("--size", type=int, default=224, help="of the crops")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--views", default="", help="measure these instead, such as 2x224,6x96")
    options = parser.parse_args()
    if min(options.images, options.workers, options.batch, options.rounds) < 1 or options.size < 96:
        parser.error("images, workers, batch and rounds must be positive, and the size 96 or more")
    try:
        options.views = parse_views(options.views) if options.views else []
    except ValueError:
        parser.error(f"--views {options.views!r} must be counts and sizes, such as 2x224,6x96")
    options.batch = min(options.batch, options.images)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < options.workers:
        parser.error(f"{options.workers} workers need as many cores, and there are {len(cores)}")
    os.sched_setaffinity(0, cores[: options.workers])
    base = peak_mib(os.getpid())
    with tempfile.TemporaryDirectory(prefix="loader_speed_") as folder:
        files = pathlib.Path(folder, "files")
        write_files(files, options.images)
        source = open_source(f"folder:{files}", "train", size=0, seed=0)
        if options.views:
            print(json.dumps(measure_views(source, options)))
            return
        result = {
            "workers": options.workers,
            "kind": options.kind,
            "exact": options.exact,
            "kilobytes_per_file": round(
                statistics.mean(len(source[i]) for i in range(min(options.images, DISTINCT))) / 1000, 1
            ),
            "base_mib": round(base, 1),
            **measure(source, options),
        }
        packed = pathlib.Path(folder, "packed")
        prepare.prepare(f"folder:{files}", packed, short_side=0, workers=options.workers, display=Display(quiet=True))
        result["array_record"] = measure(open_source(f"tfds:{packed}", "train", size=0, seed=0), options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
