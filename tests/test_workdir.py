"""A workdir: what lies in a run's way is set aside, files are whole or not there, a full disk is named."""

import errno
import io

import pytest
from etils import epath
from rich.console import Console

from ijepa_jax.host import files
from ijepa_jax.host.console import Display
from ijepa_jax.train import workdir

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_what_lies_in_the_way_is_set_aside_and_said(tmp_path):
    (tmp_path / "report").mkdir()
    files = ["config.json", "metrics.jsonl", "owner", "wandb_id", "bad_images.txt", "report/report.json", "report/curves.png"]
    for name in files:
        (tmp_path / name).mkdir()
    (tmp_path / "tensorboard").write_text("a file")
    (tmp_path / "damaged-owner").symlink_to("nowhere")
    (tmp_path / "notes").mkdir()  # none of the run's
    lines = []
    with workdir.claim(epath.Path(tmp_path), lines.append):
        assert not any((tmp_path / name).is_dir() for name in files) and not (tmp_path / "tensorboard").exists()
    assert len(lines) == len(files) + 1
    assert f"{tmp_path}/tensorboard is no folder: set aside as {tmp_path}/damaged-tensorboard" in lines
    assert f"{tmp_path}/owner is no file: set aside as {tmp_path}/damaged-owner.1" in lines
    assert (tmp_path / "damaged-tensorboard").read_text() == "a file" and (tmp_path / "notes").is_dir()
    with workdir.claim(epath.Path(tmp_path), lines.append):
        assert len(lines) == len(files) + 1


def test_a_link_to_what_is_no_file_is_set_aside(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "report").symlink_to("nowhere")
    lines = []
    with workdir.claim(epath.Path(tmp_path), lines.append):
        pass
    assert sorted(line.split(":")[0] for line in lines) == [
        f"{tmp_path}/{name}" for name in ("metrics.jsonl is no file", "report is no folder")
    ]


def test_an_owner_that_is_no_text_is_another(tmp_path):
    (tmp_path / "owner").write_bytes(b"\xff\x00")
    assert workdir.owner(epath.Path(tmp_path)) not in ("", "another")
    with workdir.claim(epath.Path(tmp_path)) as check:
        check()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    place = epath.Path(tmp_path / "table.json")
    files.write_whole(place, b"first")
    plain = type(place).write_bytes

    def half(path, content):
        plain(path, content[: len(content) // 2])
        raise FULL

    monkeypatch.setattr(type(place), "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(place, b"second")
    assert place.read_bytes() == b"first" and [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named(number):
    with (
        pytest.raises(OSError, match=r"^cannot write to /a/place \(disk full\?\): no room$"),
        files.full_disk_named("/a/place"),
    ):
        raise OSError(number, "no room")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full", "/a/file"), PermissionError(errno.EACCES, "no"), ValueError("x")]
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, files.full_disk_named("/a/place"):
        raise error
    assert caught.value is error


class FullFile(io.StringIO):
    def flush(self):
        raise FULL


def test_a_log_on_a_full_disk_is_named():
    with pytest.raises(OSError, match="cannot write to the standard output"):
        Display(console=Console(file=FullFile())).log("a line")
