"""Shared fixtures."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

# Compiling dominates tests of tiny networks: optimise little, in the processes that tests start, too, and share what is
# compiled, with other runs of the tests as well where JAX_COMPILATION_CACHE_DIR is set. Workers have all this from the process
# that starts them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where an accelerator, or libtpu, is there
if "PYTEST_XDIST_WORKER" not in os.environ:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        CACHE = tempfile.TemporaryDirectory(prefix="ijepa_jax_compiled_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    # a quarter of the time to compile, where XLA has these flags: it stops at others
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    tried = [sys.executable, "-c", "import jax; jax.devices()"]
    if not subprocess.run(tried, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, check=False).returncode:
        os.environ["XLA_FLAGS"] = flags
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")  # what broadcasts says so

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def recording() -> Path:
    """A recording of the authors' code, where the checkout has one beside it."""
    path = ROOT.parent / "shared" / "parity" / "official_small.npz"
    if not path.exists():
        pytest.skip("needs ../shared/parity/official_small.npz, which is not part of the project")
    return path


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """Fashion-MNIST's idx files, where the checkout has them beside it."""
    path = ROOT.parent / "shared" / "data" / "fashion-mnist"
    if not path.exists():
        pytest.skip("needs ../shared/data/fashion-mnist, which is not part of the project")
    return path
