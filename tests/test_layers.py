"""Imports go only downward, and what is listed or misspelt costs no import of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import rescue_cli

PACKAGE = Path(rescue_cli.__file__).parent
# From the bottom up. A room imports rooms of lower layers, and within itself.
LAYERS = (
    {"errors"},
    {"formatting", "lifetime", "metrics"},
    {"terminal"},
    {"rundir", "recipe", "distributed", "rng"},
    {"batch"},
    {"sections/annotations", "sections/heads", "sections/tta"},  # what several sections share
    {"sections/task", "sections/data", "sections/sampling", "sections/augment", "sections/mix",
     "sections/selection", "sections/model", "sections/teacher", "sections/loss", "sections/optim",
     "sections/schedule", "sections/averaging"},
    {"engine"},
    {"build"},
    {"inference", "runs", "estimate", "bench"},
    {"analysis"},
    {"report", "serving", "export"},
    {"api"},
    {"cli"},
    {"__main__"},
)  # fmt: skip
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
SLOW = {"timm", "torchvision", "scipy", "matplotlib"}
WITHOUT_TORCH = {
    "errors", "formatting", "lifetime", "metrics", "terminal", "rundir", "recipe", "analysis",
    "report", "api", "cli", "runs",
}  # fmt: skip
# What only the process that trains imports
TRAINING = {PACKAGE / "runs" / f"{name}.py" for name in ("worker", "result", "failure", "overlays")}
FACES = {PACKAGE / "__init__.py", PACKAGE / "sections" / "__init__.py"}
MODULES = sorted(file for file in PACKAGE.rglob("*.py") if file not in FACES)


def room(parts: Sequence[str]) -> str:
    """A module's room: `engine` of `engine.step`, `sections/data` of `sections.data.decode`."""
    return "/".join(parts[: 2 if parts[0] == "sections" else 1])


def room_of(file: Path) -> str:
    return room(file.relative_to(PACKAGE).with_suffix("").parts)


def is_without_torch(file: Path) -> bool:
    return room_of(file) in WITHOUT_TORCH and file not in TRAINING


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported."""
    kept = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    return ast.Module(body=kept, type_ignores=[])


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def test_every_module_has_its_layer() -> None:
    assert {room_of(file) for file in MODULES} == set(LAYER)


def test_imports_go_only_downward() -> None:
    offending = []
    for file in MODULES:
        for line, name in imports(parsed(file)):
            package, *parts = name.split(".")
            target = room(parts) if package == "rescue_cli" else None
            if target in (None, "__version__", room_of(file)):
                continue
            if target not in LAYER or LAYER[target] >= LAYER[room_of(file)]:
                offending.append(f"{file.relative_to(PACKAGE)}:{line} imports {name}")
    assert offending == []


def test_slow_libraries_are_imported_only_where_they_are_used() -> None:
    offending = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in MODULES
        for line, name in imports(at_import(parsed(file)))
        if name.partition(".")[0] in SLOW
        or (name.partition(".")[0] == "torch" and is_without_torch(file))
    ]
    assert offending == []


def test_reports_and_recipes_never_import_torch() -> None:
    rooms = WITHOUT_TORCH - {"api", "cli", "runs"}  # these ask it for devices and for torchrun
    offending = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in MODULES
        if room_of(file) in rooms
        for line, name in imports(parsed(file))
        if name.partition(".")[0] == "torch"
    ]
    assert offending == []


@pytest.mark.parametrize(
    "code",
    [
        "import rescue_cli.cli",
        "main(['--help'])",
        "main(['recipes'])",
        "main(['recipes', '--json'])",
        "main(['recipes', 'show', 'pytorch'])",
        "main(['recipes', 'diff', 'quickstart', 'pytorch'])",
        "main(['recipes', 'nosuch'])",
        "main(['models'])",
        "main(['export', 'runs/x', '--to', 'timm', '--from-pixels'])",
    ],
)
def test_what_needs_no_torch_does_not_import_it(code: str) -> None:
    script = f"""
import sys
def main(arguments):
    sys.argv = ["rescue", *arguments]
    import rescue_cli.cli
    try:
        rescue_cli.cli.main()
    except SystemExit:
        pass
{code}
print("LOADED", sorted({{"torch", "numpy", "timm", "matplotlib"}} & set(sys.modules)))
"""
    call = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
