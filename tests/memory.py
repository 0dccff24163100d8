"""Peak memory of reading, importing and exporting large weights, each in a process of its own:

python -m tests.memory DIR                      # a ViT-L/14 (1.2 GB, 5 GB with its training state); DIR needs 25 GB
python -m tests.memory DIR --width 768 --depth 6
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_KINDS = ("weight", "bias")
HEADS, PATCH, GRID, NARROW = 16, 14, 16, 384
CASES = (  # what is done, what is read, what is written
    ("import", "whole.pth.tar", "ours"),
    ("load", "whole.pth.tar", ""),
    ("load", "float32.safetensors", ""),
    ("load", "float16.safetensors", ""),
    ("load", "float16.pth", ""),
    ("load", "ours", ""),
    ("import", "theirs", "ours_of_theirs"),
    ("load", "theirs", ""),
    ("huggingface", "ours", "huggingface"),
    ("timm", "ours", "timm"),
    ("reference", "ours", "reference"),
    ("reference", "ours_of_theirs", "reference_without_training"),
)


def _blocks(name: str, width: int, depth: int) -> dict[str, tuple[int, ...]]:
    sizes = {"norm1": (1,), "attn.qkv": (3, 1), "attn.proj": (1, 1), "norm2": (1,), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    shapes = {f"{name}.{i}.{layer}": tuple(width * n for n in size) for i in range(depth) for layer, size in sizes.items()}
    return {f"{layer}.{kind}": size if kind == "weight" else size[:1] for layer, size in shapes.items() for kind in _KINDS}


def shapes(width: int, depth: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the tensors of an encoder and of a predictor, by the authors' names."""
    encoder = {"pos_embed": (1, GRID**2, width), "patch_embed.proj.weight": (width, 3, PATCH, PATCH)}
    encoder |= {"patch_embed.proj.bias": (width,), **_blocks("blocks", width, depth)}
    predictor = {"mask_token": (1, 1, NARROW), "predictor_pos_embed": (1, GRID**2, NARROW)}
    predictor |= {"predictor_embed.weight": (NARROW, width), "predictor_embed.bias": (NARROW,)}
    predictor |= _blocks("predictor_blocks", NARROW, depth // 2)
    predictor |= {f"predictor_norm.{kind}": (NARROW,) for kind in _KINDS}
    predictor |= {"predictor_proj.weight": (width, NARROW), "predictor_proj.bias": (width,)}
    return {"encoder": encoder | {f"norm.{kind}": (width,) for kind in _KINDS}, "predictor": predictor}


def training(width: int, depth: int) -> dict:
    """A training checkpoint of the authors with random numbers."""
    import torch

    named = shapes(width, depth)
    saved = {name: {f"module.{n}": torch.randn(size) for n, size in named[name].items()} for name in named}
    saved["target_encoder"] = {name: tensor.clone() for name, tensor in saved["encoder"].items()}
    state, groups = {}, []
    for plain in (False, True):
        for module in named:
            group = [(n, s) for n, s in named[module].items() if ("bias" in n or len(s) == 1) == plain]
            groups.append({"params": [*range(start := sum(len(g["params"]) for g in groups), start + len(group))]})
            for number, (name, size) in zip(groups[-1]["params"], group, strict=True):
                if not name.endswith("pos_embed"):
                    state[number] = {"step": torch.tensor(3.0), "exp_avg": torch.randn(size), "exp_avg_sq": torch.rand(size)}
    return {**saved, "opt": {"state": state, "param_groups": groups}, "epoch": 3, "batch_size": 8, "world_size": 2}


def make(folder: Path, width: int, depth: int) -> None:
    """Writes the files that are read, those that are not there yet."""
    import torch
    from safetensors.torch import save_file

    from tests.partners import transformers

    encoder = {name: torch.randn(size) for name, size in shapes(width, depth)["encoder"].items()}
    half = {name: tensor.half() for name, tensor in encoder.items()}
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width, "num_attention_heads": HEADS}
    config = transformers.IJepaConfig(**sizes, patch_size=PATCH, image_size=PATCH * GRID)
    for name, write in (
        ("whole.pth.tar", lambda path: torch.save(training(width, depth), path)),
        ("float32.safetensors", lambda path: save_file(encoder, path)),
        ("float16.safetensors", lambda path: save_file(half, path)),
        ("float16.pth", lambda path: torch.save(half, path)),
        ("theirs", lambda path: transformers.IJepaModel(config).save_pretrained(path)),
    ):
        if not (folder / name).exists():
            write(folder / name)


def measure(what: str, source: str, out: str) -> dict[str, float]:
    """In this process: bytes of what is returned or written, and the peak of memory above that after the imports."""
    import jax
    import numpy as np
    import torch  # noqa: F401 - what writes --format reference is not counted

    import ijepa_jax
    from ijepa_jax.interop import convert
    from ijepa_jax.train import checkpoint

    jax.block_until_ready(jax.device_put(np.zeros(1)))
    before = _memory("VmRSS")
    if what == "load":
        params = ijepa_jax.load(source, heads=None if Path(source).is_dir() else HEADS).params
        peak = _memory("VmHWM")
    elif what == "import":
        convert.import_weights(source, out, heads=None if Path(source).is_dir() else HEADS)
        peak = _memory("VmHWM")
        params = checkpoint.restore_parts(out, parts=("target", "params", "opt_state")).trees
    else:
        params = {"files": convert.export_weights(source, out, what)["files"]}
        peak = _memory("VmHWM")
    size = sum((Path(out) / leaf).stat().st_size if isinstance(leaf, str) else leaf.nbytes for leaf in jax.tree.leaves(params))
    return {"size": size, "peak": peak - before}


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measured(what: str, source: Path, out: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.memory", "--measure", what, str(source), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    make(given.folder, given.width, given.depth)
    print("| | of | GB that it returns or writes | peak, GB | ratio |\n|---|---|---|---|---|")
    for what, source, out in CASES:
        found = measured(what, given.folder / source, given.folder / out)
        size, peak = found["size"], found["peak"]
        print(f"| {what} | {source} | {size / 1e9:.2f} | {peak / 1e9:.2f} | {peak / size:.2f} |", flush=True)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
