"""`rescue pack`: a folder of images as tar or parquet shards."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rescue_cli.cli import common
from rescue_cli.cli.command import SingleProcess, example_and_next
from rescue_cli.cli.common import Json
from rescue_cli.errors import UsageError
from rescue_cli.formatting import format_count
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    cls=SingleProcess,
    epilog=example_and_next(
        "rescue pack photos shards --max-side 400",
        "rescue train --recipe imagenette-5 data.name=folder data.root=shards",
    ),
)
def pack(
    data: Annotated[Path, typer.Argument(help="A folder, tar, zip or parquet of images.")],
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    name: Annotated[
        str, typer.Option("--name", help="The data set that it is, as in data.name.")
    ] = "folder",
    format_: Annotated[
        str, typer.Option("--format", help="tar (as WebDataset's) or parquet.")
    ] = "tar",
    max_side: Annotated[
        int | None, typer.Option(help="Resize to so many pixels at most.", min=16)
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality where resized.", min=1, max=100)] = 90,
    shard_mb: Annotated[int, typer.Option(help="Size of a shard in MB.", min=1)] = 512,
    as_json: Json = False,
) -> None:
    """Pack images into shards that can be read in any order; go on where a pack was stopped."""
    from rescue_cli.recipe.schema import lookup
    from rescue_cli.sections.data.datasets import DATASETS
    from rescue_cli.sections.data.packed.write import FORMATS, Packing, read_splits, write_pack
    from rescue_cli.terminal import TimeLeft, make_bar

    lookup("--name", name, DATASETS)
    lookup("--format", format_, dict.fromkeys(FORMATS))
    if not data.exists():
        raise UsageError(f"DATA: {data}: no such file or folder. Give one that holds images.")
    dataset = read_splits(name, str(data))
    total = sum(len(split) for split in (dataset.train, *dataset.tests.values()))
    count, left = 0, TimeLeft(total)

    def advance(images: int, there: int) -> None:
        nonlocal count, left
        count += images
        if there:
            left = TimeLeft(total, count)
        left.update(count)

    def read() -> tuple[float, str, str, list[list[str]]]:
        return count, f"{count:,} of {total:,} images", str(left), []

    for line in dataset.notes:
        note(line)
    packing = Packing(format_, shard_mb * 1_000_000, max_side, quality)
    with make_bar(total, Console(stderr=True), read):
        written = write_pack(dataset, out, packing, advance)
    if as_json:
        common.print_json(
            {
                "folder": str(out),
                "resized": packing.resized,
                "shards": {
                    split: [one._asdict() for one in each] for split, each in written.items()
                },
            }
        )
        return
    for split, shards in written.items():
        images, size = sum(s.images for s in shards), sum(s.bytes for s in shards)
        print(
            f"{split}: {images:,} images in {format_count(len(shards), 'shard')}, "
            f"{size / 1e6:,.1f} MB"
        )
    if broken := sum(shard.broken for shards in written.values() for shard in shards):
        print(f"{format_count(broken, 'image')} cannot be decoded: copied as they are")
    if packing.resized:
        print(f"resized: {packing.resized}; every result of a run says so")
    note(str(out))
