"""A small HTTP server around a classifier: an upload page, and POST /predict with an image."""

import html
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from rescue_cli.inference import Classifier
from rescue_cli.sections.data.decode import UNREADABLE, describe_error

SECONDS = 30.0  # without a byte from a client, after which it is dropped
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 34rem; margin: 2rem auto; padding: 0 1rem }}
img {{ display: block; max-width: 100%; max-height: 50vh; margin: 1rem 0 }}
meter {{ width: 8rem }} td {{ padding-right: 1rem }}
</style>
<h1>{title}</h1><p>{about}</p>
<input type="file" accept="image/*" aria-label="image"><img alt="" hidden>
<p role="status"></p><table></table>
<script>
const [input, image, status, table] = ["input", "img", "p[role]", "table"].map(
  name => document.querySelector(name));
input.onchange = async () => {{
  const file = input.files[0];
  if (!file) return;
  image.src = URL.createObjectURL(file); image.hidden = false;
  status.textContent = "classifying"; table.replaceChildren();
  const answer = await (await fetch("predict", {{method: "POST", body: file}})).json();
  status.textContent = answer.error || "";
  for (const one of answer.classes || []) {{
    const row = table.insertRow(), percent = (100 * one.probability).toFixed(1) + " %";
    row.insertCell().textContent = one.class; row.insertCell().textContent = percent;
    const bar = row.insertCell().appendChild(document.createElement("meter"));
    bar.value = one.probability;
  }}
}};
</script></html>
"""


def make_server(
    classifier: Classifier, host: str, port: int, *, top: int, max_bytes: int
) -> HTTPServer:
    """A server that answers one request after another; `serve_forever` begins.

    GET / is the page. POST /predict takes the bytes of one image file and answers with the `top`
    classes, as `rescue predict --json` has them, or with `error` and status 400, 411 or 413.
    """
    size = classifier.protocol["size"]
    about = f"{len(classifier.classes)} classes, images at {size} px"
    page = PAGE.format(title="rescue", about=html.escape(about)).encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS
        server_version = "rescue"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
            else:
                self._fail(HTTPStatus.NOT_FOUND, "there are / and POST /predict")

        def do_POST(self) -> None:
            if self.path != "/predict":
                self._fail(HTTPStatus.NOT_FOUND, "there are / and POST /predict")
                return
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                self._fail(HTTPStatus.LENGTH_REQUIRED, "send the image with its Content-Length")
            elif int(length) > max_bytes:
                self._fail(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the file has {int(length):,} bytes; at most {max_bytes:,} are read",
                )
            else:
                self._classify(self.rfile.read(int(length)))

        def _classify(self, content: bytes) -> None:
            try:
                pixels = classifier.read(content)
            except UNREADABLE as error:
                self._fail(HTTPStatus.BAD_REQUEST, f"not an image: {describe_error(error)}")
                return
            (probabilities,) = classifier(classifier.normalise(pixels.unsqueeze(0)))
            self._json(HTTPStatus.OK, dict(classifier.prediction("", probabilities, top)))

        def _fail(self, status: HTTPStatus, error: str) -> None:
            self.close_connection = True  # what is left of the request is not read
            self._json(status, {"error": error})

        def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
            self._answer(status, json.dumps(value).encode(), "application/json")

        def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer((host, port), Handler)
