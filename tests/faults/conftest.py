"""What the tests of faults share, and the table at their end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.tally import Tally

TALLIES: list[Tally] = []


@pytest.fixture
def tally(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tally]:
    """Counts the cases of the test, which fails if one of them does."""
    monkeypatch.delenv("RESCUE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    counted = Tally(request.node.name.removeprefix("test_").replace("_", " "), tmp_path)
    TALLIES.append(counted)
    yield counted
    counted.end()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each test: how many faults, what came of them, and the seconds they took."""
    if not TALLIES:
        return
    terminalreporter.section("faults")
    columns = ("count", "valid", "refused", "failures", "seconds")
    width = max(len(each.what) for each in TALLIES)
    terminalreporter.line(f"{'':{width}}" + "".join(f"{name:>10}" for name in columns))
    for each in TALLIES:
        numbers = (each.count, each.valid, each.refused, each.failures.total(), each.seconds)
        terminalreporter.line(
            f"{each.what:{width}}" + "".join(f"{number:>10.0f}" for number in numbers)
        )
