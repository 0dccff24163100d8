"""The stream is a pure function of (seed, epoch, global index), however it is made and wherever it starts."""

import dataclasses
import io
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from ijepa_jax.data import counter, images, pipeline
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.source import DataError
from tests import small

KEYS = {"image", "index", "source", "bad", "context"}


@dataclasses.dataclass(frozen=True)
class Masks:
    """Stands in for a mask sampler: a vectorised function of the global index."""

    def __call__(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return {"context": (counter.bits(5, index) % np.uint64(16)).astype(np.int32)[:, None, None]}


class Files:
    """Encoded images in memory; the examples in `bad` are truncated, those in `gone` cannot be opened."""

    def __init__(self, count: int, bad=(), gone=()):
        self.labels = {}
        self._data = []
        for i in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (20 + i % 3, 24), (i, 2 * i, 3 * i)).save(buffer, "PNG")
            self._data.append(buffer.getvalue()[: 40 if i in bad else None])
        self._gone = set(gone)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> bytes:
        if index in self._gone:
            raise FileNotFoundError(f"no file {index}")
        return self._data[index]

    def name(self, index: int) -> str:
        return f"picture-{index}.png"


def _arrays(count: int = 50, channels: int = 1) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 14, channels), np.uint8)
    return ArraySource(pixels, {}, "arrays")


def _train(source, steps, *, sampler=None, **settings):
    stream = small.stream(source, sampler, **settings)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def _assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_have_the_agreed_arrays():
    batch = _train(_arrays(), 1, sampler=Masks())[0]
    assert set(batch) == KEYS
    assert batch["image"].shape == (8, 16, 16, 1) and batch["image"].dtype == np.uint8
    assert all(batch[key].shape == (8,) and batch[key].dtype == np.int64 for key in ("index", "source", "bad"))
    assert (batch["bad"] == -1).all()
    np.testing.assert_array_equal(batch["context"], Masks()(batch["index"])["context"])


def test_an_epoch_shows_each_example_once_in_an_order_of_its_own():
    batches = _train(_arrays(50), 24)  # 6 whole batches of 8 an epoch; 2 examples are dropped
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(24 * 8))
    epochs = np.concatenate([batch["source"] for batch in batches]).reshape(4, 48)
    assert all(len(set(epoch)) == 48 and set(epoch) <= set(range(50)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert len({frozenset(epoch) for epoch in epochs.tolist()}) > 1  # nor are the dropped ones always the same
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 50, 1000, 65537])
def test_permute_is_a_permutation(count):
    position = np.arange(count)
    permuted = pipeline.permute(position, count, 0, 1)
    assert np.bincount(permuted, minlength=count).tolist() == [1] * count
    np.testing.assert_array_equal(pipeline.permute(position[::-1][:9], count, 0, 1), permuted[::-1][:9])


def test_permute_looks_like_a_uniform_shuffle():
    count, epochs = 40, 2000
    orders = np.stack([pipeline.permute(np.arange(count), count, 9, epoch) for epoch in range(epochs)])
    places = np.stack([np.bincount(orders[:, i], minlength=count) for i in range(count)])
    # Chi-squared over its degrees of freedom, of the places and of the gaps between neighbours: 1, with a deviation of
    # sqrt(2 / 1521) = 0.04 for the places and 0.23 for the 38 degrees of the gaps.
    assert abs(((places - epochs / count) ** 2).sum() / (epochs / count) / (count - 1) ** 2 - 1) < 0.2
    gaps = np.bincount((np.diff(orders) % count).ravel(), minlength=count)[1:]
    assert abs(((gaps - gaps.mean()) ** 2).sum() / gaps.mean() / (count - 2) - 1) < 1
    assert len(np.unique(orders, axis=0)) == epochs


def test_crops_and_order_follow_the_seed_and_differ_between_epochs():
    source = _arrays(8)
    _assert_same(_train(source, 3), _train(source, 3))
    first, second = _train(source, 2)
    rows = [np.flatnonzero(batch["source"] == 0)[0] for batch in (first, second)]
    assert (first["image"][rows[0]] != second["image"][rows[1]]).any()
    other = _train(source, 1, seed=4)[0]
    assert (first["source"] != other["source"]).any()


def test_images_are_the_crops_that_the_uniforms_say():
    source = _arrays(20)
    batch = _train(source, 1, start_step=5)[0]
    u = counter.uniform(3, pipeline._CROP, batch["index"][:, None], np.arange(images.CROP_UNIFORMS))
    for row in range(8):
        box = images.random_resized_crop_box(12, 14, u[row], (0.3, 1.0), (3 / 4, 4 / 3))
        expected = images.crop_resize(source[batch["source"][row]], box, (16, 16))
        np.testing.assert_array_equal(batch["image"][row], expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_the_rows_of_the_same_global_batches(count):
    settings = {"sampler": Masks(), "flip": True}
    shards = [_train(_arrays(), 9, index=p, count=count, **settings) for p in range(count)]
    merged = [{key: np.concatenate([part[key] for part in parts]) for key in KEYS} for parts in zip(*shards, strict=True)]
    _assert_same(merged, _train(_arrays(), 9, **settings))


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": 1, "buffer": 1}, {"threads": 4, "buffer": 8}, {"workers": 2}])
def test_threads_and_workers_change_nothing(settings):
    source = Files(40, bad=(5, 7))
    expected = _train(source, 12, sampler=Masks(), channels=3)
    _assert_same(_train(source, 12, sampler=Masks(), channels=3, **settings), expected)


@pytest.mark.parametrize("settings", [{}, {"threads": 3}, {"workers": 2}, {"index": 1, "count": 2}])
def test_batches_made_in_parts_are_the_same(settings, monkeypatch):
    source = Files(40, bad=(5, 7))
    shared = {"sampler": Masks(), "channels": 3, "flip": True, "color_jitter": 0.5, "start_step": 3}
    expected = _train(source, 7, **shared | settings)
    monkeypatch.setattr(pipeline, "_PART_BYTES", 3 * 16 * 16 * 3)  # three images, of eight or of four
    _assert_same(_train(source, 7, **shared | settings), expected)
    evaluated = _evaluate(source, range(20), channels=3)
    monkeypatch.undo()
    _assert_same(evaluated, _evaluate(source, range(20), channels=3))


def test_exact_crops_can_be_asked_for():
    buffer = io.BytesIO()
    photograph = load_sample_image("flower.jpg")
    Image.fromarray(photograph).save(buffer, "JPEG", quality=90)
    source = Files(8)
    source._data = [buffer.getvalue()] * 8
    fast, exact = (_train(source, 1, channels=3, size=(64, 64), exact=exact)[0]["image"] for exact in (False, True))
    u = counter.uniform(3, pipeline._CROP, 5, np.arange(images.CROP_UNIFORMS))
    box = images.random_resized_crop_box(*photograph.shape[:2], u, (0.3, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(exact[5], images.crop_resize(images.decode(source[5], 3), box, (64, 64)))
    assert 0 < np.abs(fast.astype(int) - exact).mean() < 2


def test_a_stream_can_start_at_any_step_at_once():
    whole = _train(_arrays(), 17, sampler=Masks())
    for start in (1, 6, 13):
        _assert_same(_train(_arrays(), 17 - start, sampler=Masks(), start_step=start), whole[start:])
    far = _train(_arrays(), 1, start_step=10**12)[0]
    assert far["index"][0] == 8 * 10**12


def test_flip_and_jitter_are_options():
    source, plain = _arrays(channels=3), {"channels": 3, "crop_scale": (1, 1), "crop_aspect": (1, 1), "size": (12, 12)}
    source.images = source.images[:, :, :12]
    still, flipped, jittered = (_train(source, 4, **plain | more) for more in ({}, {"flip": True}, {"color_jitter": 1.0}))
    mirrored = 0
    for a, b in zip(still, flipped, strict=True):
        for x, y in zip(a["image"], b["image"], strict=True):
            assert np.array_equal(x, y) or np.array_equal(x[:, ::-1], y)
            mirrored += not np.array_equal(x, y)
    assert 6 < mirrored < 26
    assert all((a["image"] != b["image"]).any() for a, b in zip(still, jittered, strict=True))


def test_bad_images_are_replaced_and_named():
    source = Files(24, bad=(3, 4), gone=(11,))
    batches = _train(source, 3, channels=3)
    bad = np.concatenate([batch["bad"] for batch in batches])
    shown = np.concatenate([batch["source"] for batch in batches])
    assert sorted(bad[bad >= 0].tolist()) == [3, 4, 11]
    assert not set(shown.tolist()) & {3, 4, 11}
    image = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(image[:, 0, 0], shown[:, None] * [1, 2, 3])  # each picture has one colour


def test_bad_images_only_stop_the_stream_with_a_name():
    with pytest.raises(DataError, match=r"10 bad images in a row, the last of them picture-\d+\.png: cannot decode"):
        _train(Files(16, bad=range(16)), 1, channels=3)
    with pytest.raises(DataError, match="no file"):
        _train(Files(16, gone=range(16)), 1, channels=3, workers=1)


def test_a_killed_worker_is_one_clear_line():
    stream = small.stream(_arrays(), workers=2, buffer=1)
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a loader worker was killed.*data\.workers"):
        for _ in range(1000):
            next(stream)
    stream.close()


def test_workers_end_when_the_run_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, os, signal
        import numpy as np
        from ijepa_jax.data import arrays, pipeline

        if __name__ == "__main__":
            source = arrays.ArraySource(np.zeros((9, 8, 8, 1), np.uint8), {}, "zeros")
            stream = pipeline.train_batches(
                source, None, pipeline.View((8, 8), 1), seed=0, batch_size=4, loading=pipeline.Loading(workers=2))
            next(stream)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    with (tmp_path / "out").open("w+") as out:  # a pipe would stay open for as long as a worker lives
        subprocess.run(
            [sys.executable, script], env=environment, stdout=out, stderr=subprocess.DEVNULL, timeout=120, check=False
        )
        out.seek(0)
        workers = [int(word) for word in out.readline().split()]
    assert len(workers) == 2
    end = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers)


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(DataError, match="7 images, which is less than one batch of 8"):
        _train(_arrays(7), 1)
    with pytest.raises(DataError, match="batch of 8 cannot be divided among 3 processes"):
        _train(_arrays(), 1, count=3)


def _evaluate(source, indices, loading=pipeline.BY_THREADS, **view):
    shown = pipeline.View(**{"size": (12, 14), "channels": 1, **view})
    return list(pipeline.eval_batches(source, indices, shown, batch_size=8, loading=loading))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_each_example_once_in_order(workers):
    source, indices = _arrays(), np.arange(40, 11, -1)
    batches = _evaluate(source, indices, loading=pipeline.Loading(workers))
    assert [len(batch["image"]) for batch in batches] == [8] * 4
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert np.concatenate([batch["index"] for batch in batches])[valid].tolist() == indices.tolist()
    image = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(image[valid], source.images[indices])
    assert not image[~valid].any() and len(image[~valid]) == 3
    assert all((batch["bad"] == -1).all() for batch in batches)


def test_evaluation_leaves_out_bad_images_and_names_them():
    batches = _evaluate(Files(19, bad=(2, 18)), range(19), channels=3, size=(8, 8), center=0.9)
    index, valid, bad = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "valid", "bad"))
    assert index[valid].tolist() == [i for i in range(19) if i not in (2, 18)]
    assert bad[bad >= 0].tolist() == [2, 18]
    assert _evaluate(_arrays(), []) == []


def test_workers_need_no_absl_application(tmp_path):
    """Outside of absl's app.run, and in it, in a script of one's own."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import numpy as np
        from absl import app
        from ijepa_jax.data import arrays, pipeline

        def main(argv):
            source = arrays.ArraySource(np.zeros((9, 8, 8, 1), np.uint8), {}, "zeros")
            stream = pipeline.train_batches(
                source, None, pipeline.View((8, 8), 1), seed=0, batch_size=4, start_step=7, loading=pipeline.Loading(1))
            print(next(stream)["index"][0])
            stream.close()

        if __name__ == "__main__":
            app.run(main) if sys.argv[1:] else main(None)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    for arguments in ([], ["positional"]):
        command = [sys.executable, script, *arguments]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert run.stdout.strip() == "28", run.stderr
