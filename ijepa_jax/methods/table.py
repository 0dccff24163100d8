"""The methods there are by name, and those of users, by file or module: `find` gives the class."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ijepa_jax.methods.contract import Method

TABLE = {
    "ijepa": "ijepa_jax.methods.ijepa:IJepa",
    "rcdm": "ijepa_jax.decode.rcdm:Rcdm",
}

_OWN = "FILE.py:CLASS or package.module:CLASS of your own"
_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def find(reference: str) -> type[Method]:
    """The class of a method: a name of the table, FILE.py:CLASS, or package.module:CLASS.

    Raises ValueError, saying what is there, for what is none.
    """
    if reference in TABLE:
        reference = TABLE[reference]
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"method {reference!r} must be one of {', '.join(TABLE)}, or {_OWN}")
    if place.endswith(".py") or os.sep in place:
        file = Path(place).expanduser().resolve()
        if not file.is_file():
            raise ValueError(f"method {reference!r}: there is no file {place} (looked for at {file})")
        return _class_of(_load(file, file.read_bytes()), name, reference)
    try:
        if (here := str(Path.cwd())) not in sys.path:  # as `python -m` has it: a package beside the launcher's caller
            sys.path.append(here)
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if not place.startswith(f"{error.name}.") and place != error.name:
            raise _broken(reference, error) from error
        raise ValueError(f"method {reference!r}: there is no module {error.name!r} here or installed") from error
    except Exception as error:
        raise _broken(reference, error) from error
    return _class_of(module, name, reference)


def identity(reference: str) -> dict[str, str]:
    """What tells a user's method from another, for checkpoints: `class`, `source` and `file`; empty for those of the table.

    `source` is a digest of the file, and of what it imports that is neither a library's nor this package's.
    """
    if reference in TABLE:
        return {}
    of = find(reference)
    digest = hashlib.sha256()
    for file in sorted(_sources(sys.modules[of.__module__], set()), key=lambda file: file.name):
        digest.update(file.read_bytes())
    return {"class": of.__qualname__, "source": digest.hexdigest()[:16], "file": str(Path(inspect.getfile(of)).resolve())}


def found_again(reference: str, kept: Mapping[str, str]) -> str:
    """How a method that a checkpoint names is found from here: by that name, or by the file it was in, if that is there.

    `kept` is what `identity` gave when it was saved.
    """
    place, _, name = reference.rpartition(":")
    if reference in TABLE or not place.endswith(".py") or Path(place).expanduser().is_file():
        return reference
    return f"{kept['file']}:{name}" if Path(kept.get("file", "")).is_file() else reference


@functools.cache
def _load(file: Path, text: bytes) -> ModuleType:
    """Runs a user's file as a module of its own, which may import what lies beside it; once for each text that it has had."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    name = f"{file.stem}_{hashlib.sha256(bytes(file) + text).hexdigest()[:8]}"  # not the stem: it may be a library's name
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, file))
    sys.modules[name] = module
    try:
        exec(compile(text, file, "exec"), vars(module))  # not by the loader, whose compiled files are told by seconds
    except Exception as error:
        del sys.modules[name]
        raise _broken(str(file), error) from error
    _for_workers(module)
    return module


def _for_workers(module: ModuleType) -> None:
    """Has loader processes, which cannot import a user's module, get what they need of it by value."""
    with contextlib.suppress(ImportError):  # it comes with grain, which a bare GPU image may lack
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)


def _broken(reference: str, error: Exception) -> ValueError:
    """One line for what running a user's file raised, with the line where it was."""
    if isinstance(error, SyntaxError):
        where, what = f"{error.filename}, line {error.lineno}", error.msg
    else:
        frames = [frame for frame in inspect.getinnerframes(error.__traceback__) if _is_users(Path(frame.filename))]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else reference
        what = str(error)
    return ValueError(f"method {reference!r} cannot be loaded: {where}: {type(error).__name__}: {' '.join(what.split())}")


def _class_of(module: ModuleType, name: str, reference: str) -> type[Method]:
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, Method)):
        there = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Method)]
        there = [key for key in there if vars(module)[key].__module__ == module.__name__]
        said = "is no subclass of ijepa_jax.methods.Method" if found is not None else "is not there"
        others = f"; methods there: {', '.join(there)}" if there else ""
        raise ValueError(f"method {reference!r}: the class {name} {said}{others}")
    if missing := sorted(found.__abstractmethods__):
        raise ValueError(f"method {reference!r}: {name} lacks {' and '.join(missing)}, see ijepa_jax/methods/contract.py")
    own = [key for key in vars(found).get("__annotations__", {}) if not _is_class_variable(found, key)]
    if (own and not dataclasses.is_dataclass(found)) or {*own} - {field.name for field in dataclasses.fields(found)}:
        raise ValueError(
            f"method {reference!r}: {', '.join(own)} are no fields of {name}: put @dataclasses.dataclass(frozen=True) above it"
        )
    return found


def _is_class_variable(of: type, name: str) -> bool:
    return "ClassVar" in str(vars(of)["__annotations__"][name])


def _is_users(file: Path) -> bool:
    """Whether a file is neither this package's, nor the standard library's or an installed one's."""
    file = file.resolve()
    return file.suffix == ".py" and not any(file.is_relative_to(place) for place in (_PACKAGE, *_LIBRARIES))


def _sources(module: ModuleType, seen: set[Path]) -> set[Path]:
    """The files of a module and of all that it imports, as far as they are the user's."""
    file = getattr(module, "__file__", None)
    if file is None or Path(file) in seen or not _is_users(Path(file)):
        return seen
    seen.add(Path(file))
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(Path(file).read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for name in filter(None, imported):
        package = module.__package__ or ""
        for known in (name, f"{package}.{name}" if package else name):
            if known in sys.modules:
                _sources(sys.modules[known], seen)
    return seen
