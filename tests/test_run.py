"""How a run starts: which changes since its checkpoints it takes, and which it refuses."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ijepa_jax import build
from ijepa_jax.data.pack.prepare import prepare
from ijepa_jax.train import resume, run
from tests import small


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same images as arrays, in a folder, and packed; `moved` holds copies of later times, `other` as many others."""
    place = tmp_path_factory.mktemp("place")
    for where, seed in (("first", 0), ("other", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 3), np.uint8)
        (place / where / "photos" / "a").mkdir(parents=True)
        np.savez(place / where / "x.npz", images=pixels)
        for i, image in enumerate(pixels):
            Image.fromarray(image if seed == 0 else image[:5]).save(place / where / "photos" / "a" / f"{i}.png")
        prepare(f"folder:{place / where / 'photos'}", place / where / "packed")
    shutil.copytree(place / "first", place / "moved", copy_function=shutil.copyfile)
    return place


def start(name: str, kept: dict | None = None) -> tuple[dict, list[str]]:
    """The settings that a run of these data keeps, and what it says when it starts over a checkpoint that has `kept` some."""
    config = small.config(data__name=name)
    train, said = build.loader(config).open("train"), []
    checkpoints = SimpleNamespace(steps=lambda: [4] if kept else [], notes=lambda step: {"settings": kept})
    fields = {
        "config": config,
        "train": train,
        "contents": train.contents(),
        "code": {},
        "workdir": "W",
        "checkpoints": checkpoints,
    }
    started = SimpleNamespace(**fields, display=SimpleNamespace(log=said.append))
    settings = run.Run.settings(started)
    resume._refuse_changes(started, settings)
    return settings, said


@pytest.mark.parametrize(("kind", "differs"), [("arrays", "pixels"), ("folder", "bytes"), ("tfds", "records")])
def test_data_may_move_but_not_change(place, kind, differs):
    name = {"arrays": "x.npz", "folder": "photos", "tfds": "packed"}[kind]
    kept, _ = start(f"{kind}:{place}/first/{name}")
    assert start(f"{kind}:{place}/first/{name}", kept)[1] == []
    for same in (f"{place}/moved/{name}", f"{place}/./first/{name}", *([f"{place}/first/{name}/"] if kind != "arrays" else [])):
        said = start(f"{kind}:{same}", kept)[1]
        assert len(said) == 1 and "continuing with changed settings: data.name was" in said[0]
    with pytest.raises(ValueError, match=f"W holds checkpoints of other settings: the training images have other .*{differs}"):
        start(f"{kind}:{place}/other/{name}", kept)


def test_checkpoints_that_do_not_tell_their_images_are_compared_by_name(place):
    kept, _ = start(f"arrays:{place}/first/x.npz")
    del kept["contents"]
    assert start(f"arrays:{place}/first/x.npz", kept)[1] == []
    with pytest.raises(ValueError, match="W holds checkpoints of other settings: data.name was"):
        start(f"arrays:{place}/moved/x.npz", kept)
    del kept["examples"]  # imported weights, which go on with any images
    assert "data.name was" in start(f"arrays:{place}/other/x.npz", kept)[1][0]
