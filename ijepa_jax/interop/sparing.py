"""Orbax in little memory: large weights, as NumPy arrays, are there once while they are saved or restored, not three times."""

import asyncio
import contextlib
import ctypes
import mmap
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from ijepa_jax.train import checkpoint

_AT_ONCE = 4  # arrays that are there twice, as they are and encoded
_LARGE = 1 << 18  # bytes
_CONTEXT = {"file_io_concurrency": {"limit": _AT_ONCE}, "cache_pool#ocdbt": {"total_bytes_limit": 1 << 20}}  # Orbax's: 100 MB


class _SparingHandler(ocp.type_handlers.NumpyHandler):
    """Writes and reads a few arrays at a time, and writes them as they are: nobody changes them meanwhile."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def _open_and_write(self, *arguments) -> None:
        async with self._turns:
            await super()._open_and_write(*arguments)
            _give_back_freed_memory()

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> list[np.ndarray]:
        arrays, context = [], tensorstore.Context(_CONTEXT)
        for info in infos:
            info.ts_context = context
        for start in range(0, len(infos), _AT_ONCE):
            turn = slice(start, start + _AT_ONCE)
            arrays += map(_in_own_pages, await super().deserialize(infos[turn], args and args[turn]))
            _give_back_freed_memory()
        return arrays


def _give_back_freed_memory() -> None:
    """Has glibc give back what TensorStore's threads have freed, of which it keeps some for each of them."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _in_own_pages(array: np.ndarray) -> np.ndarray:
    """The same array in memory that the system gets back as soon as it is dropped, which an allocator may keep for itself.

    It is aligned as JAX must have it to take it for its own on a CPU.
    """
    if array.nbytes < _LARGE:
        return array
    pages = mmap.mmap(-1, array.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    copy = np.frombuffer(pages, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@contextlib.contextmanager
def sparingly() -> Iterator[None]:
    """Within it, Orbax saves and restores NumPy arrays so. It must last until what is saved is written."""
    usual = ocp.type_handlers.get_type_handler(np.ndarray)
    _register(_SparingHandler())
    try:
        yield
    finally:
        _register(usual)


@checkpoint.quiet
def _register(handler: ocp.type_handlers.TypeHandler) -> None:
    ocp.type_handlers.register_type_handler(np.ndarray, handler, override=True)
