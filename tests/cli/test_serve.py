"""`rescue serve`: the page, the endpoint, and what it refuses."""

import io
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescue_cli import api
from rescue_cli.inference import load_classifier
from rescue_cli.report.page import describe_run
from rescue_cli.serving import make_server
from tests.conftest import Rescue
from tests.report.test_report import Nesting

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
    named = {"name": "runs/<a>", "result": describe_run(run)}
    with make_server(classifier, "127.0.0.1", 0, top=2, max_bytes=MOST, **named) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
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


def form(*files: bytes) -> bytes:
    """What `curl -F file=@...` sends, with a field that is no file."""
    field = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="coat.png"\r\n\r\n'
    return b"".join([field, *(head + file + b"\r\n" for file in files), b"--x--\r\n"])


def test_a_form_with_one_file_is_that_file(port: int) -> None:
    sent = {"Content_Type": "multipart/form-data; boundary=x"}
    _, content = ask(port, "POST", "/predict", coat())
    answer, of_form = ask(port, "POST", "/predict", form(coat()), **sent)
    assert answer.status == 200
    assert json.loads(of_form) == {**json.loads(content), "image": "coat.png"}
    for files in ((), (coat(), coat())):
        answer, refused = ask(port, "POST", "/predict", form(*files), **sent)
        assert answer.status == 400
        assert json.loads(refused)["error"] == (
            f"the form has {len(files)} files; send one: curl -F file=@IMAGE"
        )


def test_the_page_is_one_document_that_loads_nothing_from_elsewhere(port: int) -> None:
    answer, content = ask(port, "GET", "/")
    page = content.decode()
    assert answer.status == 200
    assert "<h1>resnet9 on fashion-mini, recipe quickstart: " in page
    assert " % top-1 on 32 test images (95 %: " in page
    assert "<p>runs/&lt;a&gt;</p>" in page
    assert "<p>10 classes: T-shirt/top, Trouser, " in page
    assert "Images are classified at 28 px." in page
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/etc/passwd", None, 404, "there is nothing here but / and POST /predict"),
        ("POST", "/", b"x", 404, "there is nothing here but / and POST /predict"),
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


def test_ctrl_c_is_how_it_ends(run: Path, rescue: Rescue, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: HTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HTTPServer, "serve_forever", interrupted)
    ended = rescue("serve", run, "--port", "0")
    assert ended.code == 0
    assert ended.notes[-1].endswith("/ in a browser, or POST an image to /predict; Ctrl-C ends it")
