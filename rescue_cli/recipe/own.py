"""Ingredients of the user's own: which code may run, and what its signature says.

A recipe names them `FILE.py:NAME`, or `PACKAGE:NAME` for an entry point of an installed package.
`code` in the recipe holds each file's SHA-256 (a package's version), and says nothing of where the
file lies: no path in a recipe, a run or a weights file is opened. A file runs if the user gave it
to a command (`--with`), and a run's copy of it if the copy has the recorded hash and the user has
given a file of that hash before. What was given is remembered outside of any run: in the user's
state folder, and in the environment of the processes that a command starts.
"""

import contextlib
import hashlib
import importlib.metadata
import inspect
import os
import re
import stat
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe.schema import show

GROUP = "rescue.ingredients"  # of entry points
FOLDER = "code"  # of a run directory, with the copies
TRUSTED = "RESCUE_TRUSTED"  # hashes, separated by commas
MOST_BYTES = 1_000_000
SHOWN = 12  # digits of a hash in messages
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.py")
_IN_FILE = re.compile(r"(?:[^:]*/)?([A-Za-z0-9_][A-Za-z0-9_.-]*\.py):([A-Za-z_][A-Za-z0-9_]*)")
_IN_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):([A-Za-z0-9_][A-Za-z0-9_.-]*)")
_HASH = re.compile(r"[0-9a-f]{64}")
Code = Mapping[str, str]  # SHA-256 by file name, version by package


@dataclass
class Registry:
    """What this process knows of the user's files, by hash: a hash stands for one content."""

    given: dict[str, str] = field(default_factory=dict)  # hashes by file name, of `--with`
    named: set[str] = field(default_factory=set)  # files that a recipe names which was read
    contents: dict[str, tuple[Path, bytes]] = field(default_factory=dict)
    copies: dict[str, list[Path]] = field(default_factory=dict)  # where they may lie
    of_weights: dict[str, set[str]] = field(default_factory=dict)  # hashes by file name
    modules: dict[str, types.ModuleType] = field(default_factory=dict)
    functions: dict[tuple[str, str, str | None], Callable[..., Any]] = field(default_factory=dict)


REGISTRY = Registry()


# --- names ---


def split_name(name: str) -> tuple[str, str] | None:
    """File and name within it, or package and entry point; None for an ingredient of ours."""
    if (match := _IN_FILE.fullmatch(name)) is not None:
        return match[1], match[2]
    match = _IN_PACKAGE.fullmatch(name)
    if match is None or _version(match[1]) is None:
        return None
    return match[1], match[2]


def check_code(code: Any) -> None:
    """Raises `UsageError` unless `code` holds a hash for each file and a version for the rest."""
    if not isinstance(code, Mapping):
        raise UsageError(f"code: {show(code)} is not a mapping. Remove it; --with FILE.py sets it.")
    for name, value in code.items():
        is_hash = isinstance(value, str) and _HASH.fullmatch(value) is not None
        if name.endswith(".py") and not (is_hash and _FILE.fullmatch(name)):
            raise UsageError(
                f"code.{name}: {show(value)} is not the SHA-256 of a file of that name. "
                "Remove it; --with FILE.py sets it."
            )
        if not isinstance(value, str):
            raise UsageError(f"code.{name}: {show(value)} is not a version. Remove it.")


def find_code(sections: Mapping[str, Any], recorded: Code, where: str) -> dict[str, str]:
    """The code that the sections name: as recorded, else as the user gave it or it is installed,
    else of the weights that the command names, whose network another recipe takes over.

    A file of which nothing is known is left out. Raises `UsageError` where the recorded one is not
    the one that the user gave; `where` is what holds the recipe.
    """
    code: dict[str, str] = {}
    for source in sorted({source for source, _ in filter(None, map(split_name, _names(sections)))}):
        now = REGISTRY.given.get(source) if source.endswith(".py") else _version(source)
        REGISTRY.named.add(source)
        of_weights = REGISTRY.of_weights.get(source, set())
        known = recorded.get(source, now) or (min(of_weights) if len(of_weights) == 1 else None)
        if source.endswith(".py") and now is not None and known != now:
            raise UsageError(
                f"--with: {source} has the SHA-256 {_short(now)}, and {where} was made with "
                f"{_short(known)}. Give that file, or train with this one in a new --out."
            )
        if known is not None:
            code[source] = known
    return code


def refuse_unused(code: Code) -> None:
    """Raises `UsageError` for a file of `--with` in which no recipe names anything; `code` is that
    of the command's recipe.
    """
    unused = next((name for name in REGISTRY.given if name not in REGISTRY.named), None)
    if unused is not None:
        others = f" (its code: {', '.join(code)})" if code else ""
        raise UsageError(
            f"--with: {unused}: the recipe names nothing in that file{others}, so it would not be "
            f"used. Remove it; a recipe names it as model.name={unused}:NAME."
        )


def names_code(sections: Mapping[str, Any]) -> bool:
    """Whether a name is one of the user's code."""
    return any(split_name(name) is not None for name in _names(sections))


def without_folders(node: Any) -> Any:
    """The same tree with `mynet.py:Net` in place of `FOLDER/mynet.py:Net`: it names no place."""
    if isinstance(node, list):
        return [without_folders(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    tree = {key: without_folders(value) for key, value in node.items()}
    if isinstance(name := node.get("name"), str) and (match := _IN_FILE.fullmatch(name)):
        tree["name"] = f"{match[1]}:{match[2]}"
    return tree


def _names(node: Any) -> Iterator[str]:
    """All names of ingredients below a node."""
    if isinstance(node, Mapping):
        if isinstance(name := node.get("name"), str) and ":" in name:
            yield name
        for each in node.values():
            yield from _names(each)
    elif isinstance(node, list):
        for each in node:
            yield from _names(each)


def describe_code(code: Code) -> str:
    """`mynet.py (SHA-256 0123456789ab)`, `mypackage 1.2`; empty without code."""
    return ", ".join(
        f"{name} (SHA-256 {_short(each)})" if name.endswith(".py") else f"{name} {each}"
        for name, each in code.items()
    )


def _short(digest: str | None) -> str:
    return (digest or "")[:SHOWN]


# --- trust ---


def give(files: Iterable[Path | str]) -> dict[str, str]:
    """Reads files whose code the user wants to run, and remembers their hashes; by file name.

    Raises `UsageError`.
    """
    given: dict[str, str] = {}
    for file in map(Path, files):
        path = Path(os.path.expanduser(file))
        if _FILE.fullmatch(path.name) is None:
            raise UsageError(
                f"--with: {path} must be a Python file whose name has letters, digits, '.', '_' "
                "and '-', as mynet.py."
            )
        try:
            content = _read(path)
        except OSError as error:
            raise UsageError(f"--with: {path}: cannot be read: {error.strerror}.") from None
        digest = hashlib.sha256(content).hexdigest()
        if given.setdefault(path.name, digest) != digest:
            raise UsageError(f"--with: two files are called {path.name}. Rename one of them.")
        REGISTRY.contents[digest] = path, content
        _remember(digest, path)
    REGISTRY.given.update(given)
    return given


@contextlib.contextmanager
def giving(files: Iterable[Path | str]) -> Iterator[None]:
    """Within the body, recipes that are read may name these files; raises `UsageError`."""
    before = dict(REGISTRY.given)
    try:
        give(files)
        yield
    finally:
        REGISTRY.given = before


def offer_copies(folder: Path, code: Code) -> None:
    """Notes where copies of a recipe's files may lie; none is read before it is needed."""
    for name, digest in code.items():
        path, known = folder / name, REGISTRY.copies.setdefault(digest, [])
        if name.endswith(".py") and path not in known:
            known.append(path)


def offer_weights(file: Path, code: Code) -> None:
    """As `offer_copies`, of weights in a run directory or in a folder of it."""
    for folder in list(file.parents)[:2]:
        offer_copies(folder / FOLDER, code)
    for name, digest in code.items():
        REGISTRY.of_weights.setdefault(name, set()).add(digest)


def write_copies(run: Path, code: Code) -> None:
    """Writes the files of a recipe that are known here to a run directory; raises `UsageError`."""
    files = {name: digest for name, digest in code.items() if name.endswith(".py")}
    folder = run / FOLDER
    if not files:
        return
    if folder.is_symlink():  # the files would be written elsewhere
        raise UsageError(f"{folder}: is a link. Remove it.")
    for name, digest in files.items():
        content = read_content(name, digest)
        target, partial_file = folder / name, folder / f"{name}.partial"
        if target.is_file() and not target.is_symlink() and target.read_bytes() == content:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        partial_file.unlink(missing_ok=True)
        with partial_file.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(target)


def remove_copies(run: Path, code: Code) -> None:
    """Removes what `write_copies` wrote."""
    for name in code:
        if name.endswith(".py"):
            (run / FOLDER / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or never there
        (run / FOLDER).rmdir()


def read_content(name: str, digest: str | None) -> bytes:
    """The file's content; raises `UsageError` unless it has the hash and the user has given it."""
    if digest is None:
        file = name if Path(name).is_file() else f"FOLDER/{name}"
        raise UsageError(
            f"{name}: is Python code, which a recipe alone does not run. Give the file: "
            f"--with {file}"
        )
    if digest in REGISTRY.contents:
        return REGISTRY.contents[digest][1]
    others = []
    for path in REGISTRY.copies.get(digest, []):
        try:
            content = _read(path)
        except OSError:
            continue
        if (actual := hashlib.sha256(content).hexdigest()) != digest:
            others.append(f"{path} has {_short(actual)}")
            continue
        if not _is_trusted(digest):
            raise UsageError(
                f"{path}: code that you have not given to a command here. It runs only if you "
                f"read it and say so: --with {path}"
            )
        REGISTRY.contents[digest] = path, content
        _tell_children(digest)
        return content
    why = f": {'; '.join(others)}" if others else ""
    raise UsageError(
        f"{name}: the file with the SHA-256 {_short(digest)} is needed, and it is not here{why}. "
        f"Give it: --with {name}"
    )


def _read(path: Path) -> bytes:
    """A regular file's content; raises `OSError`, also for one that is no code by its size."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe's writer
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file", str(path))
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(0, f"it has more than {MOST_BYTES} bytes", str(path))
    return content


def _state_folder() -> Path | None:
    """The folder with a file for each trusted hash; None without a home directory."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home, "rescue", "trusted") if os.path.isabs(home) else None


def _tell_children(digest: str) -> None:
    """Lets the processes that this one starts, here or on other machines, run the file."""
    known = os.environ.get(TRUSTED, "").split(",")
    os.environ[TRUSTED] = ",".join(dict.fromkeys([*filter(None, known), digest]))


def _remember(digest: str, path: Path) -> None:
    """For processes that this one starts, and for later commands where that is possible."""
    _tell_children(digest)
    if (folder := _state_folder()) is None:
        return
    with contextlib.suppress(OSError):  # then --with has to be given again
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / digest).write_text(f"{path.absolute()}\n")


def _is_trusted(digest: str) -> bool:
    """Whether the user gave a file of this hash; a folder that others may write to says nothing."""
    if digest in os.environ.get(TRUSTED, "").split(","):
        return True
    if (folder := _state_folder()) is None:
        return False
    try:
        status = folder.stat()
    except OSError:
        return False
    private = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return private and (folder / digest).is_file()


# --- code ---


@dataclass(frozen=True)
class Own:
    """A class or function of the user's, under the name that the recipe has for it.

    Parameters that an adapter of the section names get objects of the run; all others are keys.
    """

    where: str  # begins messages: `model (./mynet.py:Net)`
    target: Callable[..., Any]

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """By name, with annotations evaluated; raises `UsageError`."""
        try:
            signature = inspect.signature(self.target, eval_str=True)
        except Exception as error:  # whatever an annotation raises
            raise UsageError(f"{self.where}: its signature cannot be read ({error}).") from None
        varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {n: p for n, p in signature.parameters.items() if p.kind not in varying}

    def takes(self, *names: str) -> bool:
        """Whether its first parameters are these."""
        return tuple(self.parameters)[: len(names)] == names

    def call(self, options: Mapping[str, Any], **objects: Any) -> Any:
        """Calls it with the objects that it takes, and with the options."""
        taken = {name: each for name, each in objects.items() if name in self.parameters}
        return self.target(**taken, **options)

    def bind(self, options: Mapping[str, Any]) -> Callable[..., Any]:
        """What is called at each step: an instance of a class, or the function with its options."""
        if not inspect.isclass(self.target):
            return partial(self.target, **options)
        make: Any = self.target
        return make(**options)  # type: ignore[no-any-return]

    def with_keys(self, adapter: Callable[..., Any], *objects: str) -> Callable[..., Any]:
        """The adapter with the keys as its signature: all parameters but the objects."""
        keys = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_annotation(p))
            for name, p in self.parameters.items()
            if name not in objects
        ]
        adapter.__signature__ = inspect.Signature(keys)  # type: ignore[attr-defined]
        adapter.__doc__ = self.target.__doc__
        return adapter

    def error(self, problem: str) -> UsageError:
        return UsageError(f"{self.where}: {problem}")


def _annotation(parameter: inspect.Parameter) -> Any:
    """The parameter's annotation; without one, the type of its default."""
    if parameter.annotation is not inspect.Parameter.empty:
        return parameter.annotation
    default = type(parameter.default)
    return {bool: bool, int: int | float, float: float, str: str}.get(default, Any)


def load_own(section: str, name: str, recorded: str | None) -> Own:
    """The user's class or function of that name; raises `UsageError`."""
    parts = split_name(name)
    assert parts is not None, "a name of ours"
    source, attribute = parts
    where = f"{section} ({name})"
    if not source.endswith(".py"):
        return Own(where, _load_entry_point(where, source, attribute, recorded))
    module = _load_module(read_content(source, recorded), str(recorded))
    target = getattr(module, attribute, None)
    # What a file imports is not its own: a recipe must not call `system` of a file that imports it
    if not callable(target) or getattr(target, "__module__", None) != module.__name__:
        own = [n for n, v in vars(module).items() if _is_defined_in(module, n, v)]
        raise UsageError(
            f"{section}.name: {source} defines no class or function '{attribute}'. "
            f"{did_you_mean(attribute, own)}".strip()
        )
    return Own(where, target)


def _is_defined_in(module: types.ModuleType, name: str, value: Any) -> bool:
    own = getattr(value, "__module__", None) == module.__name__
    return own and callable(value) and not name.startswith("_")


def _load_module(content: bytes, digest: str) -> types.ModuleType:
    """The file as a module, under a name that no other module has; raises `UsageError`."""
    if digest in REGISTRY.modules:
        return REGISTRY.modules[digest]
    path, _ = REGISTRY.contents[digest]
    module = types.ModuleType(f"rescue_own_{_short(digest)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # for pickle, dataclasses, torch.compile
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        del sys.modules[module.__name__]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        cure = "Put it into that file, or install it." if isinstance(error, ImportError) else ""
        raise UsageError(f"--with: {path} cannot be imported: {reason}. {cure}".strip()) from error
    REGISTRY.modules[digest] = module
    return module


def _version(package: str) -> str | None:
    """The version of an installed package that has ingredients; None of any other."""
    return next((version for _, version, _ in _entry_points(package)), None)


def _entry_points(package: str) -> list[tuple[str, str, importlib.metadata.EntryPoint]]:
    """Name, the package's version, and the entry point itself."""
    wanted = re.sub(r"[-_.]+", "-", package).lower()
    return [
        (point.name, point.dist.version, point)
        for point in importlib.metadata.entry_points(group=GROUP)
        if point.dist is not None and re.sub(r"[-_.]+", "-", point.dist.name).lower() == wanted
    ]


def _load_entry_point(where: str, package: str, name: str, recorded: str | None) -> Any:
    """What an entry point names; raises `UsageError` for another version than the recorded one."""
    points = {name: (version, point) for name, version, point in _entry_points(package)}
    if name not in points:
        raise UsageError(
            f"{where}: {package} has no such entry point in {GROUP}. {did_you_mean(name, points)}"
        )
    version, point = points[name]
    if recorded not in (None, version):
        raise UsageError(
            f"{where}: the recipe was made with {package} {recorded}, and {version} is installed. "
            f"Install the first: pip install {package}=={recorded}"
        )
    try:
        return point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{where}: {package} cannot be imported: {reason}.") from error


def describe_error(error: BaseException) -> str:
    """The error on one line, and the last line of the user's files that it passed through:
    `TypeError: ... (mine.py, line 12, in focal, with logits (2, 10), targets (2,))`.
    """
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
    where = _own_place(error)
    return f"{reason} ({where})" if where else reason


def passed_own_code(error: BaseException) -> bool:
    """Whether it was raised in or below a function of the user's files."""
    return bool(_own_place(error))


def _own_place(error: BaseException) -> str:
    """File, line, function and the shapes of its arguments; empty where none is the user's."""
    files = {module.__file__ for module in REGISTRY.modules.values()}
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename in files
    ]
    if not frames:
        return ""
    frame, line = frames[-1]
    code = frame.f_code
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    values = {name: getattr(frame.f_locals.get(name), "shape", None) for name in arguments}
    shapes = [f"{name} {tuple(shape)}" for name, shape in values.items() if shape is not None]
    given = f", with {', '.join(shapes)}" if shapes else ""
    return f"{code.co_filename}, line {line}, in {code.co_qualname}{given}"


def require(own: Own, names: Sequence[str], kind: str) -> None:
    """Raises `UsageError` unless its first parameters have these names."""
    if not own.takes(*names):
        raise own.error(f"is no {kind}: its first parameters must be {', '.join(names)}.")
