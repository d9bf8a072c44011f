"""A small HTTP server around a classifier: an upload page, and POST /predict with an image."""

import html
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from rescue_cli.inference import Classifier
from rescue_cli.sections.data.decode import UNREADABLE, describe_error

FORM = "multipart/form-data"  # what curl -F and a page's form send
LISTED_CLASSES = 20  # more of them are folded
SECONDS = 30.0  # without a byte from a client, after which it is dropped
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name}</title><link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 34rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.3rem; line-height: 1.3 }} body {{ overflow-wrap: anywhere }}
label {{ display: block; border: 2px dashed #8888; border-radius: .5rem; padding: 1.5rem 1rem }}
label.over {{ border-color: Highlight }}
input {{ display: block; margin-top: .5rem; max-width: 100% }}
img {{ display: block; max-width: 100%; max-height: 50vh; margin: 1rem 0 }}
meter {{ width: 8rem }} td {{ padding-right: 1rem }}
</style>
<h1>{heading}</h1>{about}
<label>Choose an image, or drop one here<input type="file" accept="image/*"></label>
<img alt="" hidden><p role="status"></p><table></table>
<script>
const [input, image, status, table, area] = ["input", "img", "p[role]", "table", "label"].map(
  name => document.querySelector(name));
input.onchange = () => classify(input.files[0]);
document.ondragover = event => {{ event.preventDefault(); area.classList.add("over"); }};
document.ondragleave = () => area.classList.remove("over");
document.ondrop = event => {{
  event.preventDefault(); area.classList.remove("over"); classify(event.dataTransfer.files[0]);
}};
async function classify(file) {{
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
}}
</script></html>
"""


def make_server(
    classifier: Classifier,
    host: str,
    port: int,
    *,
    top: int,
    max_bytes: int,
    name: str,
    result: str = "",
) -> HTTPServer:
    """A server that answers one request after another; `serve_forever` begins.

    GET / is the page, with the weights' `name`, their `result` in a sentence, and their classes.
    POST /predict takes one image file, as the body or as the file of a form, and answers with the
    `top` classes, as `rescue predict --json` has them, or with `error` and status 400, 411 or 413.
    """
    page = _page(classifier, name, result).encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS
        server_version = "rescue"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
            else:
                self._fail(HTTPStatus.NOT_FOUND, "there is nothing here but / and POST /predict")

        def do_POST(self) -> None:
            if self.path != "/predict":
                self._fail(HTTPStatus.NOT_FOUND, "there is nothing here but / and POST /predict")
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
            name = ""
            if self.headers.get_content_type() == FORM:
                files = _files_of_form(content, self.headers.get_boundary(""))
                if len(files) != 1:
                    error = f"the form has {len(files)} files; send one: curl -F file=@IMAGE"
                    self._fail(HTTPStatus.BAD_REQUEST, error)
                    return
                ((name, content),) = files
            try:
                pixels = classifier.read(content)
            except UNREADABLE as error:
                self._fail(HTTPStatus.BAD_REQUEST, f"not an image: {describe_error(error)}")
                return
            (probabilities,) = classifier(classifier.normalise(pixels.unsqueeze(0)))
            self._json(HTTPStatus.OK, dict(classifier.prediction(name, probabilities, top)))

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


def _page(classifier: Classifier, name: str, result: str) -> str:
    """The page, with what is served."""
    names, size = classifier.classes, classifier.protocol["size"]
    listed, count = html.escape(", ".join(names)), f"{len(names):,} classes"
    if len(names) > LISTED_CLASSES:
        classes = f"<details><summary>{count}</summary>{listed}</details>"
    else:
        classes = f"<p>{count}: {listed}</p>"
    path = f"<p>{html.escape(name)}</p>" if result else ""
    about = f"{path}{classes}<p>Images are classified at {size} px.</p>"
    heading = html.escape(result or name)
    return PAGE.format(name=html.escape(name), heading=heading, about=about)


def _files_of_form(content: bytes, boundary: str) -> list[tuple[str, bytes]]:
    """(name, content) of the files in a body of multipart/form-data (RFC 7578)."""
    files = []
    for part in (b"\r\n" + content).split(f"\r\n--{boundary}".encode())[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        if b"filename" in head.lower():
            found = re.search(rb'filename="([^"]*)"', head, re.IGNORECASE)
            files.append((found[1].decode(errors="replace") if found else "", body))
    return files
