"""Files of torch.save give torch's numbers; whatever is damaged, foreign or wants to run code gives one clear line."""

import argparse
import collections
import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from ijepa_jax.interop import torch_files
from ijepa_jax.interop.weights import WeightsError

DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"  # six numbers


def _saved(path: pathlib.Path, value, **settings) -> pathlib.Path:
    torch.save(value, path / "x.pth.tar", **settings)
    return path / "x.pth.tar"


def _archive(path: pathlib.Path, content: bytes, more: dict[str, bytes] | None = None, **settings) -> pathlib.Path:
    """A sound archive around any pickle, with one storage of six numbers."""
    records = {"data.pkl": content, "byteorder": b"little", "data/0": np.arange(6, dtype=np.float32).tobytes()} | (more or {})
    with zipfile.ZipFile(path / "x.pth.tar", "w", **settings) as archive:
        for name, record in records.items():
            archive.writestr(f"x/{name}", record)
    return path / "x.pth.tar"


def _refused(path: pathlib.Path, match: str) -> None:
    with pytest.raises(WeightsError, match=match) as caught:
        torch_files.read(str(path))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 500


def _assert_same(ours, theirs) -> None:
    if isinstance(theirs, torch.Tensor):
        assert type(ours) is np.ndarray and ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        assert ours.shape == tuple(theirs.shape)
        np.testing.assert_array_equal(ours.astype(np.float64), theirs.detach().double().numpy())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            _assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, type(theirs) if type(theirs) is not torch.Size else tuple) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _assert_same(one, other)
    else:
        assert type(ours) is type(theirs) and ours == theirs


def _assert_read_as_torch_does(path: pathlib.Path):
    value = torch_files.read(str(path))
    _assert_same(value, torch.load(path, weights_only=True))
    return value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0,), (5, 0, 2)])
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    values = torch.from_numpy(np.asarray(np.random.default_rng(0).integers(0, 2, shape) * 77)).to(getattr(torch, dtype))
    _assert_read_as_torch_does(_saved(tmp_path, {"tensor": values, "parts": [values, (values,)]}))


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_values_next_to_tensors(tmp_path, protocol):
    names = collections.OrderedDict(b=1, a=None)
    value = {
        "numbers": [0, -1, 255, 65536, -(2**31), 2**70, 0.5, float("inf"), True, False],
        "text": ["", "é", "x" * 300],
        7: (names, [], {}, ()),
        "shape": torch.ones(2, 3).shape,
    }
    assert torch_files.read(_saved(tmp_path, value, pickle_protocol=protocol)) == value
    devices = [torch.device("cpu"), torch.device("cuda", 1), torch.float32, torch.bfloat16]
    assert torch_files.read(_saved(tmp_path, devices)) == ["cpu", "cuda:1", "float32", "bfloat16"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_settings_of_a_command_line_are_passed_over(tmp_path, protocol):
    saved = {"args": argparse.Namespace(model="mae_vit_base_patch16", lr=1e-3), "epoch": 3}
    assert torch_files.read(_saved(tmp_path, saved, pickle_protocol=protocol)) == {"args": {}, "epoch": 3}


def test_views_keep_their_strides_and_share_their_storage(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"base": base, "turned": base.T, "part": base[1:3, ::2], "one": base[2, 3], "wide": base[:, :1].expand(4, 5)}
    value = _assert_read_as_torch_does(_saved(tmp_path, views))
    assert value["turned"].strides == (4, 24)
    assert all(np.shares_memory(value["base"], view) and not view.flags.writeable for view in value.values())


def test_a_training_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    assert model.state_dict()._metadata
    checkpoint = {"encoder": model.state_dict(), "opt": optimizer.state_dict(), "scaler": None, "epoch": 3, "loss": 0.25}
    value = _assert_read_as_torch_does(_saved(tmp_path, checkpoint | {"free": torch.nn.Parameter(torch.randn(3))}))
    assert value["opt"]["state"][0]["exp_avg"].shape == (4, 3, 2, 2)


def test_bfloat16_is_that_of_jax(tmp_path):
    assert torch_files.read(_saved(tmp_path, torch.ones(2, dtype=torch.bfloat16))).dtype == ml_dtypes.bfloat16


class _Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_of_other_functions_are_refused_before_they_happen(tmp_path, protocol):
    marker = tmp_path / "marker"
    write = f"open({str(marker)!r}, 'w')"
    calls = {
        "(posix|nt).system": _Call(os.system, f"touch {marker}"),
        "(__builtin__|builtins).eval": _Call(eval, write),
        "(__builtin__|builtins).exec": _Call(exec, write),
        "(__builtin__|builtins).getattr": _Call(getattr, _Call(getattr, "", "join"), "__call__"),
        "torch.serialization.load": _Call(torch.load, str(marker)),
    }
    for name, call in calls.items():
        value = {"encoder": torch.ones(2), "opt": [call]}
        _refused(_saved(tmp_path, value, pickle_protocol=protocol), f"asks for {name}, .*nothing was executed")
        assert not marker.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch", "_utils.os.system"),
        ("collections", "OrderedDict.fromkeys"),
        ("torch._utils._rebuild_tensor", "__globals__"),
        ("os", "system\nx\x1b[31m"),
    ],
)
def test_dotted_names_are_refused(tmp_path, module, name):
    text = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    _refused(_archive(tmp_path, b"\x80\x04" + text + b"\x93."), "asks for .*nothing was executed")


@pytest.mark.parametrize(
    "content, match",
    [
        (b"K\x01Q", "else than a storage"),
        (b"X\x01\x00\x00\x000Q", "else than a storage"),
        (STORAGE.replace(b"storage", b"program"), "else than a storage"),
        (STORAGE.replace(b"ctorch\nFloatStorage\n", b"X\x01\x00\x00\x00f"), "else than a storage"),
        (STORAGE.replace(b"K\x06", b"K\x05"), "has 6 values of float32, not the 5 declared"),
        (STORAGE.replace(b"Float", b"Double"), "has 3 values of float64, not the 6 declared"),
        (STORAGE.replace(b"\x000X", b"\x007X"), "data/7"),
        (STORAGE + b"}b", "sets the state"),
        (STORAGE + b"K\x00K\x01s", "a dict with keys"),
        (b"ctorch\nSize\n" + STORAGE + b"R", "else than a tuple"),
        (b"}" + b")" + b"\x85" * 1000 + b"Ns", "a dict with keys"),
        (b"ctorch\nSize\n}b", "sets the state"),
        (b"ccollections\nOrderedDict\n)\x81", "makes objects"),
        (b"cargparse\nNamespace\nK\x00\x85\x81", "makes objects"),
        (b"cargparse\nNamespace\n}\x81", "makes objects"),
        (b"\x82\x01", "has an operation"),
        (b"N\x94r\xff\xff\xff\xff0", "has an operation"),
        (b"h\x07", "Memo value"),
        (b"ctorch\nfloat32\n)R", "not callable"),
        (b"X\x02\x00\x00\x00\xff\xfe", "UnicodeDecodeError"),
        (b"X\xff\xff\xff\x7f", "truncated|exhausted|EOF"),
        (b"t", "IndexError"),
        (b"\x80\xff", "unsupported pickle protocol"),
    ],
)
def test_odd_pickles_are_refused(tmp_path, content, match):
    _refused(_archive(tmp_path, b"\x80\x02" + content + b"."), match)


def _tensor(offset: int, size: tuple, stride: tuple, storage: bytes = STORAGE) -> bytes:
    numbers = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride, False))
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"}tR."


def test_tensors_within_their_storage_are_read(tmp_path):
    for offset, size, stride in ((0, (6,), (1,)), (1, (2, 2), (2, 1)), (5, (), ()), (2, (2, 3), (1, 0)), (9, (0,), (1,))):
        values = torch_files.read(_archive(tmp_path, _tensor(offset, size, stride)))
        expected = torch.arange(6.0).as_strided(size, stride, offset) if values.size else np.empty(size)
        np.testing.assert_array_equal(values, np.asarray(expected))


@pytest.mark.parametrize(
    "offset, size, stride, match",
    [
        (1, (6,), (1,), "reaches past its storage of 6"),
        (6, (), (), "reaches past"),
        (0, (2, 3), (4, 1), "reaches past"),
        (0, (2**62, 4), (2**62, 1), "reaches past"),
        (2**64 - 4, (1,), (1,), "reaches past"),
        (0, (2**62, 2), (4, 1), "reaches past"),
        (0, (3, 4), (1, 0), r"shape \[3, 4\], more than the 6 values"),
        (0, (2**40, 2**40, 0), (1, 1, 1), r"shape \[1099511627776, 1099511627776, 0\], which no array can have"),
        (0, (1,) * 65, (1,) * 65, r"shape \[1, 1, .*\], which no array can have"),
        (0, (3,), (-1,), "negative"),
        (-1, (1,), (1,), "negative"),
        (0, (-3,), (1,), "negative"),
        (0, (2.0,), (1,), "negative or odd"),
        (0, (2, 3), (1,), "size and strides"),
        (0, [6], [1], "size and strides"),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(tmp_path, offset, size, stride, match):
    _refused(_archive(tmp_path, _tensor(offset, size, stride)), match)


@pytest.mark.parametrize(
    "saved, match",
    [
        (lambda one: {"w": one.expand(10**5, 10**5)}, r"tensor w has shape \[100000, 100000\], more than the 1 values"),
        (lambda one: {"opt": [{"a": one.expand(3)}]}, r"tensor opt/0/a has shape \[3\], more than the 1 values"),
        (
            lambda one: (lambda base: {"m": {f"blocks.{i}": base.view(1000) for i in range(2000)}})(torch.zeros(1000)),
            r"its tensors, up to m/blocks\.\d+, are more than 4 times as large as the file",
        ),
        (lambda one: (lambda base: {"m": [[base] * 2000]})(torch.zeros(1000)), "its tensors, up to m/0/.*more than 4 times"),
    ],
)
def test_tensors_larger_than_the_file_are_refused_by_name(tmp_path, saved, match):
    _refused(_saved(tmp_path, saved(torch.zeros(1))), match)


def test_equal_encoders_may_share_their_storage(tmp_path):
    encoder = {"w": torch.randn(100, 100)}
    value = _assert_read_as_torch_does(_saved(tmp_path, {"encoder": encoder, "target": dict(encoder)}))
    assert np.shares_memory(value["encoder"]["w"], value["target"]["w"])


def test_only_what_is_picked_is_read(tmp_path):
    saved = {"wanted": {"w": torch.randn(50)}, "other": torch.full((50,), 3.0)}
    path = _saved(tmp_path, saved)
    content, record = path.read_bytes(), saved["other"].numpy().tobytes()
    path.write_bytes(content.replace(record, bytes(len(record))))
    _assert_same(torch_files.read(path, lambda found: found["wanted"]), saved["wanted"])
    _refused(path, "Bad CRC-32")


def test_floats_come_as_float32_where_that_is_asked_for(tmp_path):
    saved = {dtype: torch.arange(6).to(getattr(torch, dtype)).reshape(2, 3).T for dtype in DTYPES}
    for dtype, array in torch_files.read(_saved(tmp_path, saved), as_float32=True).items():
        assert array.dtype.name == ("float32" if "float" in dtype else dtype) and not array.flags.writeable
        np.testing.assert_array_equal(array, saved[dtype].double().numpy())


def test_objects_without_end_are_read_in_no_time(tmp_path):
    value = ["x"]
    for _ in range(60):
        value = [value, value, (value,)]
    found = torch_files.read(_saved(tmp_path, {"many": value, "w": torch.ones(2)}))
    assert found["many"][0] is found["many"][1] and found["w"].shape == (2,)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path):
    (tmp_path / "x.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(WeightsError, match=r"x.pth is a git-lfs pointer, .*: fetch that with git lfs pull"):
        torch_files.read(tmp_path / "x.pth")


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files._Reader, "read", lambda *_: bytearray(2**62))
    with pytest.raises(MemoryError):
        torch_files.read(_saved(tmp_path, {"w": torch.ones(2)}))


def test_tensors_of_tensors_are_refused(tmp_path):
    inner = _tensor(0, (6,), (0,))[2:-1]
    _refused(_archive(tmp_path, _tensor(0, (6,), (1,), inner)), "else than a storage")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    value = {"w": torch.randn(40, 50), "b": torch.randn(50).half(), "list": [1, 2.5, "x", torch.nn.Linear(2, 2).state_dict()]}
    return _saved(tmp_path_factory.mktemp("file"), value)


def test_a_changed_byte_in_any_record_is_refused(tmp_path, file):
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        records = [record for record in archive.infolist() if "/data" in record.filename]
    assert len(records) == 5
    for record in records:
        names, extra = struct.unpack("<HH", content[record.header_offset + 26 : record.header_offset + 30])
        changed = bytearray(content)
        changed[record.header_offset + 30 + names + extra + record.file_size // 2] ^= 1
        (tmp_path / "x.pth").write_bytes(changed)
        _refused(tmp_path / "x.pth", f"Bad CRC-32 for file '{record.filename}'")


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99, 0.9999])
def test_truncated_files_are_refused(tmp_path, file, share):
    content = file.read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(len(content) * share)])
    _refused(tmp_path / "x.pth", "truncated: it starts as a zip" if share >= 0.01 else "does not start as a zip")


@pytest.mark.parametrize("content", [b"", b"weights", b"<!DOCTYPE html>\n<html>", b"\x00" * 600, b"\x80\x02}."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    _refused(tmp_path / "x.pth", "not a file of torch.save")


def test_the_old_format_is_refused_with_the_way_out(tmp_path):
    _refused(
        _saved(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False), r"before 1\.6; save it again: torch\.save"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "x.pt")
    _refused(tmp_path / "x.pt", "a TorchScript program")


def test_odd_archives_are_refused(tmp_path):
    sound = _tensor(0, (6,), (1,))
    _refused(_archive(tmp_path, sound, compression=zipfile.ZIP_DEFLATED), "compressed records")
    _refused(_archive(tmp_path, sound, {"byteorder": b"big"}), "big-endian")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", b"")
    _refused(tmp_path / "x.npz", r"without one NAME/data\.pkl")
    with zipfile.ZipFile(_archive(tmp_path, sound), "a") as archive:
        archive.writestr("y/data.pkl", sound)
    _refused(tmp_path / "x.pth.tar", r"without one NAME/data\.pkl")


def test_records_declared_larger_than_the_file_are_refused(tmp_path):
    content = bytearray(_archive(tmp_path, _tensor(0, (6,), (1,))).read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last one of the directory: data/0
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "x.pth").write_bytes(content)
    _refused(tmp_path / "x.pth", "declared larger than the file")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        torch_files.read(str(tmp_path / "none.pth"))


def test_damaged_pickles_give_a_value_or_the_one_error(tmp_path, file):
    with zipfile.ZipFile(file) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    draw = np.random.default_rng(0)
    outcomes = collections.Counter()
    for _ in range(300):
        changed = bytearray(records["data.pkl"])
        for place in draw.integers(0, len(changed), draw.integers(1, 4)):
            changed[place] = draw.integers(0, 256)
        damaged = _archive(tmp_path, bytes(changed), {name: record for name, record in records.items() if name != "data.pkl"})
        try:
            torch_files.read(damaged)
            outcomes["read"] += 1
        except WeightsError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["read"] and outcomes["refused"] > 150
