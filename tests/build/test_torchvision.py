"""`torchvision-v2` against what torch and torchvision make of the same settings."""

import re

import numpy as np
import pytest
import torch
import torchvision
from torchvision.ops._utils import split_normalization_params
from torchvision.transforms import RandomErasing, RandomResizedCrop

from rescue_cli import recipe as recipes
from rescue_cli.build.networks import create_network
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.rng import permute
from rescue_cli.sections.optim import assign_parameters
from rescue_cli.sections.sampling import SamplingContext, repeated

RECIPE = recipes.load("torchvision-v2")
TRAINING_IMAGES = 1_281_167
GPUS = 8
PER_EPOCH = 1251


def test_the_rate_of_every_epoch_is_that_of_torchs_schedulers_in_a_row() -> None:
    """LinearLR from a hundredth over 5 epochs, then CosineAnnealingLR over 595, by epoch."""
    weights = [torch.nn.Parameter(torch.zeros(()))]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=595)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, cosine], milestones=[5])
    expected = []
    for _ in range(600):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    ((schedule, ratio),) = build_schedules(RECIPE, PER_EPOCH)
    for place in (0, PER_EPOCH // 2, PER_EPOCH - 1):
        found = [schedule(epoch * PER_EPOCH + place).lr * ratio for epoch in range(600)]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert expected[0] == 0.005
    assert expected[5] == 0.5
    assert expected[599] == pytest.approx(0.5 * (1 + np.cos(np.pi * 594 / 595)) / 2, rel=1e-6)


def test_decay_spares_what_torchvision_calls_normalisation() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet50()
        norms, others = split_normalization_params(theirs)
        ours = create_network(RECIPE, 1000)
    (claim,) = assign_parameters(ours, RECIPE.optim)
    shapes = {name: tuple(p.shape) for name, p in ours.named_parameters()}
    for names, parameters in ((claim.undecayed, norms), (claim.decayed, others)):
        found = sorted(shapes[name] for name in names)
        assert found == sorted(tuple(p.shape) for p in parameters)
    assert "fc.bias" in claim.decayed


def test_repeated_augmentation_deals_four_copies_to_eight_gpus() -> None:
    """The epoch's order, each image four times, every eighth to a GPU, of 256 images whole."""
    train, sampling = RECIPE.train, RECIPE.sampling
    per_epoch = TRAINING_IMAGES // train.batch_size
    selected = TRAINING_IMAGES // 256 * 256 // GPUS
    assert per_epoch * train.device_batch_size == selected == 160_128
    assert per_epoch == PER_EPOCH
    steps = SamplingContext(
        TRAINING_IMAGES, train.batch_size, train.device_batch_size, per_epoch, seed=0
    )
    sampler = repeated(steps, **sampling.options)
    order = permute(np.arange(selected * GPUS // 4), TRAINING_IMAGES, 0, 2)
    row = np.repeat(order, 4)
    for gpu in range(GPUS):
        mine = row[gpu::GPUS]
        for step in (0, 1, 700, per_epoch - 1):
            found = sampler(2 * per_epoch + step, gpu)
            assert np.array_equal(found, mine[step * 128 : (step + 1) * 128])
            assert len(set(found.tolist())) == 128, "copies lie on different GPUs"


def test_the_average_forgets_as_fast_whatever_the_length_and_the_batch() -> None:
    """Which the reference has from pycls: 1 - decay is scaled by images x steps / epochs."""
    train, averaging = RECIPE.train, RECIPE.averaging.options
    adjusted = (1 - 0.99998) * train.batch_size * averaging["every"] / train.epochs
    assert averaging["decay"] == pytest.approx(1 - min(1.0, adjusted), rel=1e-12)


def test_crops_and_erasing_are_torchvisions_defaults() -> None:
    items = {item.name: item.options for item in RECIPE.augment}
    crop, erasing = RandomResizedCrop(176), RandomErasing(p=0.1)
    assert items["random-resized-crop"]["scale"] == list(crop.scale)
    np.testing.assert_allclose(items["random-resized-crop"]["ratio"], crop.ratio, rtol=1e-15)
    assert items["random-erasing"]["area"] == list(erasing.scale)
    assert items["random-erasing"]["ratio"] == list(erasing.ratio)
    assert items["random-erasing"]["p"] == erasing.p
    assert (items["random-erasing"]["mode"], erasing.value) == ("const", 0)


def test_it_expects_what_the_weights_of_torchvision_reach_as_they_are_shown() -> None:
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    shown = weights.transforms()
    (size,), (crop,) = RECIPE.eval.sizes, RECIPE.eval.crops
    assert [size] == shown.crop_size
    assert [int(size / crop)] == shown.resize_size
    assert RECIPE.tree["expect"]["top1"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert re.match("InterpolationMode.BILINEAR", str(shown.interpolation))
