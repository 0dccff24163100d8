"""Checkpoints: verified wherever they are read, whatever has happened to their files."""

import contextlib
import json
import random
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.methods import config as config_lib
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint, digests
from ijepa_jax.train.checkpoint import CheckpointError, Checkpoints, restore_parts
from ijepa_jax.train.digests import digest_of, fingerprint
from ijepa_jax.train.step import State

SETTINGS = plain.to_plain(config_lib.default())


def state(step: int, width: int = 96, **more) -> State:
    rng = np.random.default_rng(step)
    tree = {"norm": {"bias": jnp.zeros(width)}, "fc1": {"kernel": jnp.asarray(rng.standard_normal((64, width)), jnp.float32)}}
    target = jax.tree.map(lambda x: x + 1, tree)
    return State(jnp.int32(step), {"encoder": tree}, target, ({"mu": tree, **more},))


def shapes(like: State) -> State:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)


def save(workdir: Path, *steps: int, scores: dict | None = None, settings: dict = SETTINGS, **options) -> None:
    with contextlib.closing(Checkpoints(workdir, **options)) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), step, settings, (scores or {}).get(step))
            checkpoints.wait()


def restore(workdir: Path, said: list[str], like: State | None = None) -> State:
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.restore(shapes(state(0) if like is None else like), said.append).state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints 1 and 2, the second the better."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2, scores={1: 10.0, 2: 20.0})
    return workdir


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


DAMAGES = {
    "empty": lambda content, rng: b"",
    "truncated": lambda content, rng: content[: len(content) // 2],
    "zeros": lambda content, rng: bytes(len(content)),
    "garbage": lambda content, rng: rng.randbytes(len(content)),
    "a bit": flipped,
    "another bit": flipped,
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_of_a_checkpoint_may_be_damaged(saved, tmp_path, damage):
    """The same state, or the one before it with a line that says so, or one line with the checkpoint's path."""
    digests = {step: digest_of(jax.device_get(state(step).target)) for step in (1, 2)}
    files = sorted(path.relative_to(saved) for path in (saved / "checkpoints" / "2").rglob("*") if path.is_file())
    assert len(files) > 10
    reads = {
        "restore": lambda workdir, said: restore(workdir, said).target,
        "newest": lambda workdir, said: restore_parts(workdir, -1, log=said.append).trees["target"],
        "best": lambda workdir, said: restore_parts(workdir, 0, log=said.append).trees["target"],
    }
    outcomes = set()
    for number, file in enumerate(files):
        for name, read in reads.items():
            workdir = tmp_path / f"{number}-{name}"
            shutil.copytree(saved, workdir)
            place, said = workdir / file, []
            if DAMAGES[damage] is None:
                place.unlink()
            else:
                place.write_bytes(DAMAGES[damage](place.read_bytes(), random.Random(number)))
            try:
                found = digest_of(jax.device_get(read(workdir, said)))
            except CheckpointError as error:
                assert f"checkpoint 2 in {workdir}/checkpoints" in str(error) and "\n" not in str(error), (file, name)
                outcomes.add("refused")
                continue
            assert found in digests.values(), (file, name)
            if found == digests[1]:
                assert any(f"checkpoint 2 in {workdir}/checkpoints is damaged" in line for line in said), (file, name)
            outcomes.add("same" if found == digests[2] else "before")
    assert "same" in outcomes and outcomes & {"before", "refused"}  # no damage passes everywhere, none is fatal everywhere


def test_a_damaged_part_that_is_not_read_is_in_nobodys_way(saved, monkeypatch):
    sums = checkpoint.Checkpoints._sums

    def other_optimiser(self, step, notes):
        return {name: value + name.startswith("opt_state") for name, value in sums(self, step, notes).items()}

    monkeypatch.setattr(Checkpoints, "_sums", other_optimiser)
    assert restore_parts(saved, 2).trees["target"]
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* is damaged \(not what was saved are opt_state/0/mu/"):
        restore_parts(saved, 2, ("opt_state",))


def test_parts_are_named_by_their_paths(saved, monkeypatch):
    assert restore_parts(saved, 2, ("params/encoder/norm", "target")).trees.keys() == {"params", "target"}
    (params,) = restore_parts(saved, 2, ("params/encoder/norm",)).trees.values()
    assert jax.tree.map(np.shape, params) == {"encoder": {"norm": {"bias": (96,)}}}
    assert restore_parts(saved, 2, ("head", "params/predictor")).trees.get("params", {}) == {}


def test_scores_of_older_checkpoints_may_be_damaged(saved, tmp_path):
    """These have no score in their notes, and no checksum, but Orbax's file, and their fingerprint has no names."""
    workdir = shutil.copytree(saved, tmp_path / "w")
    for step in (1, 2):
        notes = workdir / "checkpoints" / str(step) / "notes" / "metadata"
        kept = json.loads(notes.read_text())
        del kept["score"], kept["checksum"]
        notes.write_text(json.dumps({**kept, "fingerprint": list(kept["fingerprint"].values())}))
    (workdir / "checkpoints" / "1" / "metrics" / "metrics").write_text('{"score": 30.0}')
    assert restore_parts(workdir).step == 1 and fingerprint(restore(workdir, [])) == fingerprint(state(2))
    for damaged in ("", "nothing", "{}", '{"score": "high"}', '{"score": NaN}', "[]"):
        (workdir / "checkpoints" / "1" / "metrics" / "metrics").write_text(damaged)
        assert restore_parts(workdir).step == 2 and int(restore(workdir, []).step) == 2
    notes.write_text(notes.read_text().replace('"seed"', '"sged"'))  # nothing says whether that is damage
    said = []
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        assert int(checkpoints.restore(shapes(state(0)), said.append).state.step) == 1
    assert "checkpoint 2 in" in said[0] and "is damaged (unknown settings sged=0" in said[0]
    notes.write_text(notes.read_text().replace('"sged"', '"seed"'))
    kept = json.loads(notes.read_text())
    kept["fingerprint"][4] += 1
    notes.write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match=r"is damaged \(not what was saved are target/norm/bias"):
        restore_parts(workdir, 2)
    for other in ({"fingerprint": 3}, {"settings": {**kept["settings"], "method": 3}}):
        notes.write_text(json.dumps({**kept, **other}))
        with pytest.raises(CheckpointError, match=r"is damaged \(its notes are not what was saved"):
            restore_parts(workdir, 2)


def test_notes_are_the_same_in_any_order(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "w")
    notes = workdir / "checkpoints" / "2" / "notes" / "metadata"
    notes.write_text(json.dumps(dict(reversed(json.loads(notes.read_text()).items()))))
    assert restore_parts(workdir).step == 2


def test_a_checkpoint_under_another_steps_name_is_no_checkpoint_of_it(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "w")
    shutil.copytree(workdir / "checkpoints" / "1", workdir / "checkpoints" / "5")
    said = []
    assert int(restore(workdir, said).step) == 2 and "checkpoint 5 in" in said[0] and "it holds the state of step 1" in said[0]
    with pytest.raises(
        CheckpointError, match="checkpoint 5 in .* is damaged .a copy under another name: it holds the state of step 1"
    ):
        restore_parts(workdir, -1)


@pytest.mark.parametrize(
    "like, differs",
    [
        (state(0, width=32), r"in 6 arrays: .*fc1/kernel is float32\[64,96\] there and float32\[64,32\] here"),
        (state(0, nu=jnp.zeros(3)), r"in 1 arrays: opt_state/0/nu is missing there and float32\[3\] here"),
    ],
)
def test_a_checkpoint_of_another_network_or_optimiser_is_named_as_such(saved, like, differs):
    with pytest.raises(CheckpointError, match=differs) as found:
        restore(saved, [], like)
    assert not found.value.damaged and sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["1", "2"]


def test_settings_of_another_version_are_named(tmp_path):
    save(tmp_path, 3, settings={**SETTINGS, "worlds": {"size": 3}, "model": {**SETTINGS["model"], "twist": 2}})
    wanted = r"checkpoint 3 in .*: unknown settings model.twist=2, worlds.size=3: use the version of ijepa_jax that has them"
    for read in (lambda: restore_parts(tmp_path), lambda: restore(tmp_path, [])):
        with pytest.raises(CheckpointError, match=wanted):
            read()


def test_only_who_may_write_makes_a_folder(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "read", read_only=True)) as checkpoints:
        assert checkpoints.steps() == [] and not (tmp_path / "read").exists()
    with contextlib.closing(Checkpoints(tmp_path / "written")):
        assert (tmp_path / "written" / "checkpoints").is_dir()


def test_a_save_that_is_not_made_is_an_error(saved, tmp_path):
    with (
        contextlib.closing(Checkpoints(shutil.copytree(saved, tmp_path / "w"))) as checkpoints,
        pytest.raises(CheckpointError, match=r"checkpoint 1 was not saved: .* holds \[1, 2\]|cannot write checkpoints"),
    ):
        checkpoints.save(state(1), 1, SETTINGS)


def test_a_path_means_a_workdir_and_perhaps_one_checkpoint(saved, tmp_path, monkeypatch):
    folder = saved.resolve()
    (tmp_path / "link").symlink_to(saved)
    (tmp_path / "best").symlink_to(saved / "checkpoints" / "2")
    assert checkpoint.locate(saved) == checkpoint.locate(f"{saved}/") == checkpoint.locate(tmp_path / "link") == (folder, None)
    assert checkpoint.locate(saved, 1) == checkpoint.locate(saved / "checkpoints" / "1") == (folder, 1)
    assert checkpoint.locate(tmp_path / "best") == checkpoint.locate(f"{saved}/checkpoints/2/") == (folder, 2)
    monkeypatch.chdir(saved / "checkpoints")
    assert checkpoint.locate("2") == checkpoint.locate(".././checkpoints/2", 2) == (folder, 2)
    with pytest.raises(CheckpointError, match="is one checkpoint, and that of step 1 is asked for"):
        checkpoint.locate("2", 1)
    with pytest.raises(
        CheckpointError, match="is not a workdir: it has no folder 'checkpoints'; foreign weights become one by"
    ):
        checkpoint.locate(tmp_path)


def test_a_store_whose_library_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        CheckpointError, match="s3://bucket/run needs a library that is not installed: pip install s3fs"
    ) as found:
        restore_parts("s3://bucket/run")
    assert "\n" not in str(found.value)


def test_an_import_of_step_0_is_not_the_best_of_those_trained_from_it(tmp_path):
    save(tmp_path, 0, 4, 8, scores={4: 2.0, 8: 1.0}, keep=3)
    assert [restore_parts(tmp_path, step).step for step in (0, -1, 4)] == [4, 8, 4]
    assert restore_parts(tmp_path / "checkpoints" / "0").step == 0


def test_an_encoders_digest_does_not_depend_on_how_it_is_kept():
    from ijepa_jax.model.encoder import Encoder
    from ijepa_jax.model.positions import sincos
    from ijepa_jax.model.stacks import stacked
    from ijepa_jax.model.vit import ViT

    network = ViT(4, 16, 2, 2, 2.0)
    encoder = Encoder(network, (8, 12))
    params = jax.device_get(network.init(jax.random.key(0), jnp.zeros((1, 8, 12, 3)))["params"])
    digest = digests.encoder_digest(params, encoder)
    kept = {**stacked(params), "positions": sincos(16, (2, 3))}
    assert digests.encoder_digest(jax.device_put(kept), encoder) == digest
    assert digests.encoder_digest({**kept, "positions": kept["positions"] + 1}, encoder) != digest
