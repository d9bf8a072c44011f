"""The two LeNet recipes against Caffe's example, layer by layer (BVLC/caffe, examples/mnist)."""

import numpy as np
import pytest
import torch

from rescue_cli import recipe as recipes
from rescue_cli.build.networks import create_network
from rescue_cli.sections.optim import assign_parameters


@pytest.mark.parametrize("name", ["1cycle-lenet", "step-lenet"])
def test_lenet_is_caffes_example(name: str) -> None:
    """conv 20, pool, conv 50, pool, 500, ReLU, 10: no other ReLU, no padding; biases 0."""
    torch.manual_seed(0)
    recipe = recipes.load(name)
    model = create_network(recipe, 10).double()
    parameters = [p.detach().numpy() for p in model.parameters()]
    weights, biases = parameters[0::2], parameters[1::2]
    assert [w.shape for w in weights] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    for weight in weights:  # the filler xavier: uniform within sqrt(3 / inputs)
        bound = np.sqrt(3 / weight[0].size)
        assert 0.97 * bound < abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert not any(bias.any() for bias in biases)
    for bias in biases:
        bias[:] = np.linspace(-0.2, 0.2, len(bias))

    images = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    x = images.numpy()
    for weight, bias in zip(weights[:2], biases[:2], strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (2, 3))
        x = np.einsum("nchwij,kcij->nkhw", windows, weight) + bias[:, None, None]
        n, channels, side, _ = x.shape
        x = x.reshape(n, channels, side // 2, 2, side // 2, 2).max((3, 5))
    x = np.maximum(x.reshape(3, 800) @ weights[2].T + biases[2], 0) @ weights[3].T + biases[3]
    np.testing.assert_allclose(model(images).detach().numpy(), x, rtol=1e-9)


@pytest.mark.parametrize(("name", "lr"), [("1cycle-lenet", 0.1), ("step-lenet", 0.01)])
def test_pixels_are_divided_by_256_and_biases_have_twice_the_rate(name: str, lr: float) -> None:
    recipe = recipes.load(name)
    data = recipe.data.options
    assert data["mean"] == [0.0]
    assert 255 * data["std"][0] == pytest.approx(256, abs=1e-5)
    found = assign_parameters(create_network(recipe, 10), recipe.optim)
    for item, claim in zip(recipe.optim, found, strict=True):
        assert item.options["weight_decay"] == 5e-4  # the file has no decay_mult
        assert not claim.undecayed
        for parameter in claim.decayed:
            assert item.options["lr"] == (2 * lr if parameter.endswith("bias") else lr), parameter
    assert sum(len(claim.decayed) for claim in found) == 8


def test_the_step_recipe_is_caffes_solver() -> None:
    """Its solver file names no type, and Caffe's default is SGD; the paper's batch is 512."""
    recipe = recipes.load("step-lenet")
    assert {item.options["nesterov"] for item in recipe.optim} == {False}
    assert {item.options["momentum"] for item in recipe.optim} == {0.9}
    assert recipe.schedule.options == {"gamma": 1e-4, "power": 0.75}
    updates = recipe.train.epochs * 60_000 / recipe.train.batch_size
    assert updates == pytest.approx(10_000, rel=0.005)  # max_iter
