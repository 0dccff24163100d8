"""Where weights are: in workdirs of ours, on local disks, in the Hugging Face hub's cache; and where they go."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ijepa_jax.host.files import absolute
from ijepa_jax.interop import tensor_files
from ijepa_jax.interop.weights import WeightsError
from ijepa_jax.train import checkpoint

_SUFFIXES = (".tar", ".pth", ".pt", ".bin", ".safetensors")
_FETCH = {  # how weights that are elsewhere come here
    "gs": "gcloud storage cp -r {} DIR", "s3": "aws s3 cp {} DIR (with --recursive for a folder)",
    "http": "curl -LO {}", "https": "curl -LO {}",
}  # fmt: skip
_TRIES = 20
_STORES = ("gs", "s3")  # which may hold workdirs
_MODEL = r"[\w-][\w.-]*/[\w-][\w.-]*"  # ORG/NAME on the hub
_HUB = rf"(?:(?:hf|hf-hub|hf_hub):/*|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)({_MODEL})"


def workdir(path: str) -> str | None:
    """The path of a workdir, or of one of its checkpoints, perhaps by way of a link; None for foreign weights.

    Raises WeightsError where it names a place that nothing is read from.
    """
    if path.partition("://")[0] in _STORES and Path(path).suffix not in _SUFFIXES:
        return path
    check_local(path)
    place = Path(path).expanduser().resolve()
    foreign = (place / "config.json").is_file() and {"model_type", "architecture"} & {
        *tensor_files.read_json(place / "config.json")
    }
    ours = checkpoint.is_step(place) or (place / "checkpoints").is_dir()
    return str(place) if ours and not foreign else None


def is_ours(path: str) -> bool:
    """Whether a local path is that of a workdir with a checkpoint, or of one of its checkpoints."""
    place = workdir(path)
    steps = [] if place is None else [Path(place)] if checkpoint.is_step(Path(place)) else Path(place, "checkpoints").iterdir()
    return any(checkpoint.is_step(step) and (step / "state").is_dir() for step in steps)


def check_local(path: str) -> None:
    """Raises WeightsError for foreign weights that are not on a local disk, saying how to fetch them."""
    scheme, remote, rest = path.partition("://")
    if model := re.match(_HUB, path):
        fetch = f"hf download {model[1]} --local-dir DIR"
    elif not remote:
        return
    elif scheme in _FETCH:
        fetch = _FETCH[scheme].format(path)
    else:
        fetch = f"give {rest}" if scheme == "file" else "copy them there"
    ours = "; a workdir of ours is read where it is" if scheme in _STORES else ""
    raise WeightsError(f"{path}: foreign weights are read from local disks only: {fetch}{ours}")


def local(path: str) -> Path:
    """The file or folder of foreign weights: of this path, or, for ORG/NAME, in the Hugging Face hub's cache.

    Raises FileNotFoundError, saying how a model of the hub is fetched.
    """
    check_local(path)
    place = Path(path).expanduser()
    if place.exists():
        return place
    if not re.fullmatch(_MODEL, path):
        raise FileNotFoundError(f"no file or folder {path}")
    if (cached := _cached(path)) is None:
        raise FileNotFoundError(
            f"no file or folder {path}; a model of the Hugging Face hub is fetched by: hf download {path} --local-dir DIR"
        )
    return cached


def _cached(model: str) -> Path | None:
    """The folder of a model in the hub's cache, where huggingface_hub is installed and knows one."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):  # not there, or no name that a model can have
        return None


@contextlib.contextmanager
def left_as_it_was(out: str) -> Iterator[None]:
    """Where writing to a folder fails or is interrupted, removes what was not there before, and the folder if it was not."""
    folder = absolute(out)
    parts = (folder / "checkpoints", folder)
    before = {place for part in parts if part.is_dir() for place in part.iterdir()}
    local = "://" not in str(folder)  # in an object store, folders go with what is in them
    created = [place for place in (folder, *folder.parents) if not place.exists()] if local else []
    try:
        yield
    except BaseException:
        for _ in range(_TRIES):  # writers that failed together may still be making files
            with contextlib.suppress(Exception):
                for place in [place for part in parts if part.is_dir() for place in part.iterdir() if place not in before]:
                    place.rmtree() if place.is_dir() else place.unlink(missing_ok=True)
                for place in created:  # parents only where nobody else has put something there since
                    if place.exists():
                        place.rmdir()
                break
            time.sleep(0.1)
        raise
