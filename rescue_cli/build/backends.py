"""torch's settings for speed and determinism, the same for runs and benchmarks."""

import os

import torch

from rescue_cli.recipe import Recipe


def reserve_cublas_workspace() -> None:
    """The fixed workspace without which cuBLAS is not deterministic; it is read once per process,
    so this comes before the first CUDA call.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def configure_backends(recipe: Recipe) -> None:
    """Sets torch for the recipe's network.

    Float32 products use TF32 on GPUs that have it. cuDNN times its algorithms for each new shape
    of input and keeps the fastest one, but not where every image has a shape of its own, nor where
    the run has to be deterministic.
    """
    train = recipe.train
    use_fast_kernels(search=not train.deterministic and not recipe.is_annotated)
    if train.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(train.deterministic)  # slow: imports torch's compiler


def use_fast_kernels(*, search: bool = True) -> None:
    """TF32 for float32 products, and cuDNN's `search` for the fastest algorithm."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = search


def computes_bfloat16() -> bool:
    """Whether this processor has matrix products in bfloat16; torch emulates them otherwise."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # torch has no public name for it
