"""The wheel: complete, and able to train outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from rescue_cli.recipe import names, recipes_folder

CHECKOUT = Path(__file__).parents[1]


def run(*call: str, cwd: Path) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RESCUE"))}
    done = subprocess.run(call, capture_output=True, text=True, cwd=cwd, env=kept)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built_wheel(source: Path, folder: Path) -> Path:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder))
    run(sys.executable, "-m", "pip", "wheel", *options, str(source), cwd=folder)
    (file,) = folder.glob("rescue-*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(CHECKOUT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's commands: the wheel, and third-party packages lent by the running one."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    python = folder / "bin" / "python"
    options = ("install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(sys.executable, "-m", "pip", "--python", str(python), *options, str(wheel), cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
    return folder / "bin"


def test_the_wheel_holds_recipes_data_and_licences_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    shipped = {str(file.relative_to(recipes_folder())) for file in names().values()}
    assert {f"rescue_cli/recipes/{file}" for file in shipped} <= held
    assert {"rescue_cli/sections/data/files/fashion-mini.npz.xz", "rescue_cli/py.typed"} <= held
    assert sizes["rescue_cli/sections/data/files/fashion-mini.npz.xz"] <= 3_000_000
    assert "rescue_cli/sections/data/files/FASHION-MNIST-LICENSE" in held
    templates = (CHECKOUT / "rescue_cli" / "report" / "templates").glob("*.html")
    assert {f"rescue_cli/report/templates/{file.name}" for file in templates} <= held
    licences = {name.rpartition("/")[2] for name in held if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "FASHION-MNIST-LICENSE"}
    unwanted = ("/test_", "tests/", ".pyc", "Makefile")
    assert not [name for name in held if any(part in name for part in unwanted)]
    assert {name.partition("/")[0] for name in held if ".dist-info" not in name} == {"rescue_cli"}


def test_the_source_archive_has_the_tests_and_builds_the_same_wheel(
    wheel: Path, tmp_path: Path
) -> None:
    options = ("build", "--target", "sdist", "--directory", str(tmp_path))
    run(sys.executable, "-m", "hatchling", *options, cwd=CHECKOUT)
    (archive,) = tmp_path.glob("rescue-*.tar.gz")
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    assert {"README.md", "LICENSE", "Makefile", "tests/test_wheel.py", "docs/guide.md"} <= names
    assert content(built_wheel(archive, tmp_path)) == content(wheel)


def content(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_a_fresh_environment_lists_the_recipes_of_the_wheel(fresh: Path, tmp_path: Path) -> None:
    code = "import rescue_cli; print(rescue_cli.__file__)"
    where = run(str(fresh / "python"), "-c", code, cwd=tmp_path)
    assert where.startswith(str(fresh.parent))
    rows = json.loads(run(str(fresh / "rescue"), "recipes", "--json", cwd=tmp_path))
    assert [row["recipe"] for row in rows] == list(names())


@pytest.mark.slow
def test_a_fresh_environment_trains_quickstart_to_a_result(fresh: Path, tmp_path: Path) -> None:
    call = ("train", "--recipe", "quickstart", "--smoke", "--json")
    result = json.loads(run(str(fresh / "rescue"), *call, cwd=tmp_path))
    assert result["steps"] == 2
    assert (tmp_path / result["run"] / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
