"""The benchmark: the real step at the sizes given, on a machine that has the core's libraries only."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ijepa_jax.cli import UsageError, compiler_options
from ijepa_jax.measure.benchmark import FixedMasks, Workload, benchmark
from ijepa_jax.model.flops import peak_tflops, step_flops
from tests.test_launch import ROOT, launch

TINY = Workload(
    "vit_pico", image=16, patch=4, batch=4, context=5, target=3, predictor_width=24, predictor_depth=1, dtype="float32"
)
SIZES = (
    "--model=vit_pico", "--image=16", "--patch=4", "--batch=4", "--context=5", "--target=3", "--blocks=2",
    "--predictor-width=24", "--predictor-depth=1", "--steps=2", "--warmup=1",
)  # fmt: skip
PEER = {  # keys of the PyTorch peer's line
    "peer", "device", "model", "image", "patch", "batch", "context", "target", "blocks", "predictor_width", "predictor_depth",
    "images_per_s", "ms_per_step", "model_gflop_per_image", "model_tflop_per_s", "peak_gib", "loss",
}  # fmt: skip


def test_one_line_of_json_with_the_peers_keys():
    code, out, err = launch("benchmark", *SIZES, "--data=scenes")
    assert code == 0 and not err, err
    result = json.loads(out)
    assert PEER | {"mfu", "compile_s", "first_step_s", "compilations", "fed"} <= result.keys()
    assert result["compilations"] == 1 and result["blocks"] == 2 and result["dtype"] == "float32"
    assert np.isfinite(result["loss"]) and result["images_per_s"] > 0 and 0 <= result["fed"]["wait_share"] <= 1


def test_it_runs_where_only_the_core_can_be_imported():
    script = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grain", "tensorflow_datasets", "ml_collections", "tensorboardX", "array_record", "cv2",
                                  "PIL", "matplotlib", "simplejpeg", "safetensors", "sklearn", "jaxtyping"):
            raise ImportError("blocked " + name)
sys.meta_path.insert(0, Block())
sys.argv = ["launch.py", "benchmark", *{SIZES}]
import launch
sys.exit(launch.main(sys.argv))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "vit_pico"


def test_less_work_is_measured_when_asked_for():
    less = ("--context-blocks=2", "--predictor-context=alone", "--target-last-block=targets", "--target-float8")
    code, out, err = launch("benchmark", *SIZES, *less, "--compiler-options=xla_cpu_enable_fast_math=false")
    assert code == 0, err
    result = json.loads(out)
    assert result["target_float8"] and result["predictor_context"] == "alone" and np.isfinite(result["loss"])


def test_masks_have_the_lengths_asked_for_and_name_patches_once():
    masks = FixedMasks((4, 4), 5, 3, num_targets=2)(np.arange(8))
    assert masks["context"].shape == (8, 1, 5) and masks["target"].shape == (8, 2, 3) and (masks["target_length"] == 3).all()
    assert (np.diff(masks["context"]) > 0).all() and masks["context"].min() >= 0 and masks["context"].max() < 16


def test_counted_operations_are_those_of_the_sizes():
    small, wide = (sum(step_flops(Workload(**{**vars(TINY), "context": k}).work().method).values()) for k in (5, 10))
    assert wide > small


@pytest.mark.parametrize(
    ("kind", "peak"), [("NVIDIA H200", 989), ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v6 lite", 918), ("cpu", None)]
)
def test_peaks_by_the_names_that_jax_has(kind, peak):
    assert peak_tflops(kind) == peak


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "vit_gigantic"}, "--model 'vit_gigantic' is not known"),
        ({"context": 17}, "has 16 patches, fewer than"),
        ({"attention": "cudn"}, "--attention 'cudn' is not known"),
        ({"dtype": "int8"}, "--dtype 'int8' is not known"),
        ({"remat": "dot"}, "--remat 'dot' is not known"),
        ({"predictor_context": "apart"}, "predictor.context 'apart' must be"),
        ({"patch": 5}, "does not divide into patches of 5x5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, line):
    with pytest.raises(ValueError, match=line):
        benchmark(Workload(**{**vars(TINY), **change}).work(), steps=1, warmup=1)


def test_compiler_options_keep_commas_in_their_values():
    assert compiler_options("a=true,b=FUSION,CUBLAS,c=0.5") == {"a": True, "b": "FUSION,CUBLAS", "c": "0.5"}
    assert compiler_options("") == {}
    with pytest.raises(UsageError, match="must be KEY=VALUE"):
        compiler_options("fast")
