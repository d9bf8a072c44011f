"""What is done at once for millions of names is what is done name by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.data import FileNames, Fingerprint, fingerprint_from_arrays, list_split
from rescue_cli.sections.data import splits as splits_module
from rescue_cli.sections.data.formats.class_folders import read_class_folders
from rescue_cli.sections.data.listing import EMPTY_FILES, LINK_CYCLE, SkippedFiles

NAMES = ["cat/1.jpg", "", "dog/Äpfel.jpg", "dog/\udcff.jpg", "a", "dog/a b.jpg"]


def names_of(files: FileNames) -> list[str]:
    return [files.name(index) for index in range(len(files))]


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("indices", [[], [0], [5], [4, 3, 3, 1, 0, 5, 2], list(range(6))])
def test_names_taken_in_blocks_are_those_taken_one_by_one(
    at_once: int, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits_module, "TAKEN", at_once)
    chosen: Indices = np.array(indices, np.int64)
    taken = FileNames.of(Path("root"), NAMES, range(6)).take(chosen)
    assert names_of(taken) == [NAMES[index] for index in indices]
    assert taken.bytes_listed is not None
    assert taken.bytes_listed.tolist() == indices
    assert taken.ends.dtype == np.int64


def test_no_names_can_be_taken_from_none() -> None:
    assert len(FileNames.of(Path(), []).take(np.zeros(0, np.int64))) == 0


def test_joined_parts_are_the_names_listed_at_once() -> None:
    parts = [NAMES[:1], [], NAMES[1:4], NAMES[4:]]
    joined = FileNames.join(Path("root"), [FileNames.of(Path("root"), part) for part in parts])
    whole = FileNames.of(Path("root"), NAMES)
    np.testing.assert_array_equal(joined.block, whole.block)
    np.testing.assert_array_equal(joined.ends, whole.ends)
    assert joined.bytes_listed is None
    assert len(FileNames.join(Path("root"), [])) == 0


def test_sizes_are_kept_where_every_part_has_them() -> None:
    sized, unsized = (FileNames.of(Path(), ["a", "b"], sizes) for sizes in ([3, 4], [5, None]))
    both = FileNames.join(Path(), [sized, sized]).bytes_listed
    assert both is not None
    assert both.tolist() == [3, 4, 3, 4]
    assert FileNames.join(Path(), [sized, unsized]).bytes_listed is None


def draw_classes(root: Path) -> dict[str, int]:
    """Three classes with images of several sizes, a subfolder, an empty file and links."""
    for number, name in enumerate(["b", "a", "c/deep", "c"]):
        (root / name).mkdir(parents=True, exist_ok=True)
        for image in range(4):
            Image.effect_noise((30 + image, 30 + number), 50).save(root / name / f"{image}.png")
    (root / "a" / "empty.png").touch()
    (root / "b" / "link.png").symlink_to(root / "a" / "3.png")
    (root / "c" / "above").symlink_to(root / "c")
    return {"a": 0, "b": 1, "c": 2}


def test_sizes_read_with_the_listing_are_those_of_the_files(tmp_path: Path) -> None:
    """So that each file is looked at once; a link has the size of the image behind it."""
    labels = draw_classes(tmp_path)
    skipped = SkippedFiles(check_sizes=True)
    files = read_class_folders(tmp_path, labels, complete=True, skipped=skipped)
    assert files.names.bytes_listed is not None
    sizes = [files.names.path(index).stat().st_size for index in range(len(files))]
    assert files.names.bytes_listed.tolist() == sizes
    assert dict(skipped.counts) == {EMPTY_FILES: 1, LINK_CYCLE: 1}
    assert names_of(files.names)[-8:] == [*(f"c/{i}.png" for i in range(4)),
                                          *(f"c/deep/{i}.png" for i in range(4))]  # fmt: skip
    assert files.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 8
    assert "4 of 17 images are in subfolders" in skipped.messages[0]
    (tmp_path / "a" / "empty.png").unlink()
    unlooked = read_class_folders(tmp_path, labels, complete=True)
    assert unlooked.names.bytes_listed is None
    assert list_split(unlooked).digest == list_split(files).digest


def test_no_file_is_looked_at_again_where_its_size_was_listed(tmp_path: Path) -> None:
    skipped = SkippedFiles(check_sizes=True)
    files = read_class_folders(tmp_path, draw_classes(tmp_path), complete=True, skipped=skipped)
    before = list_split(files).digest
    for index in range(len(files)):
        files.names.path(index).unlink(missing_ok=True)
    assert list_split(files).digest == before


def test_of_several_broken_class_folders_the_first_is_named(tmp_path: Path) -> None:
    """Folders are listed by several threads."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    with pytest.raises(DataError, match="b: is empty"):
        read_class_folders(tmp_path, {name: i for i, name in enumerate("abcd")}, complete=True)


def test_a_listing_of_an_older_version_has_ends_in_place_of_lengths(tmp_path: Path) -> None:
    listing = list_split(read_class_folders(tmp_path, draw_classes(tmp_path), complete=True))
    whole = Fingerprint(("a", "b", "c"), {"train": listing})
    arrays = whole.arrays()
    assert fingerprint_from_arrays(arrays).digest == whole.digest
    lengths = arrays.pop("train/lengths")
    older = {**arrays, "train/ends": np.cumsum(lengths, dtype=np.int64)}
    assert fingerprint_from_arrays(older).digest == whole.digest
