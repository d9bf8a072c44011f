"""The ResNet of super-convergence (Smith and Topin 2017), as its published Caffe files define it.

Source: lnsmith54/super-convergence ecc5615, architectures/Resnet20Cifar.prototxt, Resnet56Cifar and
Resnet110Cifar, which the logs in its Results/ print. There the biases of convolutions have twice
the learning rate and no weight decay, the last layer's bias twice the rate with decay: these are
parameter groups of the recipe.
"""

from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, PositiveInt
from rescue_cli.sections.model.caffe import CaffeBatchNorm2d
from rescue_cli.sections.model.init import init_weights
from rescue_cli.sections.model.smith import Classifier, MeanImage, two_convolutions


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, the input added to them, and a ReLU after the sum.

    In a `halving` block the first convolution has stride 2, the input is average-pooled over 3x3
    windows with stride 2 (output size rounded up and windows clipped at the edge, as in Caffe), and
    zeros double the channels of the sum.
    """

    def __init__(self, features: int, norm_momentum: float, *, halving: bool) -> None:
        super().__init__()
        self.halving = halving
        self.body = two_convolutions(features, features, norm_momentum, halving=halving)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if not self.halving:
            return (y + x).relu()
        y = (y + functional.avg_pool2d(x, 3, 2, ceil_mode=True)).relu()
        return functional.pad(y, (0, 0, 0, 0, 0, y.shape[1]))


def super_convergence(
    classes: int, channels: int, *, depth: PositiveInt, norm_momentum: Fraction
) -> nn.Module:
    """The ResNet of `depth` 6 n + 2: n blocks of each of 16, 32 and 64 channels.

    The first block of the second and third stage halves the image and has the previous stage's
    width. The paper uses 20, 56 and 110. Convolutions are initialised by msra, the last layer by
    xavier. Raises `UsageError` for any other depth.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UsageError(
            f"model (super-convergence).depth: {depth} is not 6 n + 2. Use 20, 56 or 110."
        )
    layers: list[nn.Module] = [
        MeanImage(channels),
        nn.Conv2d(channels, 16, 3, padding=1),
        CaffeBatchNorm2d(16, momentum=norm_momentum),
        nn.ReLU(),
    ]
    features = 16
    for stage in range(3):
        for block in range((depth - 2) // 6):
            halving = stage > 0 and block == 0
            layers.append(PaddedBlock(features, norm_momentum, halving=halving))
            features *= 2 if halving else 1
    net = Classifier(layers, features, classes)
    init_weights(net.features, "msra")
    init_weights(net.head, "xavier")
    return net
