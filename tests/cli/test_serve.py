"""`rescue serve`: the page, the endpoint, and what it refuses."""

import io
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescue_cli import api
from rescue_cli.inference import load_classifier
from rescue_cli.serving import make_server
from tests.conftest import Rescue

MOST = 100_000  # bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serve") / "run"
    overrides = ["data.subset=[160,32]", "model.width=4", "train.epochs=1", "data.exif=applied"]
    api.train(api.load("quickstart", overrides), out=out)
    return out


@pytest.fixture(scope="module")
def port(run: Path) -> Iterator[int]:
    classifier = load_classifier(run, "cpu")
    with make_server(classifier, "127.0.0.1", 0, top=2, max_bytes=MOST) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def coat() -> bytes:
    """A file that its EXIF data turn: read as `predict` reads it, or it is another image."""
    pixels = np.random.default_rng(0).integers(0, 256, (28, 40), np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "png", exif=exif)
    return file.getvalue()


def test_an_image_is_answered_as_predict_prints_it(port: int, run: Path, tmp_path: Path) -> None:
    answer, content = ask(port, "POST", "/predict", coat())
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    found = json.loads(content)
    (tmp_path / "coat.png").write_bytes(coat())
    (expected,) = api.predict(run, tmp_path / "coat.png", top=2)
    assert len(found["classes"]) == 2
    for mine, theirs in zip(found["classes"], expected["classes"], strict=True):
        assert mine["class"] == theirs["class"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-6)


def test_the_page_is_one_document_that_loads_nothing_from_elsewhere(port: int) -> None:
    answer, content = ask(port, "GET", "/")
    page = content.decode()
    assert answer.status == 200
    assert "10 classes, images at 28 px" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/etc/passwd", None, 404, "there are / and POST /predict"),
        ("POST", "/", b"x", 404, "there are / and POST /predict"),
        ("POST", "/predict", b"not an image", 400, "not an image: "),
        ("POST", "/predict", b"", 400, "not an image: "),
        ("POST", "/predict", bytes(MOST + 1), 413, "the file has 100,001 bytes; at most 100,000"),
    ],
)
def test_what_it_cannot_answer_it_refuses_and_goes_on(
    method: str, path: str, body: bytes | None, status: int, error: str, port: int
) -> None:
    answer, content = ask(port, method, path, body)
    assert answer.status == status
    assert error in json.loads(content)["error"]
    assert ask(port, "GET", "/")[0].status == 200


def test_a_port_in_use_is_named(port: int, run: Path, rescue: Rescue) -> None:
    ended = rescue("serve", run, "--port", str(port))
    assert ended.code == 2
    assert f"--host, --port: 127.0.0.1:{port}: Address already in use." in ended.err
