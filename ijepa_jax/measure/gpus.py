"""NVIDIA GPUs that are not there, described as XLA's compiler wants it; jax's CUDA plugin has that compiler."""

import importlib.util
from typing import NamedTuple

from jax.experimental import topologies

NEEDS_PLUGIN = "a plan for GPUs needs jax's CUDA plugin, which compiles on any Linux machine: pip install 'jax[cuda13]'"
_CUDNN = (9, 10, 0)  # whose attention is compiled for


class Gpu(NamedTuple):
    """What the compiler goes by: the datasheets' figures, sizes in bytes, clock in GHz."""

    name: str
    capability: int  # its major number
    features: str
    cores: int
    lanes: int  # of a core
    clock: float
    bandwidth: int
    memory: int
    l2_cache: int
    shared: int  # of a core
    shared_by_block: int  # at most


GPUS = {
    "h200": Gpu(
        "NVIDIA H200", 9, "ACCELERATED_FEATURES", 132, 128, 1.98, 4_800 * 10**9, 151_397_597_184, 50 << 20, 233_472, 232_448
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        9,
        "ACCELERATED_FEATURES",
        132,
        128,
        1.98,
        3_352 * 10**9,
        84_942_979_072,
        50 << 20,
        233_472,
        232_448,
    ),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, "NONE", 108, 64, 1.41, 2_039 * 10**9, 85_100_068_864, 40 << 20, 167_936, 166_912),
}


def devices(chip: str, hosts: int, each: int) -> list:
    """Devices of so many hosts with so many GPUs each, which only compile. Raises ModuleNotFoundError without the plugin."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (13, 12)):
        raise ModuleNotFoundError(NEEDS_PLUGIN)
    described = topologies.get_topology_desc(
        platform="cuda", target_config=_description(GPUS[chip]), topology=f"1x{hosts}x{each}"
    )
    return list(described.devices)


def _description(gpu: Gpu) -> str:
    """A stream_executor.GpuTargetConfigProto as text."""
    major, minor, patch = _CUDNN
    return f"""
gpu_device_info {{
  name: "{gpu.name}"
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {gpu.features} }}
  core_count: {gpu.cores} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {gpu.bandwidth} device_memory_size: {gpu.memory} l2_cache_size: {gpu.l2_cache}
  shared_memory_per_core: {gpu.shared} shared_memory_per_block: {48 << 10} shared_memory_per_block_optin: {gpu.shared_by_block}
  registers_per_core_limit: {1 << 16} registers_per_block_limit: {1 << 16}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  dnn_version: "{major}.{minor}.{patch}"
  runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" driver_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
device_description_str: "{gpu.name}"
"""
