"""Whole ways of weights: ours out and in again, continued to the same bits; theirs in and used; the commands for it."""

import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import torch

import ijepa_jax
import launch as launcher
from ijepa_jax import build
from ijepa_jax.interop import convert, pretrained, tensor_files, torch_files
from ijepa_jax.interop.sparing import sparingly
from ijepa_jax.interop.weights import WeightsError
from ijepa_jax.model.stacks import stacked, unstacked
from ijepa_jax.pretrain import command, result
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint, metrics, step
from tests import memory, small
from tests.test_launch import SMALL, launch, start
from tests.test_launch_evaluate import FEW, KNN


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir of a run with checkpoints of steps 8 and 12, its report)."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "draw_pictures", lambda *arguments: {"pictures": []})
        return workdir, command.pretrain(small.config(), workdir)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run's checkpoint of step 8 as a file of the authors'."""
    out = tmp_path_factory.mktemp("exported")
    assert convert.export_weights(str(run[0]), str(out), "reference", step=8)["step"] == 8
    return out / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def encoder_only(run, tmp_path_factory):
    """A workdir imported from the run's last target encoder in transformers' format."""
    folder = tmp_path_factory.mktemp("encoder")
    convert.export_weights(str(run[0]), str(folder / "theirs"), "huggingface")
    assert not convert.import_weights(str(folder / "theirs"), str(folder / "ours"))["continues"]
    return folder / "ours"


@pytest.fixture
def briefly(monkeypatch):
    """Runs end after their last step, without probes and pictures."""
    monkeypatch.setattr(command, "finish", lambda run, start_step, *rest: {"resumed_from": start_step})


def _saved(workdir: Path, step: int = 0) -> dict:
    return checkpoint.restore_parts(str(workdir), step, ("params", "target", "opt_state")).trees


def _without_positions(tree):
    if isinstance(tree, list):
        return [_without_positions(part) for part in tree]
    return {k: _without_positions(part) for k, part in tree.items() if k != "positions"} if isinstance(tree, dict) else tree


def _assert_same(ours, theirs) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def _start(config, workdir: Path, monkeypatch):
    """The state that training would start from."""
    states = []
    monkeypatch.setattr(command, "train", lambda run, start, *rest: states.append(jax.device_get(start.state)) or start.state)
    monkeypatch.setattr(command, "finish", lambda *arguments: {})
    command.pretrain(config, workdir)
    return states[0]


def _continue_by_their_file(file: Path, workdir: Path, config) -> dict:
    """Imports a file of step 8 for a run of these settings, and runs it to its end."""
    read = convert.import_weights(str(file), str(workdir), base=config)
    assert read["continues"] and read["step"] == 8
    continued = config.copy_and_resolve_references()
    continued.model.positions = "table"
    table = _saved(workdir)["target"]["positions"]
    report = command.pretrain(continued, workdir)
    after = _saved(workdir, 12)
    assert report["resumed_from"] == 8
    for found in (after["target"], after["params"]["encoder"], _saved(workdir, 8)["target"]):
        np.testing.assert_array_equal(found["positions"], table)
    return after


def test_a_run_goes_through_their_file_and_ends_with_the_same_bits(run, exported, tmp_path, briefly):
    after = _continue_by_their_file(exported, tmp_path, small.config())
    _assert_same(_saved(run[0], 12), _without_positions(after))
    steps = [[line for line in metrics.read(place) if "loss" in line and line["step"] > 8] for place in (run[0], tmp_path)]
    for name in ("step", "loss", "learning_rate", "weight_decay", "momentum", "gradient_norm"):
        assert [line[name] for line in steps[0]] == [line[name] for line in steps[1]] and len(steps[0]) == 4, name


def test_a_run_that_scans_over_its_blocks_goes_on_from_them_stacked(exported, tmp_path, monkeypatch):
    config = small.config(model__scan=True)
    convert.import_weights(str(exported), str(tmp_path / "ours"), base=config)
    config.model.positions = "table"
    state, theirs = _start(config, tmp_path / "ours", monkeypatch), convert.read_foreign(str(exported))
    training = theirs.training
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    for ours, tree in zip((state.params, *moments), (training.params, *training.moments), strict=True):
        _assert_same(ours, {name: stacked(part) for name, part in tree.items()})
    _assert_same(state.target, stacked(theirs.encoder))
    assert state.step == 8
    convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "theirs"), "reference")
    back = convert.read_foreign(str(tmp_path / "theirs" / "checkpoint.pth.tar"))
    for name in ("params", "moments", "step", "batch_size"):
        _assert_same(getattr(back.training, name), getattr(training, name))
    _assert_same(back.encoder, theirs.encoder)


def test_ours_comes_back_from_their_file_to_the_bit(run, exported):
    weights, ours = convert.read_foreign(str(exported)), _saved(run[0], 8)
    _assert_same(_without_positions(weights.encoder), ours["target"])
    _assert_same(_without_positions(weights.training.params), ours["params"])
    kept = convert.from_workdir(str(run[0]), 8, training=True).training
    _assert_same(_without_positions([*weights.training.moments]), [*kept.moments])
    assert weights.training.step == 8 and weights.training.batch_size == 16 and weights.settings.model.heads == 2
    assert weights.origin["epoch"] == 2 and list(weights.settings.data.std) == [0.25] * 3  # four steps are an epoch


def test_heads_that_a_file_of_ours_contradicts_are_refused(exported):
    with pytest.raises(WeightsError, match="tells of 2 heads, not 4"):
        convert.read(str(exported), heads=4)


def test_images_that_are_not_square_keep_their_sides(tmp_path):
    config = small.config(data__image_size=(32, 24), masks__context_patches=9)
    method = build.method(config)
    state = jax.jit(functools.partial(step.init, method, build.optimizer(config, method, 64), 0))()
    state = state.replace(step=state.step + 4)
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    checkpoints.save(state, 4, plain.to_plain(config))
    checkpoints.close()
    convert.export_weights(str(tmp_path / "run"), str(tmp_path / "theirs"), "reference")
    weights = convert.read_foreign(str(tmp_path / "theirs" / "checkpoint.pth.tar"), base=config)
    assert tuple(weights.settings.data.image_size) == (32, 24) and weights.training.step == 4
    _assert_same(_without_positions(weights.encoder), jax.device_get(state.target))


def test_recorded_weights_of_the_authors_give_their_outputs(recording, tmp_path):
    with np.load(recording) as file:
        recorded = {name: file[name] for name in file.files}
    saved = {"epoch": 0}
    for module in ("encoder", "predictor", "target_encoder"):
        prefix = f"init/{module}/"
        named = {name.removeprefix(prefix): value for name, value in recorded.items() if name.startswith(prefix)}
        saved[module] = {f"module.{name}": torch.from_numpy(value) for name, value in named.items()}
    torch.save(saved, tmp_path / "small.pth.tar")
    heads = json.loads(str(recorded["meta_json"]))["num_heads"]
    convert.import_weights(str(tmp_path / "small.pth.tar"), str(tmp_path / "ours"), heads=heads)
    images = recorded["step0/images_nchw"].transpose(0, 2, 3, 1)
    for path in (tmp_path / "small.pth.tar", tmp_path / "ours", tmp_path / "ours" / "checkpoints" / "0"):
        found = pretrained.load(str(path), heads=heads).patches(images)
        np.testing.assert_allclose(found, recorded["step0/target_encoder_output"], rtol=0, atol=1e-5)


def test_load_takes_one_checkpoint_by_its_path_and_either_encoder(run):
    workdir, images = run[0], np.zeros((2, 32, 32, 3), np.uint8)
    one = pretrained.load(str(workdir / "checkpoints" / "8"))
    np.testing.assert_array_equal(one(images), pretrained.load(str(workdir), step=8)(images))
    _assert_same(one.params, _saved(workdir, 8)["target"])
    context = pretrained.load(str(workdir), step=-1, encoder="context")
    _assert_same(context.params, _saved(workdir, 12)["params"]["encoder"])


def test_an_imported_encoder_starts_a_run_and_is_never_one(run, encoder_only, tmp_path, monkeypatch):
    config = small.config(model__positions="table")
    convert.import_weights(str(encoder_only.parent / "theirs"), str(tmp_path / "ours"), base=config)
    with pytest.raises(checkpoint.CheckpointError, match=f"--config.warm_start={tmp_path}/ours and another --workdir"):
        command.pretrain(config, tmp_path / "ours")
    for kind in ("sincos", "table"):
        change = {"model__positions": kind, "model__scan": kind == "table"}  # which the imported encoder's settings do not
        state = _start(small.config(warm_start=str(encoder_only), **change), tmp_path / kind, monkeypatch)
        for found in (state.target, state.params["encoder"]):
            assert ("positions" in found) == (kind == "table")
            found = unstacked(found)
            _assert_same(_without_positions(found), _saved(run[0], 12)["target"])


def test_positions_that_are_not_computed_ones_are_kept_or_refused(exported, tmp_path, monkeypatch):
    saved = torch.load(exported, weights_only=True)
    saved["target_encoder"]["module.pos_embed"] *= 2
    del saved["opt"]
    torch.save(saved, tmp_path / "x.pth.tar")
    convert.import_weights(str(tmp_path / "x.pth.tar"), str(tmp_path / "ours"))
    warm = functools.partial(small.config, warm_start=str(tmp_path / "ours"))
    with pytest.raises(ValueError, match="not the sine-cosine ones of a grid of .8, 8.: set model.positions=table"):
        command.pretrain(warm(), tmp_path / "run")
    state = _start(warm(model__positions="table"), tmp_path / "other", monkeypatch)
    _assert_same(state.target, checkpoint.restore_parts(str(tmp_path / "ours")).trees["target"])


def test_the_commands_take_a_run_to_their_file_and_back(run, tmp_path):
    workdir, report = run
    arguments = ["export", "--checkpoint", workdir, "--format", "reference", "--out", tmp_path / "theirs"]
    code, out, err = launch(*arguments)
    assert code == 0 and not err, err
    *_, line, result = out.splitlines()
    target, written = eval(line.removeprefix("load it with: "), {"torch": torch}), json.loads(result)
    np.testing.assert_array_equal(target["module.norm.weight"], _saved(workdir, 12)["target"]["norm"]["scale"])
    card = (tmp_path / "theirs" / "README.md").read_text()
    for fact in (
        "The target encoder", "Pretrained for 12 steps of 16 images on `scenes`", "| step | 12 |", written["encoder_digest"],
        line.removeprefix("load it with: "), f"python launch.py export --checkpoint {workdir}",
        "Probes of the encoder after 12 steps",
    ):  # fmt: skip
        assert fact in card, fact
    for name, row in report["probes"].items():
        low, high = row["interval"]
        line = f"| {name} | {row['trained']:.1f} | {low:.1f} .. {high:.1f} | {row['random_init']:.1f} | {row['pixels']:.1f} |"
        assert line in card
    file, ours = tmp_path / "theirs" / "checkpoint.pth.tar", tmp_path / "ours"
    code, out, err = launch("import", "--from", file, "--out", ours, *SMALL)
    assert code == 0 and not err, err
    read = json.loads(out.splitlines()[-1])
    wanted = {"continues": True, "step": 12, "out": str(ours), "encoder_digest": written["encoder_digest"], "epoch": 3}
    assert {key: read[key] for key in wanted} == wanted
    assert "--config.model.positions=table" in out and f"--checkpoint {ours}" in out


def test_an_imported_encoder_is_evaluated_as_the_run_is(run, encoder_only):
    same = ["--config.data.name=scenes", "--config.data.size=64", "--config.data.test_size=32", "--config.data.crop=1.0"]
    processes = [start(*KNN, "--checkpoint", workdir, *FEW, *same) for workdir in (run[0], encoder_only)]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0 and not err, err
        results.append(json.loads(out.splitlines()[-1]))
    for key in ("accuracy", "tasks"):
        assert results[0][key] == results[1][key], key


def _command(capsys, *arguments) -> tuple[int, str, str]:
    code = launcher.main(["launch.py", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_export_writes_the_encoder_that_is_asked_for(run, tmp_path, capsys):
    saved = _saved(run[0], 12)
    for name in ("target", "context"):
        options = ["--checkpoint", run[0], "--encoder", name, "--step=-1", "--out", tmp_path / name]
        code, out, _ = _command(capsys, "export", "--format=huggingface", *options)
        assert code == 0 and json.loads(out.splitlines()[-1])["encoder"] == name
        assert f"The {name} encoder" in (tmp_path / name / "README.md").read_text()
        wanted = saved["target"] if name == "target" else saved["params"]["encoder"]
        _assert_same(_without_positions(convert.read(str(tmp_path / name)).encoder), wanted)
    convert.export_weights(str(run[0]), str(tmp_path / "reference"), "reference", encoder="context")
    alone = convert.read(str(tmp_path / "reference" / "checkpoint.pth.tar"))
    assert alone.training is None  # a run that went on from it would have the wrong target
    _assert_same(_without_positions(alone.encoder), saved["params"]["encoder"])


def test_mistakes_get_one_clear_line(run, exported, encoder_only, tmp_path, capsys):
    workdir, file = run[0], exported
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    new = ["--out", tmp_path / "new"]
    export = ["export", "--checkpoint", workdir, "--format"]
    bare = torch.load(file, weights_only=True)
    del bare["ijepa_jax"]
    torch.save(bare, tmp_path / "bare.pth.tar")
    for arguments, line in (
        ([*export, "reference", "--out", tmp_path / "full"], f"--out {tmp_path}/full holds files already"),
        ([*export, "onnx", *new], "--format 'onnx' is not known: it must be one of huggingface, timm, reference"),
        ([*export, "timm", "--encoder=mean", *new], "encoder 'mean' is not known"),
        ([*export, "timm", "--step=5", *new], "has no checkpoint of step 5: it has 8, 12"),
        (["export", "--checkpoint", tmp_path / "none", "--format=timm", *new], "none is not a workdir"),
        (["export", "--checkpoint", encoder_only, "--format=timm", "--encoder=context", *new], "holds a target encoder only"),
        (["import", "--from", tmp_path / "none.pth", *new], f"no file or folder {tmp_path}/none.pth"),
        (["import", "--from", tmp_path / "full", *new], "is neither a workdir (no 'checkpoints') nor a model's folder"),
        (["import", "--from", file, "--out", workdir], f"--out {workdir} holds checkpoints already"),
        (["import", "--from", tmp_path / "bare.pth.tar", *new], "give --heads"),
        (["import", "--from", tmp_path / "bare.pth.tar", "--heads=5", *new], "width 32 does not divide into 5 heads"),
        (["import", "--from", file, "--config=configs/quickstart.py", *new], "of another encoder: its width 96 is 32"),
    ):
        code, _, err = _command(capsys, *arguments)
        assert code == 1 and err.count("\n") == 1 and err.startswith("error: ") and line in err, err
        assert not (tmp_path / "new").exists()
    assert _command(capsys, "import", "--from", tmp_path / "bare.pth.tar", "--heads=4", *new)[0] == 0


HUB = "hf download facebook/ijepa_vith14_1k --local-dir DIR"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("https://dl.fbaipublicfiles.com/ijepa/x.pth.tar", "curl -LO https://dl.fbaipublicfiles.com/ijepa/x.pth.tar"),
        ("https://huggingface.co/facebook/ijepa_vith14_1k", HUB),
        ("https://huggingface.co/facebook/ijepa_vith14_1k/resolve/main/model.safetensors", HUB),
        ("hf://facebook/ijepa_vith14_1k", HUB),
        ("hf-hub:facebook/ijepa_vith14_1k", HUB),
        ("facebook/ijepa_vith14_1k", f"no file or folder facebook/ijepa_vith14_1k; .*: {HUB}"),
        ("s3://bucket/weights", "aws s3 cp s3://bucket/weights DIR"),
        ("gs://bucket/x.pth.tar", "gcloud storage cp -r gs://bucket/x.pth.tar DIR"),
        ("file:///weights/x.pth", "give /weights/x.pth"),
        ("ftp://host/x", "copy them there"),
    ],
)
def test_weights_that_are_elsewhere_are_fetched_first(tmp_path, monkeypatch, source, line):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commands = [lambda: convert.import_weights(source, str(tmp_path / "new" / "ours"))]
    commands += [lambda: ijepa_jax.load(source)] * (source != "s3://bucket/weights")  # that might be a workdir of ours
    for asked in commands:
        with pytest.raises((WeightsError, FileNotFoundError), match=line) as caught:
            asked()
        assert "workdir already" not in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_model_of_the_hub_is_taken_from_its_cache(encoder_only, tmp_path, monkeypatch):
    folder = tmp_path / "models--org--name.v1"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    convert.export_weights(str(encoder_only), str(folder / "snapshots" / ("0" * 40)), "huggingface")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = ijepa_jax.load("org/name.v1")
    _assert_same(found.params, ijepa_jax.load(encoder_only).params)
    assert found.origin["file"] == "org/name.v1"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    with pytest.raises(FileNotFoundError, match="hf download org/name.v1 --local-dir DIR"):
        ijepa_jax.load("org/name.v1")


def test_only_a_workdir_is_called_one(tmp_path):
    (tmp_path / "x" / "checkpoints" / "5").mkdir(parents=True)
    for name in ("x", "x/checkpoints/5"):
        with pytest.raises(WeightsError, match="neither a workdir .* nor a model's folder"):
            convert.import_weights(str(tmp_path / name), str(tmp_path / "ours"))
    with pytest.raises(FileNotFoundError, match="no file or folder .*checkpoints/6"):
        convert.import_weights(str(tmp_path / "x" / "checkpoints" / "6"), str(tmp_path / "ours"))


def _fails(monkeypatch, place, name, error) -> None:
    """Has a function do its work, and then fail."""
    whole = getattr(place, name)

    def half(*arguments, **options):
        whole(*arguments, **options)
        raise error

    monkeypatch.setattr(place, name, half)


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), OSError(28, "No space left on device"), KeyboardInterrupt()], ids=type
)
@pytest.mark.parametrize("before", [None, ["notes.txt"]], ids=["new", "there already"])
def test_an_import_or_export_that_fails_leaves_out_as_it_was(exported, encoder_only, tmp_path, monkeypatch, error, before):
    out = tmp_path / "new" / "out"
    for name in before or ():
        out.mkdir(parents=True)
        (out / name).touch()
    _fails(monkeypatch, checkpoint.Checkpoints, "save", error)
    with pytest.raises(type(error)):
        convert.import_weights(str(exported), str(out))
    monkeypatch.undo()
    for name in before or ():
        (out / name).rename(out / "config.json")  # which an export may find there
    for place, function, fmt in (
        (tensor_files, "write", "timm"),
        (convert.card, "model_card", "huggingface"),
        (torch, "save", "reference"),
    ):
        with monkeypatch.context() as patch:
            _fails(patch, place, function, error)
            with pytest.raises(type(error)):
                convert.export_weights(str(encoder_only), str(out), fmt)
        assert [path.name for path in tmp_path.rglob("*")] == (["new", "out", "config.json"] if before else [])


def test_other_folders_beside_one_that_failed_stay(exported, tmp_path, monkeypatch):
    def another(*arguments, **options):
        (tmp_path / "new" / "other").mkdir()
        raise OSError("no")

    monkeypatch.setattr(checkpoint.Checkpoints, "save", another)
    with pytest.raises(OSError, match="no"):
        convert.import_weights(str(exported), str(tmp_path / "new" / "out"))
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "other"]


def test_exports_go_to_local_disks(encoder_only, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--out gs://bucket/x: exports are written to local disks"):
        convert.export_weights(str(encoder_only), "gs://bucket/x", "timm")
    assert not any(tmp_path.iterdir())


def test_too_little_memory_is_one_line(exported, encoder_only, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch_files, "read", lambda *_, **__: bytearray(2**62))
    monkeypatch.setattr(checkpoint, "restore_encoder", lambda *_, **__: np.zeros(2**50))
    for arguments in (["import", "--from", exported], ["export", "--format=timm", "--checkpoint", encoder_only]):
        code, _, err = _command(capsys, *arguments, "--out", tmp_path / "new")
        assert code == 1 and err.count("\n") == 1 and err.startswith("error: out of memory: "), err
    assert not any(tmp_path.iterdir())


def test_orbax_is_as_it_was_after_an_import(exported, encoder_only):
    handler = ocp.type_handlers.get_type_handler(np.ndarray)
    assert type(handler) is ocp.type_handlers.NumpyHandler
    with sparingly():
        assert ocp.type_handlers.get_type_handler(np.ndarray) is not handler
    assert ocp.type_handlers.get_type_handler(np.ndarray) is handler


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The folder of a training checkpoint of 0.6 GB, of which the encoder is a fourth, and of its workdir."""
    folder = tmp_path_factory.mktemp("large")
    torch.save(memory.training(1024, 3), folder / "whole.pth.tar")
    yield folder
    shutil.rmtree(folder)


def test_no_whole_copies_are_made_of_large_weights(large):
    for what, source, out in (("import", "whole.pth.tar", "ours"), ("load", "whole.pth.tar", ""), ("reference", "ours", "out")):
        found = memory.measured(what, large / source, large / out)
        assert found["size"] > (1.5e8 if what == "load" else 6e8)
        assert found["peak"] < 1.3 * found["size"] + 8e7, (what, found)


def test_relative_paths_spaces_and_links_are_paths_like_others(encoder_only, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoder_only, tmp_path / "a run")
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    wanted = ijepa_jax.load(encoder_only)(images)
    convert.export_weights("a run", "out/hf", "huggingface")
    convert.import_weights("out/hf", "checkpoints/again")
    (tmp_path / "link").symlink_to(tmp_path / "a run" / "checkpoints" / "0")
    (tmp_path / "checkpoints" / "plain").mkdir()
    shutil.copytree(tmp_path / "out" / "hf", tmp_path / "checkpoints" / "plain", dirs_exist_ok=True)
    (tmp_path / "out" / "hf" / "checkpoints").mkdir()  # of a trainer of theirs
    ours, theirs = ("a run", "a run/checkpoints/0", "link", "checkpoints/again"), ("out/hf", "out/hf/model.safetensors")
    for place in (*ours, *theirs, "checkpoints/plain"):
        np.testing.assert_array_equal(ijepa_jax.load(place)(images), wanted)


def test_what_a_killed_import_or_export_left_is_taken_up_again(encoder_only, tmp_path):
    exported = tmp_path / "out"
    exported.mkdir()
    (exported / ".model.safetensors.12ab34cd.tmp").write_bytes(b"half")
    convert.export_weights(str(encoder_only), str(exported), "huggingface")
    left = tmp_path / "in" / "checkpoints" / "0.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    convert.import_weights(str(exported), str(tmp_path / "in"))
    ijepa_jax.load(tmp_path / "in")
    with pytest.raises(ValueError, match="holds checkpoints already"):
        convert.import_weights(str(exported), str(tmp_path / "in"))
    with pytest.raises(ValueError, match="holds files already"):
        convert.export_weights(str(encoder_only), str(exported), "huggingface")
    assert not [*exported.glob(".*")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"heads": 7}, "its settings have 2 heads, not 7"),
        ({"step": 5}, "has no checkpoint of step 5"),
    ],
)
def test_what_a_workdir_has_not_is_not_taken_silently(encoder_only, arguments, line):
    with pytest.raises((ValueError, RuntimeError), match=line):
        ijepa_jax.load(encoder_only, **arguments)
    with pytest.raises(ValueError, match="is a workdir already"):
        convert.import_weights(str(encoder_only), "anywhere")


@pytest.mark.parametrize(
    ("change", "line"),
    [({"model__heads": 4}, "set model.heads=2"), ({"model__epsilon": 1e-12}, "set model.epsilon=1e-06")],
)
def test_a_warm_start_that_would_change_the_function_is_refused(encoder_only, tmp_path, change, line):
    with pytest.raises(ValueError, match=line):
        command.pretrain(small.config(warm_start=str(encoder_only), **change), tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"optim__batch_size": 32}, "trained with batches of 16; the configuration's are 32"),
        ({"predictor__heads": 1}, "its predictor has 2 heads; the configuration's has 1"),
        ({"data__std": (0.5, 0.5, 0.5)}, "its data.std .0.5, 0.5, 0.5. is .0.25, 0.25, 0.25. in the weights"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(exported, tmp_path, change, line):
    with pytest.raises(WeightsError, match=line):
        convert.import_weights(str(exported), str(tmp_path / "ours"), base=small.config(**change))


def test_where_weights_came_from_stays_with_them(exported, encoder_only, tmp_path, briefly):
    _continue_by_their_file(exported, tmp_path / "continued", small.config())
    command.pretrain(small.config(warm_start=str(encoder_only)), tmp_path / "warm")
    for workdir, line in (
        ("continued", "Imported from checkpoint.pth.tar (reference), there after 8 steps. Pretrained for 12 steps"),
        ("warm", "Started from theirs (huggingface). Pretrained for 12 steps"),
    ):
        convert.export_weights(str(tmp_path / workdir), str(tmp_path / f"{workdir} out"), "timm")
        assert line in (tmp_path / f"{workdir} out" / "README.md").read_text()


def test_what_cannot_be_carried_over_is_said(exported, encoder_only, tmp_path):
    saved = torch.load(exported, weights_only=True)
    del saved["opt"]
    torch.save(saved, tmp_path / "x.pth.tar")
    left = convert.import_weights(str(tmp_path / "x.pth.tar"), str(tmp_path / "ours"))["left_out"]
    assert [part.split(",")[0] for part in left] == ["encoder", "predictor"]
    left = convert.export_weights(str(encoder_only), str(tmp_path / "theirs"), "reference")["left_out"]
    assert "the authors' loader needs one" in left[0]
    torch.save({**saved, "ema_head": saved["encoder"]}, tmp_path / "y.pth.tar")
    with pytest.raises(WeightsError, match="holds what I-JEPA's training checkpoints have not: ema_head"):
        convert.read(str(tmp_path / "y.pth.tar"))
