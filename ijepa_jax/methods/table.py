"""The methods there are by name, and those of users, by file or module: `find` gives the class."""

import ast
import contextlib
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
    "lejepa": "ijepa_jax.methods.lejepa:LeJepa",
    "mae": "ijepa_jax.methods.mae:Mae",
    "pixels": "ijepa_jax.methods.pixels:Pixels",
    "rcdm": "ijepa_jax.decode.rcdm:Rcdm",
    "salt": "ijepa_jax.teach.salt:Salt",
}

_OWN = "FILE.py:CLASS or package.module:CLASS of your own"
_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_INSTALLED = {"site-packages", "dist-packages"}


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
            raise broken(reference, error) from error
        raise ValueError(f"method {reference!r}: there is no module {error.name!r} here or installed") from error
    except (Exception, SystemExit) as error:
        raise broken(reference, error) from error
    return _class_of(module, name, reference)


def identity(reference: str) -> dict[str, str]:
    """What tells a user's method from another, for checkpoints: `class`, `source` and `file`; empty for those of the table.

    `source` is a digest of the file, and of what it imports that is neither a library's nor this package's.
    """
    return {} if reference in TABLE else {**_identity(find(reference))}


@functools.cache  # a file may change while its class is in use
def _identity(of: type[Method]) -> dict[str, str]:
    module = sys.modules[of.__module__]
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in _sources(module, set()))
    source = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
    return {"class": of.__qualname__, "source": source, "file": str(Path(module.__file__).resolve())}


def found_again(reference: str, kept: Mapping[str, str]) -> str:
    """How a method that a checkpoint names is found from here: in the file it was in, or else as it was named.

    `kept` is what `identity` gave when it was saved.
    """
    place, _, name = reference.rpartition(":")
    if reference in TABLE or not place.endswith(".py"):
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
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise broken(str(file), error) from error
    _for_workers(module)
    return module


def _for_workers(module: ModuleType) -> None:
    """Has loader processes, which cannot import a user's module, get what they need of it by value."""
    with contextlib.suppress(ImportError):  # it comes with grain, which a bare GPU image may lack
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)


def broken(reference: str, error: BaseException) -> ValueError:
    """One line for what a user's file raised, with the line where it was."""
    if isinstance(error, SyntaxError):
        where, what = f"{error.filename}, line {error.lineno}", error.msg
    else:
        frames = [frame for frame in inspect.getinnerframes(error.__traceback__) if _is_users(Path(frame.filename))]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else reference
        what = str(error)
    hint = "; a file of a package is named package.module:CLASS" if "relative import" in what else ""
    return ValueError(f"method {reference!r} cannot be made: {where}: {type(error).__name__}: {' '.join(what.split())}{hint}")


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
    own = {key: str(kind) for key, kind in vars(found).get("__annotations__", {}).items()}
    own = [key for key, kind in own.items() if "ClassVar" not in kind and "KW_ONLY" not in kind]
    if hidden := [key for key in own if any(_is_member(base, key) for base in found.__mro__[1:])]:
        raise ValueError(f"method {reference!r}: {', '.join(hidden)} of {name} hides a member of the contract: rename it")
    if {*own} - {*getattr(found, "__dataclass_fields__", ())}:
        raise ValueError(
            f"method {reference!r}: {', '.join(own)} are no fields of {name}: put @dataclasses.dataclass(frozen=True) above it"
        )
    return found


def _is_member(base: type, name: str) -> bool:
    """Whether a class has a function or a property of this name."""
    found = vars(base).get(name)
    return base.__module__.startswith("ijepa_jax.") and (callable(found) or isinstance(found, (property, classmethod)))


def _is_users(file: Path) -> bool:
    """Whether a file is neither this package's, nor the standard library's or an installed one's."""
    file = file.resolve()
    library = any(file.is_relative_to(place) for place in (_PACKAGE, *_LIBRARIES)) or _INSTALLED & {*file.parts}
    return file.suffix == ".py" and not library


def _sources(module: ModuleType, seen: set[Path]) -> set[Path]:
    """The files of a module and of all that it imports, as far as they are the user's."""
    file = getattr(module, "__file__", None)
    if file is None or Path(file) in seen or not _is_users(Path(file)):
        return seen
    seen.add(Path(file))
    for node in ast.walk(ast.parse(Path(file).read_bytes())):
        for name in _imported(node, module.__package__ or ""):
            if name in sys.modules:
                _sources(sys.modules[name], seen)
    return seen


def _imported(node: ast.AST, package: str) -> list[str]:
    """What an import statement may name, by their names among the modules: `from a import b` is a, and a.b."""
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
        return [".".join(parts[: i + 1]) for parts in names for i in range(len(parts))]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    place = ".".join([*parents, *filter(None, [node.module])])
    return [place, *(f"{place}.{alias.name}" for alias in node.names)]
