"""Imports go only downward, and what is listed or misspelt costs no import of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rescue_cli

PACKAGE = Path(rescue_cli.__file__).parent
# From the bottom up. A room imports rooms of lower layers, and within itself.
LAYERS = (
    {"errors"},
    {"lifetime"},
    {"registry", "results", "power"},
    {"recipe", "distributed", "draws"},
    {"batch", "heads", "plans", "clues", "range_curves", "robust", "statistics", "precision"},
    {"scene", "sequential"},
    {"task", "data", "sampling", "augment", "mix", "selection", "teacher", "model", "loss", "optim",
     "schedule", "averaging", "evaluation"},
    {"engine"},
    {"parts", "options", "overlays", "range_test"},
    {"build", "tuning"},
    {"outcome", "failures"},
    {"worker", "prediction", "bench", "estimate"},
    {"launch"},
    {"report"},
    {"cli"},
    {"__main__"},
)  # fmt: skip
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
SLOW = {"timm", "torchvision", "scipy", "matplotlib"}
WITHOUT_TORCH = {
    "errors", "lifetime", "registry", "results", "recipe", "plans", "clues", "statistics", "power",
    "robust", "sequential", "precision", "range_curves", "range_test", "tuning", "report", "cli",
    "launch",
}  # fmt: skip
MODULES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def room(file: Path) -> str:
    """The first part of a module's path in the package: `data` of `data/stream.py`."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


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
    assert {room(file) for file in MODULES} == set(LAYER)


def test_imports_go_only_downward() -> None:
    offending = []
    for file in MODULES:
        for line, name in imports(parsed(file)):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package != "rescue_cli" or target in ("__version__", room(file)):
                continue
            if target not in LAYER or LAYER[target] >= LAYER[room(file)]:
                offending.append(f"{file.relative_to(PACKAGE)}:{line} imports {name}")
    assert offending == []


def test_slow_libraries_are_imported_only_where_they_are_used() -> None:
    offending = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in MODULES
        for line, name in imports(at_import(parsed(file)))
        if name.partition(".")[0] in SLOW
        or (name.partition(".")[0] == "torch" and room(file) in WITHOUT_TORCH)
    ]
    assert offending == []


def test_reports_and_recipes_never_import_torch() -> None:
    rooms = WITHOUT_TORCH - {"cli", "launch"}  # these two ask it for devices and for torchrun
    offending = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in MODULES
        if room(file) in rooms
        for line, name in imports(parsed(file))
        if name.partition(".")[0] == "torch"
    ]
    assert offending == []


def test_no_file_is_above_300_lines() -> None:
    lengths = {str(f.relative_to(PACKAGE)): len(f.read_text().splitlines()) for f in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}


def test_no_function_is_above_60_lines() -> None:
    lengths = {
        f"{file.relative_to(PACKAGE)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in MODULES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}


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
