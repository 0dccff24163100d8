"""Plans: what they say of a tiny run on simulated devices and on TPUs, and one clear line for each mistake."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from ijepa_jax import build
from ijepa_jax.measure import gpus
from ijepa_jax.measure import plan as planning
from ijepa_jax.model.flops import index_padding, lane_padding, step_flops
from ijepa_jax.model.vit import parameter_count
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint
from tests import small

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--config", str(ROOT / "configs" / "tiny.py")]
WIDE = [*TINY, "--config.model.width=256", "--config.predictor.width=64"]  # matrices of more than sharding's smallest split
KEYS = {
    "method", "topology", "chips", "mesh", "batch_size", "accumulation", "remat", "fits", "argument_gib", "temporary_gib",
    "total_gib", "chip_gib", "collectives", "tflop_per_step", "gflop_per_image", "compile_s",
    "relayouts", "index_padding", "lane_padding", "unfriendly_sizes",
}  # fmt: skip
BLOCK = 4 * 12 * 256**2  # bytes of the matrices of a block of the encoder

# Several plans in a process, which has one number of devices; settings that once split activations like the weights.
SCRIPT = """
import json
import os
import jax
jax.config.update("jax_platforms", "cpu")
from ijepa_jax.measure import plan
from tests import small
results = {}
for name, changes in {
    "data": {"mesh__data": 8},
    "fsdp": {"mesh__fsdp": 8},
    "scan": {"mesh__fsdp": 4, "model__scan": True, "model__remat": "full"},
    "contexts": {"mesh__fsdp": 4, "masks__num_context_blocks": 2, "optim__accumulation": 2},
}.items():
    config = small.config(model__width=256, predictor__width=32, **changes)
    results[name] = plan.plan(config, "cpu:8")
print(json.dumps(results))
"""


def launched(*arguments) -> tuple[int, str, str]:
    command = [sys.executable, str(ROOT / "launch.py"), "plan", *map(str, arguments)]
    usual = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # libtpu stops at flags for CPUs
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=usual)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def results():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_data_parallelism_reduces_gradients_and_nothing_else(results):
    collectives, config = results["data"]["collectives"], small.config(model__width=256, predictor__width=32)
    parameters = parameter_count(jax.eval_shape(build.method(config).init, jax.random.key(0)))
    assert collectives.keys() == {"all-reduce"}
    # every gradient once, in float32; beside them, sums for the loss and for three metrics, 256 wide
    assert 4 * parameters <= collectives["all-reduce"]["bytes"] <= 4 * (parameters + 6 * 256 + 16)


@pytest.mark.parametrize("name, times", [("fsdp", {2}), ("scan", {2, 3}), ("contexts", {2, 4})])
def test_fsdp_gathers_parameters_and_never_activations(results, name, times):
    """The matrices of 2 blocks: the target encoder's, the context encoder's, and these again for recomputation.

    The compiler may gather less often: once for all parts of an accumulated batch, or for both directions.
    """
    collectives = results[name]["collectives"]
    assert collectives.keys() == {"all-gather", "all-reduce"}
    assert collectives["all-gather"]["bytes"] in {count * 2 * BLOCK for count in times}


def test_state_is_split_along_fsdp(results):
    whole, split = results["data"]["argument_gib"], results["fsdp"]["argument_gib"]
    assert 0.1 < split / whole < 0.2  # an eighth, and what is too small to be split


def test_command_prints_a_table_and_json():
    code, out, err = launched(*TINY, "--topology", "cpu:4", "--mesh=data=-1,fsdp=2")
    assert code == 0 and err == "", err
    *text, line = out.splitlines()
    result = json.loads(line)
    assert result.keys() == KEYS | {"images", "chip_hours"}
    assert result["chips"] == 4 and result["mesh"] == {"data": 2, "fsdp": 2} and result["fits"] is None
    method = build.method(small.tiny.get_config())
    flops = sum(step_flops(method).values())
    assert result["gflop_per_image"] == pytest.approx(flops / 1e9, rel=1e-3)
    assert result["tflop_per_step"] == pytest.approx(16 * flops / 1e12, rel=1e-3)
    assert any("all-reduce" in line for line in text)
    assert result["images"] == 40 * 16
    assert result["chip_hours"]["h100"]["40"] == pytest.approx(640 * flops / 0.4 / 989e12 / 3600, rel=1e-3)
    assert result["index_padding"] == pytest.approx(index_padding(method), rel=1e-3)
    assert result["lane_padding"]["of_model"] == pytest.approx(lane_padding(method)["of_model"], rel=1e-3)
    assert result["lane_padding"]["head_dims"] == {"encoder": 16, "predictor": 8}
    assert result["unfriendly_sizes"] == ["patch 48", "encoder width 32", "predictor width 16", "predictor mlp 64"]
    relayouts = result["relayouts"]
    assert relayouts["bytes"] == sum(total["bytes"] for total in relayouts["kinds"].values()) and relayouts["largest"]
    for start in (
        "chip-hours of the run's 640 images",
        "index padding  3.66% of model FLOPs",
        "lane padding on TPUs",
        "relayouts of a step",
        "sizes that are no",
    ):
        assert any(line.startswith(start) for line in text)


def test_one_chip_needs_no_collectives():
    code, out, err = launched(*TINY, "--topology=cpu:1")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["collectives"] == {} and "collectives of a step  none" in out


@pytest.mark.parametrize(
    "arguments, line",
    [
        ([], "the following arguments are required: --topology. usage: python launch.py plan"),
        (["--topology=v5e"], "no topology 'v5e': use v5e, v5p, v6e (as v5e:4x4 or v5p:2x2x4), h200, h100, a100 (as h100:8"),
        (["--topology=h100:2x2x2"], "no topology 'h100:2x2x2'"),
        (["--topology=gpu:8"], "no topology 'gpu:8'"),
        (["--topology=h100:8"], gpus.NEEDS_PLUGIN),
        (["--topology=cpu:0"], "no topology 'cpu:0'"),
        (["--topology=cpu:2x2"], "no topology 'cpu:2x2'"),
        (["--topology=v9:2x2"], "no topology 'v9:2x2'"),
        (["--topology=v5e:4x32"], "no topology 'v5e:4x32': the largest slice is v5e:16x16"),
        (["--topology=cpu:1", "--mesh=data=3"], "mesh data=3, fsdp=1 does not make up the 1 chips there are"),
        (["--topology=cpu:1", "--mesh=model=3"], "--mesh 'model=3' must be like data=8,fsdp=4"),
        (
            ["--topology=cpu:1", "--config.optim.accumulation=3"],
            "optim.batch_size 16 does not divide into optim.accumulation 3",
        ),
        (["--topology=cpu:1", "--config.optim.acumulation=3"], "unknown setting --config.optim.acumulation: did you mean"),
        (["--topologie=cpu:1"], "unknown flag --topologie: did you mean --topology? usage: python launch.py plan "),
        (["--topology=cpu:1", "more"], "unexpected argument 'more'."),
        (["--topology=v5e:2x2"], planning.NEEDS_LIBTPU),
    ],
    ids=str,
)
def test_a_mistake_gets_one_clear_line(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(launch, "stand_in_for_tpus", lambda: None)  # this process has imported jax
    monkeypatch.setitem(sys.modules, "libtpu", None)  # as if not installed
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: None)
    assert launch.main(["launch.py", "plan", *TINY, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {line}")


def test_a_batch_that_does_not_divide_among_chips_is_named():
    code, out, err = launched(*TINY, "--topology=cpu:3")
    assert (code, out) == (1, "")
    assert err == "error: optim.batch_size 16 does not divide among 3 devices times optim.accumulation 1\n"


def test_sizes_are_read_from_the_compilers_error():
    early = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.34G) exceeds "
    early += "available HBM (15.75G)."
    late = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 930.50M of 0.5G hbm. Exceeded hbm capacity by 418.5M."
    assert planning.out_of_memory(early) == (20.34, 15.75)
    assert planning.out_of_memory(late) == (pytest.approx(930.5 / 1024), 0.5)
    assert planning.out_of_memory("INTERNAL: 3.0G of 2.0G") == (None, None)


def test_suggestions_come_cheapest_first_and_only_where_they_suffice():
    result = {"mesh": {"data": 4, "fsdp": 2}, "chips": 8, "batch_size": 64, "accumulation": 1, "remat": "none",
              "chip_gib": 16.0, "temporary_gib": 14.0}  # fmt: skip
    assert planning.suggest(result, state_gib=6.0, gradient_gib=2.0) == [
        "--config.model.remat=full (recomputes activations: far fewer temporaries)",
        "--config.optim.accumulation=4 (about 13.0 GiB)",
        "--mesh data=1,fsdp=8 (about 14.0 GiB)",
        "16 chips (about 14.0 GiB)",
    ]
    large = planning.suggest({**result, "remat": "full"}, state_gib=16.0, gradient_gib=5.0)
    assert large == ["--mesh data=1,fsdp=8 (about 14.2 GiB)"]  # no accumulation nor more data parallelism holds the state
    assert planning.suggest({**result, "remat": "full"}, state_gib=99.0, gradient_gib=5.0) == [
        "more of all: larger fsdp, optim.accumulation and more than 8 chips"
    ]


needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")


@needs_libtpu
def test_compiles_for_tpus_that_are_not_there():
    code, out, err = launched(*WIDE, "--topology=v5e:2x2", "--mesh=data=2,fsdp=2", "--config.model.dtype=bfloat16")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["fits"] is True and result["chip_gib"] == 15.75
    assert result["collectives"].keys() <= {"all-gather", "reduce-scatter", "all-reduce"}
    # gathered in bfloat16, half of what float32 would be
    assert result["collectives"]["all-gather"]["bytes"] == 2 * 2 * BLOCK // 2
    assert all(each["op_name"] and each["bytes"] > 0 for each in result["relayouts"]["largest"])
    assert result["images_per_s_at_40_mfu"] == pytest.approx(0.4 * 4 * 197e3 / result["gflop_per_image"], rel=1e-3)
    assert "by arithmetic, not measured" in out


@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs jax's CUDA plugin, 4 GB")
def test_compiles_for_gpus_that_are_not_there():
    code, out, err = launched(*WIDE, "--topology=h100:2", "--config.model.dtype=bfloat16")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result.keys() >= KEYS | {"kernels", "bytes_gb", "copies", "kernel_kinds", "roofline_ms"}
    assert result["fits"] is True and result["chip_gib"] == pytest.approx(0.75 * 79.1, rel=1e-3)
    assert set(result["collectives"]) == {"all-reduce"} and result["copies"] <= 3  # of the state none
    kinds = result["kernel_kinds"]
    assert kinds["attention"]["count"] == 2 * 2 + 2 + 2  # both directions of two blocks and of the predictor's, the target's
    assert result["kernels"] == sum(total["count"] for total in kinds.values())
    assert 0.5 < result["program_tflop"] / (result["tflop_per_step"] / 2) < 1.1  # of one of the two


def test_a_method_that_is_taught_is_planned_with_its_teacher(tmp_path):
    teacher = small.config()
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        method = build.method(teacher)
        shapes = jax.eval_shape(method.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        checkpoints.save({"params": params, "target": params["encoder"]}, 3, plain.to_plain(teacher))
    code, out, err = launched(*TINY, "--topology=cpu:8", "--config.method=salt", f"--config.salt.teacher={tmp_path}")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["chips"] == 8


@needs_libtpu
@pytest.mark.parametrize("method", ["mae", "pixels", "salt", "lejepa"])
def test_its_kin_compile_for_tpus(method):
    changes = {
        "mae": ("mae.decoder_width=32", "mae.decoder_depth=1", "mae.decoder_heads=2"), "salt": ("salt.teacher=random",),
        "lejepa": ("lejepa.local_size=16,16", "lejepa.projector_width=64", "lejepa.slices=64"),
    }.get(method, ())  # fmt: skip
    words = (f"--config.{change}" for change in (f"method={method}", *changes))
    code, out, err = launched(*TINY, "--topology=v5e:2x2", *words)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["fits"] is True


@needs_libtpu
def test_one_tpu_needs_no_collectives():
    code, out, err = launched(*TINY, "--topology=v5e:1x1")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["collectives"] == {}


@needs_libtpu
def test_a_program_too_large_for_its_chip_is_told_so():
    code, out, err = launched(*TINY, "--topology=v5e:1x1", "--config.optim.batch_size=65536")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["fits"] is False and result["total_gib"] > result["chip_gib"]
    assert result["collectives"] is result["relayouts"] is None
    assert "does NOT fit" in out and any("accumulation" in suggestion for suggestion in result["suggestions"])
