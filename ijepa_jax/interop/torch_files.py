"""PyTorch checkpoint files, read without PyTorch and without running any code of theirs.

`torch.save` (1.6 and newer) writes an uncompressed zip archive: NAME/data.pkl, a pickle of the objects, and one record
NAME/data/KEY for each storage, a flat array that tensors are strided views of. A pickle may call any function of any
module, so this one is read by a machine that knows a short table of names, all others being refused before any use.
"""

import collections
import dataclasses
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ijepa_jax.interop.weights import WeightsError, can_be, check_pointer, shown

_ZIP = b"PK\x03\x04"
_BEFORE_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that such files start with


_SHARED = 4  # times the file's size that all its tensors may have: some may share their storage, as two equal encoders do
_CHUNK = 1 << 24  # bytes that are read at once


def read(path: str | os.PathLike[str], pick: Callable[[Any], Any] = lambda saved: saved, *, as_float32: bool = False) -> Any:
    """The objects that `torch.save` wrote to a file, with tensors and parameters as read-only NumPy arrays.

    Arrays keep shape, strides and dtype (bfloat16 as `ml_dtypes.bfloat16`), and those of one storage share its memory. Ordered
    dicts come as dicts without attributes, settings of argparse as empty dicts, `torch.Size` as a tuple, `torch.device` as
    'cuda:0', `torch.float32` as 'float32'.

    Args:
        path: the file.
        pick: given all objects, their tensors still unread, returns those that are wanted: only their records are read, one
            after the other, and their checksums verified.
        as_float32: other floats come as float32; then no more than one tensor is held twice.

    Raises WeightsError for a file that is damaged, of another format, whose pickle asks for anything else than tensors,
    dicts, lists, tuples, text and numbers, or whose tensors are larger than what it holds; OSError, such as
    FileNotFoundError, for one that cannot be opened.
    """
    with pathlib.Path(path).open("rb") as file:
        head = file.read(512)
        check_pointer(head, str(path))
        try:
            _check_format(file, head)
            size = os.fstat(file.fileno()).st_size
            with zipfile.ZipFile(file) as archive:
                saved = _TensorUnpickler(archive, _check_records(archive, size)).load()
                _check_sizes(saved, size)
                wanted = pick(saved)
                del saved
                return _Reader(archive, wanted, as_float32).read(wanted)
        except MemoryError as error:
            raise MemoryError(f"{path}: {error}") from error
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except Exception as error:  # damaged bytes make zipfile and pickle raise nearly anything
            raise WeightsError(f"{path}: damaged, or no file of torch.save: {repr(error)[:200]}") from error


def _check_format(file: BinaryIO, head: bytes) -> None:
    if head.startswith(_BEFORE_1_6) or head[257:262] == b"ustar":
        raise WeightsError(
            "written in PyTorch's format before 1.6; save it again: torch.save(torch.load(f, weights_only=True), f)"
        )
    if not head.startswith(_ZIP):
        raise WeightsError("not a file of torch.save: it does not start as a zip archive")
    if not zipfile.is_zipfile(file):
        raise WeightsError("truncated: it starts as a zip archive and has no end of one")


def _check_records(archive: zipfile.ZipFile, file_size: int) -> str:
    """Where in the archive the records lie ('NAME/'); refuses what torch.save does not write."""
    records = archive.infolist()
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError("not a file of torch.save: a zip archive without one NAME/data.pkl")
    if any(name.startswith((f"{roots[0]}code/", f"{roots[0]}constants.pkl")) for name in names):
        raise WeightsError("a TorchScript program; save its tensors: torch.save(torch.jit.load(f).state_dict(), f)")
    if any(record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size for record in records):
        raise WeightsError("has compressed records, which torch.save does not write")
    if sum(record.file_size for record in records) > file_size:
        raise WeightsError("its records are declared larger than the file")
    if f"{roots[0]}byteorder" in names and archive.read(f"{roots[0]}byteorder") != b"little":
        raise WeightsError("written on a big-endian machine; save it again on a little-endian one")
    return roots[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """A flat array of values that is not read yet."""

    record: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Unread:
    """A tensor that is not read yet: a strided view of its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple) -> _Unread:
    if not (isinstance(storage, _Storage) and type(size) is type(stride) is tuple and len(size) == len(stride)):
        raise WeightsError("its pickle builds a tensor from something else than a storage, a size and strides")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride)):
        raise WeightsError("its pickle builds a tensor with a negative or odd size, stride or offset")
    return _Unread(storage, offset, size, stride)


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> _Unread:
    if metadata:
        raise WeightsError("its pickle builds a tensor that is to be negated or conjugated")
    return _rebuild_tensor(storage, offset, size, stride)


def _no_settings() -> dict:
    """Stands in for the settings of a command line, which some checkpoints keep: they are not read."""
    return {}


_DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_GLOBALS = {
    "collections.OrderedDict": lambda: {},
    "argparse.Namespace": _no_settings,
    "torch.Size": lambda size: size,
    "torch.device": lambda kind, index=None: kind if index is None else ":".join((kind, format(index, "d"))),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, requires_grad, hooks, state: tensor,
    **{f"torch.{dtype}": dtype for dtype in _DTYPES.values()},
    **{f"torch.{kind}": np.dtype(getattr(ml_dtypes, dtype, dtype)) for kind, dtype in _DTYPES.items()},
}
_OPCODES = """PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET BINPERSID GLOBAL STACK_GLOBAL
NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT"""


class _TensorUnpickler(pickle._Unpickler):
    """Pickle's machine with the operations of state dicts only.

    Python's own one and not the C one, which reserves as much memory as a damaged memo index says and lets BUILD set
    attributes of any object.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))  # at once, so that its checksum comes first
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in _GLOBALS:
            wanted = ascii(wanted[:100])[1:-1]
            raise WeightsError(f"its pickle asks for {wanted}, which plain tensors do not need: refused, nothing was executed")
        return _GLOBALS[wanted]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count)):
                pass
            case _:
                raise WeightsError("its pickle names something else than a storage")
        size = self.archive.getinfo(f"{self.root}data/{key}").file_size
        if size != count * dtype.itemsize:
            values = f"{size / dtype.itemsize:.15g} values of {dtype}"
            raise WeightsError(f"its storage {key[:100]!a} has {values}, not the {count} declared")
        return _Storage(f"{self.root}data/{key}", dtype, count)

    def load_reduce(self) -> None:
        if not isinstance(self.stack[-1], tuple):  # an array would be unpacked element by element
            raise WeightsError("its pickle calls with something else than a tuple")
        super().load_reduce()

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if kind is not _no_settings or arguments != ():
            raise WeightsError("its pickle makes objects that are neither tensors nor argparse's settings")
        self.append(kind())

    def load_build(self) -> None:
        self.stack.pop()  # attributes, such as a state dict's `_metadata`
        if not isinstance(self.stack[-1], dict):
            raise WeightsError("its pickle sets the state of something else than an ordered dict or settings")

    def load_setitem(self) -> None:
        _check_entries(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_entries(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()

    def refuse(self) -> None:
        raise WeightsError("its pickle has an operation that plain tensors do not need: refused, nothing was executed")

    dispatch = dict.fromkeys(range(256), refuse)  # the method for each operation's code
    dispatch |= {
        code: pickle._Unpickler.dispatch[code] for code in b"".join(getattr(pickle, name) for name in _OPCODES.split())
    }
    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build, pickle.NEWOBJ[0]: load_newobj}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def _check_entries(target: Any, keys: list) -> None:
    """Keys are plain, since hashing a tuple nested deeply enough overflows the C stack."""
    if type(target) is not dict or not all(key is None or isinstance(key, (str, int, float)) for key in keys):
        raise WeightsError("its pickle has a dict with keys other than text and numbers")


def _tensors(value: Any, keys: tuple = (), seen: dict[int, Any] | None = None) -> Iterator[tuple[str, _Unread]]:
    """The tensors of some objects, with the keys that lead there; what holds them is looked into once."""
    seen = {} if seen is None else seen
    if isinstance(value, _Unread):
        yield "/".join(map(shown, keys)) or "(no name)", value
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
        seen[id(value)] = value
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, (*keys, key), seen)


def _check_sizes(saved: Any, file_size: int) -> None:
    """Raises WeightsError, naming the tensor, where one asks for more values than its storage has, or all for far more."""
    total = 0
    for name, tensor in _tensors(saved):
        shape, held = shown([*tensor.shape]), tensor.storage.size
        ends = tensor.offset + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.strides, strict=True))
        if all(tensor.shape) and ends >= held:
            raise WeightsError(f"tensor {name} of shape {shape} reaches past its storage of {held} values")
        if not can_be(tensor.shape):
            raise WeightsError(f"tensor {name} has shape {shape}, which no array can have")
        if (size := tensor.size) > held:
            raise WeightsError(f"tensor {name} has shape {shape}, more than the {held} values that the file holds of it")
        total += size * tensor.storage.dtype.itemsize
        if total > _SHARED * file_size:
            raise WeightsError(f"its tensors, up to {name}, are more than {_SHARED} times as large as the file")


class _Reader:
    """Reads tensors one by one. A storage is held until the last of its tensors is made."""

    def __init__(self, archive: zipfile.ZipFile, wanted: Any, as_float32: bool):
        self.archive, self.as_float32 = archive, as_float32
        tensors = {id(tensor): tensor for _, tensor in _tensors(wanted) if tensor.size}
        self.uses = collections.Counter(tensor.storage.record for tensor in tensors.values())
        self.storages: dict[str, np.ndarray] = {}
        self.done: dict[int, tuple[Any, Any]] = {}  # what an object has become, and the object, which keeps its id its own

    def read(self, value: Any) -> Any:
        """The same objects with arrays for tensors; dicts and lists are changed in place."""
        if not isinstance(value, (_Unread, dict, list, tuple)):
            return value
        if id(value) in self.done:
            return self.done[id(value)][1]
        if isinstance(value, _Unread):
            made = self._array(value)
        elif isinstance(value, tuple):
            made = tuple(self.read(part) for part in value)
        else:
            made = value
            self.done[id(value)] = value, value  # before its parts, one of which may be itself
            for key in value if isinstance(value, dict) else range(len(value)):
                value[key] = self.read(value[key])
        self.done[id(value)] = value, made
        return made

    def _array(self, tensor: _Unread) -> np.ndarray:
        dtype = tensor.storage.dtype
        if not tensor.size:
            array = np.empty(tensor.shape, dtype)
        else:
            values = self._storage(tensor.storage.record).view(dtype)[tensor.offset :]
            pairs = zip(tensor.shape, tensor.strides, strict=True)
            strides = [step * dtype.itemsize if length > 1 else 0 for length, step in pairs]
            array = np.lib.stride_tricks.as_strided(values, tensor.shape, strides)
        if self.as_float32 and dtype.name in ("float16", "bfloat16", "float64"):
            with np.errstate(over="ignore"):  # becomes infinite, and is refused as that
                array = array.astype(np.float32)
        array.flags.writeable = False
        return array

    def _storage(self, record: str) -> np.ndarray:
        content = self.storages.get(record)
        if content is None:
            content = self.storages[record] = self._content(record)
        self.uses[record] -= 1
        if not self.uses[record]:
            del self.storages[record]
        return content

    def _content(self, record: str) -> np.ndarray:
        """The bytes of a record, whose checksum zipfile verifies at its end."""
        content = np.empty(self.archive.getinfo(record).file_size, np.uint8)
        with self.archive.open(record) as file:
            for start in range(0, len(content), _CHUNK):
                part = content[start : start + _CHUNK]
                if file.readinto(part) != len(part):
                    raise EOFError(f"record {record} ends early")
        content.flags.writeable = False
        return content
