"""A training from shards, here or on an object store, ends in the bits of that from the folder."""

import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rescue_cli.errors import DataError, UsageError
from rescue_cli.rundir import RunDirectory, read_json
from rescue_cli.sections.data.packed import names, remote
from rescue_cli.sections.data.packed.index import Shard
from rescue_cli.sections.data.packed.write import Packing, read_splits, write_pack
from tests.helpers import shards
from tests.helpers.processes import (
    Command,
    assert_same,
    metrics_of,
    outcome,
    start,
    steps_at,
    trained,
)

STEPS = 14  # two epochs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write_folder(tmp_path_factory.mktemp("photos") / "folder", train=19, val=5)


@pytest.fixture(scope="module")
def packs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder, and the same images as shards of each kind."""
    out = tmp_path_factory.mktemp("packs")
    dataset = read_splits("folder", str(folder))
    for kind in ("tar", "parquet"):
        write_pack(dataset, out / kind, Packing(kind, 20_000), lambda *_: None)
    return {
        "folder": folder,
        "tar": out / "tar",
        "parquet": out / "parquet",
        "zip": shards.as_zip(folder, out, 8),
    }


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RESCUE_CACHE", str(folder))
        yield folder


def train(
    run: Path, root: Path | str, *options: str, more: Iterable[str] = (), **how: Any
) -> Command:
    """Starts or goes on with two epochs on these images."""
    words = [
        "train", "--resume", "--json", "--out", run, *options, "--recipe", "pytorch",
        f"data={{name: folder, root: '{root}', train_size: 32, train_interpolation: bilinear}}",
        "model={name: resnet9, width: 4, logit_scale: 0.125}", "eval.sizes=[32]",
        "eval.batch_size=4", "train.batch_size=8", "train.device_batch_size=4", "train.epochs=2",
        "train.log_every=1", "train.checkpoint_epochs=0.5", "train.channels_last=false",
        "train.precision=float32", *more,
    ]  # fmt: skip
    return start(words, run, **how)


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    train(run, folder, "--workers", "0").ends(0)
    return run


def assert_equal(run: Path, reference: Path) -> None:
    """Bit for bit, but for where the images lie."""
    mine, other = outcome(run), outcome(reference)
    for part in ("weights", "best", "metrics", "predictions"):
        assert mine[part] == other[part], part


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("tar", 0), ("tar", 4), ("parquet", 1), ("zip", 1)],
)
def test_shards_train_what_the_folder_trains_with_any_number_of_workers(
    kind: str, workers: int, packs: dict[str, Path], reference: Path, tmp_path: Path
) -> None:
    train(tmp_path / "run", packs[kind], "--workers", str(workers)).ends(0)
    assert_equal(tmp_path / "run", reference)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_killed_and_moved_to_other_shards_a_run_ends_in_the_same_bits(
    kind: str, packs: dict[str, Path], reference: Path, tmp_path: Path
) -> None:
    """It begins on the folder, is killed twice, and goes on with the same images in shards."""
    run = tmp_path / "run"
    roots = (packs["folder"], packs[kind], packs["zip"])
    for root, step in zip(roots, [*steps_at(len(kind), 2, 2, STEPS - 2), None], strict=True):
        command = train(run, root, "--workers", "2")
        if step is None:
            command.ends(0)
        else:
            command.until(trained(run, step))
            command.kill()
    assert_equal(run, reference)


@pytest.mark.slow
def test_two_processes_train_on_shards_what_they_train_on_the_folder(
    packs: dict[str, Path], reference: Path, tmp_path: Path
) -> None:
    two = ["--procs", "2", "--workers", "1"]
    train(tmp_path / "run", packs["parquet"], *two, cores=2).ends(0)
    train(tmp_path / "folder", packs["folder"], *two, cores=2).ends(0)
    assert_equal(tmp_path / "run", tmp_path / "folder")
    loss = [line["loss"] for line in metrics_of(tmp_path / "run") if "loss" in line]
    expected = [line["loss"] for line in metrics_of(reference) if "loss" in line]
    assert loss == pytest.approx(expected, rel=1e-4), "sums in another order"


@pytest.mark.slow
def test_a_run_by_shards_goes_on_exactly_and_its_result_says_the_order(
    packs: dict[str, Path], tmp_path: Path
) -> None:
    order = ["sampling={name: shard-shuffled, buffer: 10}"]
    never_killed, run = tmp_path / "reference", tmp_path / "run"
    train(never_killed, packs["tar"], "--workers", "1", more=order).ends(0)
    command = train(run, packs["tar"], "--workers", "2", more=order)
    command.until(trained(run, 5))
    command.kill()
    train(run, packs["tar"], "--workers", "0", more=order).ends(0)
    assert_same(run, never_killed)
    result = read_json(RunDirectory(run).result)
    assert result["protocol"]["sampling"] == "shard-shuffled, buffer 10"


def test_every_result_says_that_its_images_were_resized(folder: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    packing = Packing("tar", 10**9, max_side=36, quality=80)
    write_pack(read_splits("folder", str(folder)), pack, packing, lambda *_: None)
    train(tmp_path / "run", pack, "--workers", "0", more=["train.epochs=1"]).ends(0)
    protocol = read_json(RunDirectory(tmp_path / "run").result)["protocol"]
    what = "longer side at most 36 px, JPEG quality 80"
    assert (protocol["images"], protocol["training_images"]) == (what, what)
    told = start(["eval", tmp_path / "run", "--json"], tmp_path / "eval")
    told.ends(0)
    (entry,) = json.loads((tmp_path / "eval.out").read_text())["sets"]
    assert entry["protocol"]["images"] == what


# --- an object store ---


class Failing:
    """A WSGI application of which every tenth download fails: it is refused, or breaks off."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.downloads = self.failed = 0
        self.lock = threading.Lock()
        self.gone = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.gone:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if environ["REQUEST_METHOD"] != "GET" or ".tar" not in environ["PATH_INFO"]:
            return self.application(environ, start_response)
        with self.lock:
            self.downloads += 1
            fails, kind = self.downloads % 10 == 0, self.downloads // 10 % 2
            self.failed += fails
        if fails and kind:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.application(environ, start_response))
        return [body[: len(body) // 2]] if fails else [body]


@pytest.fixture(scope="module")
def store(packs: dict[str, Path]) -> Iterator[tuple[str, Failing]]:
    """An S3 on this machine with the shards in it: its URL, and the application."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None: ...

    application = Failing(
        server_module.DomainDispatcherApplication(server_module.create_backend_app)
    )
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # within one of ours
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import s3fs

        system = s3fs.S3FileSystem(skip_instance_cache=True)
        system.mkdir("photos")
        system.put(str(packs["tar"]), "photos/tar", recursive=True)
        yield "s3://photos/tar", application
    server.shutdown()


def quickly() -> None:
    """The waits between attempts are short."""
    remote.FIRST_WAIT = 0.01


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1", "0.00001"], ids=["kept on disk", "image by image"])
def test_a_store_of_which_every_tenth_read_fails_gives_the_same_bits(
    size: str, store: tuple[str, Failing], reference: Path, tmp_path: Path
) -> None:
    url, application = store
    failed = application.failed
    environment = {"RESCUE_CACHE_GB": size, "RESCUE_CACHE": str(tmp_path / "cache")}
    train(tmp_path / "run", url, "--workers", "2", environment=environment, change=quickly).ends(0)
    assert_equal(tmp_path / "run", reference)
    if size != "1":
        assert application.failed - failed > 10
    else:
        kept = [f for f in (tmp_path / "cache" / "shards").iterdir() if not f.suffix]
        assert len(kept) > 5, "every shard"


@pytest.mark.slow
def test_a_cache_that_is_too_small_for_all_shards_drops_the_oldest(
    store: tuple[str, Failing], packs: dict[str, Path], tmp_path: Path
) -> None:
    url, _ = store
    environment = {"RESCUE_CACHE_GB": "0.00013", "RESCUE_CACHE": str(tmp_path / "cache")}
    order = ["sampling={name: shard-shuffled, buffer: 10}"]
    command = train(
        tmp_path / "run", url, "--workers", "1", more=order, environment=environment, change=quickly
    )
    command.ends(0)
    train(tmp_path / "local", packs["tar"], "--workers", "0", more=order).ends(0)
    assert_equal(tmp_path / "run", tmp_path / "local")
    kept = [f.stat().st_size for f in (tmp_path / "cache" / "shards").iterdir() if not f.suffix]
    assert 0 < sum(kept) <= 130_000


@pytest.mark.slow
def test_a_store_that_is_gone_ends_the_run_which_goes_on_when_it_is_back(
    store: tuple[str, Failing], reference: Path, tmp_path: Path
) -> None:
    url, application = store
    run = tmp_path / "run"
    environment = {"RESCUE_CACHE_GB": "0.00001", "RESCUE_CACHE": str(tmp_path / "cache")}
    command = train(run, url, "--workers", "1", environment=environment, change=quickly)
    command.until(trained(run, 5))
    application.gone = True
    try:
        message = command.ends(3)
    finally:
        application.gone = False
    assert "s3://photos/tar/train-" in message
    assert f"could not be read in {remote.ATTEMPTS} attempts" in message
    assert "--resume when the store answers" in message
    train(run, url, "--workers", "2", environment=environment, change=quickly).ends(0)
    assert_equal(run, reference)


def test_what_a_store_does_not_have_is_said_at_once(
    store: tuple[str, Failing], tmp_path: Path
) -> None:
    url, _ = store
    command = train(tmp_path / "run", f"{url}-not", "--workers", "0", change=quickly)
    assert "s3://photos/tar-not: no shard there (.tar, .zip, .parquet)" in command.ends(3)


def test_a_shard_that_is_larger_than_the_cache_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESCUE_CACHE", str(tmp_path))
    monkeypatch.setenv("RESCUE_CACHE_GB", "0.5")
    with pytest.raises(DataError, match=r"less than the 0.6 GB of s3://b/x.tar alone. Raise it"):
        remote.kept_shard(Shard("s3://b/x.tar", 600_000_000, "1"))


@pytest.mark.parametrize("size", ["nan", "-1", "all"])
def test_the_size_of_the_cache_is_a_number_or_infinite(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESCUE_CACHE", str(tmp_path))
    monkeypatch.setenv("RESCUE_CACHE_GB", "inf")
    assert remote.fits_cache(10**15)
    monkeypatch.setenv("RESCUE_CACHE_GB", size)
    with pytest.raises(UsageError, match=f"RESCUE_CACHE_GB: '{size}' is not a number"):
        remote.fits_cache(10)


def test_a_shard_that_another_process_drops_before_it_is_opened_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard").write_bytes(b"0123456789")
    kept = iter([tmp_path / "dropped", tmp_path / "shard"])
    monkeypatch.setattr(remote, "kept_shard", lambda _: next(kept))
    assert names._read_range(Shard("s3://b/x.tar", 10, "1"), 3, 4, whole=True) == b"3456"


def test_a_shard_whose_checksum_is_wrong_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Shard("s3://b/x.tar", 4, "1", sha256="0" * 64)
    monkeypatch.setenv("RESCUE_CACHE", str(tmp_path))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0)

    class System:
        def get_file(self, _: str, target: str) -> None:
            Path(target).write_bytes(random.Random(0).randbytes(4))

    monkeypatch.setattr(remote, "_system", lambda url: (System(), url))
    with pytest.raises(DataError, match=r"in 8 attempts: its SHA-256 is not that of pack.json"):
        remote.kept_shard(shard)
    assert not [path for path in (tmp_path / "shards").iterdir() if path.suffix != ".lock"]
