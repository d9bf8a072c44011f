"""Files become the pixels that timm's loader and evaluation see; boxes are torchvision's."""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from rescue_cli.recipe.sections import Decoder, Interpolation
from rescue_cli.sections.augment.crops import random_resized_crop
from rescue_cli.sections.data.decode import (
    UNREADABLE,
    Box,
    centre_crop,
    crop_resize,
    decode_image,
    decode_to_array,
    decode_with_pil,
)
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.splits import Pixels

DECODERS: list[Decoder] = ["pil", "fast"]


def photographs(folder: Path, step: int) -> Iterator[bytes]:
    for path in sorted(folder.glob("*/*.JPEG"))[::step]:
        yield path.read_bytes()


def timms_loader(data: bytes) -> Pixels:
    """The image as timm's ImageDataset hands it to its transform."""
    from timm.data.dataset import ImageDataset

    class OneImage:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
            return io.BytesIO(data), index

    loader: Any = ImageDataset
    image, _ = loader("", reader=OneImage())[0]
    return np.array(image)


# --- odd files ---


def scene(width: int = 61, height: int = 43) -> Pixels:
    """Smooth colours with an edge, so that a rotation or a lost channel shows."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 7) * (y > 20)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def odd_files() -> dict[str, bytes]:
    rgb = Image.fromarray(scene())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    sixteen = (scene()[..., 0].astype(np.uint16) << 8) + 77
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(scene()[..., 1]))
    grey_alpha = Image.merge("LA", [rgb.convert("L"), Image.fromarray(scene()[..., 1])])
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "greyscale jpeg": (rgb.convert("L"), "JPEG", {}),
        "CMYK jpeg": (rgb.convert("CMYK"), "JPEG", {}),
        "rotated by EXIF": (rgb, "JPEG", {"exif": exif}),
        "progressive jpeg": (rgb, "JPEG", {"progressive": True, "quality": 90}),
        "jpeg without chroma subsampling": (rgb, "JPEG", {"subsampling": 0}),
        "jpeg with 4:2:2": (rgb, "JPEG", {"subsampling": 1}),
        "palette png": (rgb.quantize(16), "PNG", {}),
        "palette gif as jpg": (rgb.quantize(16), "GIF", {}),
        "16-bit png": (Image.fromarray(sixteen), "PNG", {}),
        "png with alpha": (rgba, "PNG", {}),
        "grey png with alpha": (grey_alpha, "PNG", {}),
        "black and white png": (rgb.convert("1"), "PNG", {}),
        "palette png with one transparent colour": (rgb.quantize(16), "PNG", {"transparency": 3}),
        "webp": (rgb, "WEBP", {}),
        "bmp": (rgb, "BMP", {}),
        "CMYK tiff": (rgb.convert("CMYK"), "TIFF", {}),
    }
    found = {}
    for name, (image, kind, options) in files.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", list(odd_files()))
def test_odd_files_decode_as_timms_loader_decodes_them(name: str, decoder: Decoder) -> None:
    data = odd_files()[name]
    theirs = timms_loader(data)
    ours = np.array(decode_image(data, decoder, Reading(background="ignored")))
    if name == "16-bit png":
        assert np.mean(theirs == 255) > 0.9, "timm's are white from 255 of 65,535 on"
        assert np.abs(ours.astype(int) - scene()[..., :1]).max() <= 1
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_what_makes_the_odd_files_odd() -> None:
    modes = {name: Image.open(io.BytesIO(data)).mode for name, data in odd_files().items()}
    assert modes["greyscale jpeg"] == "L"
    assert modes["CMYK jpeg"] == "CMYK"
    assert modes["palette png"] == "P"
    assert modes["16-bit png"] == "I;16"
    assert modes["png with alpha"] == "RGBA"
    turned = odd_files()["rotated by EXIF"]
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    assert decode_to_array(turned).shape == (43, 61, 3), "as it is stored, not as it is shown"


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", list(odd_files()))
def test_odd_files_are_cropped_and_resized_without_a_warning(name: str, decoder: Decoder) -> None:
    image = decode_image(odd_files()[name], decoder)
    assert crop_resize(image, Box(3, 5, 30, 40), 16, 16, "bicubic").shape == (3, 16, 16)
    assert crop_resize(image, Box(0, 0, 43, 61), 43, 61, "bicubic").shape == (3, 43, 61)


# --- evaluation ---


@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_sees_the_very_pixels_of_timms_transform(
    imagenet_sample: Path, crop: float, interpolation: Interpolation
) -> None:
    from timm.data.transforms_factory import create_transform

    theirs = create_transform(
        224, is_training=False, interpolation=interpolation, crop_pct=crop, normalize=False
    )
    shapes = set()
    for data in photographs(imagenet_sample, 12):
        image = decode_with_pil(data)
        shapes.add(image.width > image.height)
        ours = centre_crop(image, 224, crop, interpolation)
        assert torch.equal(ours, theirs(Image.open(io.BytesIO(data)).convert("RGB")))
    assert shapes == {True, False}, "landscapes and portraits"


@pytest.mark.parametrize(
    ("width", "height"), [(224, 500), (500, 224), (224, 224), (30, 41), (1, 9)]
)
def test_evaluation_of_small_and_exact_sizes_is_timms_too(width: int, height: int) -> None:
    from timm.data.transforms_factory import create_transform

    image = Image.fromarray(scene(width, height))
    for size, crop in ((224, 0.95), (224, 1.0), (288, 1.0), (64, 0.875), (33, 0.9)):
        theirs = create_transform(
            size, is_training=False, interpolation="bicubic", crop_pct=crop, normalize=False
        )
        assert torch.equal(centre_crop(image, size, crop, "bicubic"), theirs(image))


# --- the fast decoder ---


def test_the_fast_decoder_gives_pils_pixels_on_real_photographs(imagenet_sample: Path) -> None:
    differences = [
        np.abs(decode_to_array(d).astype(int) - np.array(decode_with_pil(d)).astype(int)).ravel()
        for d in photographs(imagenet_sample, 8)
    ]
    together = np.concatenate(differences)
    print(f"fast - PIL, whole images: mean {together.mean():.6f}, greatest {together.max()}")
    # Both carry libjpeg-turbo; different versions may differ by one grey level here and there
    assert together.mean() < 0.01
    assert np.percentile(together, 99.9) <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_fast_path_differs_from_pils_by_rounding_only(
    imagenet_sample: Path, interpolation: Interpolation
) -> None:
    """Over 64: mean 0.030 grey levels (bilinear) and 0.034 (bicubic), 99.9th percentile 1."""
    crop = random_resized_crop(scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
    random = np.random.default_rng(1)
    counts = np.zeros(256, dtype=np.int64)  # of values that differ by so many grey levels
    for data in photographs(imagenet_sample, 4):
        whole = decode_with_pil(data)
        draws = random.random(crop.columns, dtype=np.float32)
        box = Box(*crop.apply(whole.height, whole.width, draws))
        slow = crop_resize(whole, box, 224, 224, interpolation)
        fast = crop_resize(decode_image(data, "fast"), box, 224, 224, interpolation)
        differences = (slow.short() - fast.short()).abs_().flatten()
        counts += torch.bincount(differences, minlength=256).numpy()
    mean = (counts * np.arange(256)).sum() / counts.sum()
    percentile = np.searchsorted(counts.cumsum() / counts.sum(), 0.999)
    print(
        f"fast - PIL, {interpolation} crops: mean {mean:.4f}, 99.9th percentile {percentile}, "
        f"greatest {np.flatnonzero(counts)[-1]}"
    )
    assert mean < 0.05  # bilinear in place of bicubic: 1.5; no antialiasing: 1.9
    assert percentile <= 1


# --- broken files ---


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7, 0.98])
def test_a_truncated_jpeg_is_refused_by_both_decoders(
    imagenet_sample: Path, decoder: Decoder, kept: float
) -> None:
    for data in photographs(imagenet_sample, 64):
        with pytest.raises(UNREADABLE):
            decode_image(data[: int(kept * len(data))], decoder)


def test_both_decoders_agree_on_which_damaged_files_can_be_read() -> None:
    """Random damage: verdict and pixels are PIL's, and nothing else is raised."""
    random = np.random.default_rng(11)
    verdicts = {True: 0, False: 0}
    sources = list(odd_files().values())
    for _ in range(600):
        data = bytearray(sources[random.integers(len(sources))])
        for _ in range(random.integers(1, 6)):
            data[random.integers(len(data))] = random.integers(256)
        found = []
        for decoder in DECODERS:
            try:
                found.append(np.array(decode_image(bytes(data), decoder)))
            except (*UNREADABLE, Warning) as error:  # warnings are errors in these tests
                found.append(np.array(type(error).__name__))
        readable = found[0].ndim == 3
        verdicts[readable] += 1
        assert found[0].shape == found[1].shape
        assert np.abs(found[0].astype(int) - found[1].astype(int)).max() <= 2 if readable else True
    assert min(verdicts.values()) > 50


def test_an_image_too_large_to_be_honest_is_unreadable_like_any_broken_one() -> None:
    header = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(header, "PNG")  # 400 million pixels in 50 kB
    for decoder in DECODERS:
        with pytest.raises(UNREADABLE):
            decode_image(header.getvalue(), decoder)


# --- random resized crop ---

SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)


def boxes(height: int, width: int, count: int) -> list[Box]:
    crop = random_resized_crop(scale=SCALE, ratio=RATIO)
    draws = np.random.default_rng(3).random((count, crop.columns), dtype=np.float32)
    return [Box(*crop.apply(height, width, row)) for row in draws]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (256, 256), (300, 900)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    torch.manual_seed(7)
    count = 6000
    image = torch.empty(3, height, width)
    theirs = [
        Box(*RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))) for _ in range(count)
    ]
    ours = boxes(height, width, count)
    measures: dict[str, Callable[[Box], float]] = {
        "area": lambda b: b.height * b.width,
        "aspect": lambda b: math.log(b.width / b.height),
        "top": lambda b: b.top / max(1, height - b.height),
        "left": lambda b: b.left / max(1, width - b.width),
    }
    for name, measure in measures.items():
        found = stats.ks_2samp([measure(b) for b in ours], [measure(b) for b in theirs])
        assert found.pvalue > 1e-3, name
        assert found.statistic < 0.035, name


def test_the_comparison_of_boxes_would_notice_another_area_or_aspect() -> None:
    def areas(scale: tuple[float, float], ratio: tuple[float, float]) -> list[tuple[float, float]]:
        crop = random_resized_crop(scale=scale, ratio=ratio)
        draws = np.random.default_rng(3).random((6000, crop.columns), dtype=np.float32)
        found = [crop.apply(375, 500, row) for row in draws]
        return [(h * w, math.log(w / h)) for _, _, h, w in found]

    right = areas(SCALE, RATIO)
    for wrong, column in ((areas((0.14, 1.0), RATIO), 0), (areas(SCALE, (0.8, 1.25)), 1)):
        found = stats.ks_2samp([r[column] for r in right], [w[column] for w in wrong])
        assert found.statistic > 0.035


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3), (17, 4), (375, 500), (40, 4000), (3000, 31)]
)
def test_boxes_are_always_inside(height: int, width: int) -> None:
    for box in boxes(height, width, 400):
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width


@pytest.mark.parametrize("extreme", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_extreme_draws_stay_inside(extreme: float) -> None:
    crop = random_resized_crop(scale=SCALE, ratio=RATIO)
    for height, width in ((375, 500), (500, 375), (7, 7), (1, 50)):
        draws = np.full(crop.columns, extreme, dtype=np.float32)
        top, left, h, w = crop.apply(height, width, draws)
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w


@pytest.mark.parametrize(
    ("height", "width"),
    [(100, 1000), (1000, 100), (100, 100), (120, 100), (7, 1000)],
)
def test_after_ten_tries_the_largest_central_box_is_taken_as_in_torchvision(
    height: int, width: int
) -> None:
    # A share of four times the area never fits, so every try fails in both
    crop = random_resized_crop(scale=(4.0, 4.0), ratio=RATIO)
    ours = crop.apply(height, width, np.full(crop.columns, 0.5, dtype=np.float32))
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [4.0, 4.0], list(RATIO))
    assert ours == tuple(theirs)


def test_the_eleventh_try_is_never_made() -> None:
    # Nine failures and a tenth that fits: its box; the area's share is 0.08 + 0.92 x draw
    crop = random_resized_crop(scale=SCALE, ratio=RATIO)
    draws = np.zeros((10, 4), dtype=np.float32)
    draws[:9, 0] = 0.999  # the whole area at an extreme ratio does not fit
    draws[9] = (0.25, 0.5, 0.0, 0.0)
    side = round(math.sqrt((0.08 + 0.92 * 0.25) * 300 * 300))
    assert crop.apply(300, 300, draws.ravel()) == (0, 0, side, side)


def test_a_view_is_the_box_resized_as_torchvision_resizes_it() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    image = torch.from_numpy(scene(200, 150)).permute(2, 0, 1)
    box = Box(11, 23, 90, 120)
    modes = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
    names: list[Interpolation] = ["bilinear", "bicubic"]
    for name in names:
        theirs: Tensor = resized_crop(
            image, box.top, box.left, box.height, box.width, [64, 48], modes[name], antialias=True
        )
        off = (crop_resize(scene(200, 150), box, 64, 48, name).int() - theirs.int()).abs()
        assert off.max() <= 1, "torchvision goes by float32 where the processor has no AVX2"
        assert (off > 0).float().mean() < 0.02
