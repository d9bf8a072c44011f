"""A URL in place of a file or folder is refused, in any option, argument, key or variable."""

from pathlib import Path

import pytest

from tests.conftest import Rescue


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("train --out s3://b/x", "--out: s3://b/x is a URL; only local files can be read. "
         "Mount it or copy it, and give the path on this machine."),
        ("train --out=gs://b", "--out: gs://b is a URL"),
        ("train --recipe https://x/y.yaml", "--recipe: https://x/y.yaml is a URL"),
        ("train data.root=file:///a/b",
         "data.root: file:///a/b is a URL; only local files can be read. Give the path /a/b."),
        ("train data={name:\xa0folder,sets:\xa0{v2:\xa0hdfs://n/v2}}",
         "data.sets.v2: hdfs://n/v2 is a URL"),
        ("train teacher={name:\xa0run,path:\xa0s3://b/t}", "teacher.path: s3://b/t is a URL"),
        ("eval az://c/run", "eval: az://c/run is a URL"),
        ("predict run https://x/y.jpg", "predict: https://x/y.jpg is a URL"),
        ("transfer --from s3://b/w.safetensors --to a", "--from: s3://b/w.safetensors is a URL"),
        ("transfer --from a --to ftp://b/photos", "--to: ftp://b/photos is a URL; images are read "
         "from local files, or from s3, gs, gcs, az, abfs, hf, http, https."),
        ("lr-range-test --apply s3://b/x.yaml", "--apply: s3://b/x.yaml is a URL"),
        ("seed-sweep --out s3://b/x", "--out: s3://b/x is a URL"),
        ("study resnet --out s3://b/x", "--out: s3://b/x is a URL"),
        ("tune --out s3://b/x", "--out: s3://b/x is a URL"),
        ("report s3://b/runs", "report: s3://b/runs is a URL"),
        ("recipes copy quickstart s3://b/x.yaml", "recipes copy: s3://b/x.yaml is a URL"),
    ],
)  # fmt: skip
def test_a_url_is_refused_as_a_path(
    rescue: Rescue, tmp_path: Path, call: str, message: str
) -> None:
    ended = rescue(*(word.replace("\xa0", " ") for word in call.split(" ")))
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["RESCUE_DATA", "RESCUE_CACHE"])
def test_a_variable_that_holds_a_url_is_refused(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "s3://b/data")
    ended = rescue("train", "--dry-run")
    assert (ended.code, f"error: {name}: s3://b/data is a URL" in ended.err) == (2, True)


def test_an_option_for_text_may_hold_a_url(rescue: Rescue) -> None:
    assert "is a URL" not in rescue("recipes", "record", "RUN", "--note", "see https://x/y").err
