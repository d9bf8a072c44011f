"""Keys of earlier versions: where their values stand today."""

from collections.abc import Mapping
from typing import Any

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Positive, convert, show


def move_old_keys(tree: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tree as this version writes it, and a note on each key that was moved.

    `train.clip_grad_norm` is `max_grad_norm` of the optimizers. Raises `UsageError` where the two
    disagree.
    """
    train = tree.get("train")
    if not isinstance(train, Mapping) or "clip_grad_norm" not in train:
        return tree, ()
    norm = train["clip_grad_norm"]
    convert("train.clip_grad_norm", norm, Positive | None)
    tree = {**tree, "train": {k: v for k, v in train.items() if k != "clip_grad_norm"}}
    if norm is None:
        return tree, ()
    optim = tree["optim"]
    clipped = [_clip(i, norm) for i in optim] if isinstance(optim, list) else _clip(optim, norm)
    note = f"train.clip_grad_norm is deprecated; it is read as optim.max_grad_norm={show(norm)}"
    return {**tree, "optim": clipped}, (note,)


def _clip(item: Any, norm: float) -> Any:
    """An optimizer item with the norm; of two that LAMB had, the smaller one decided."""
    if not isinstance(item, Mapping):
        return item  # whoever reads the item says what is wrong with it
    own = item.get("max_grad_norm")
    if item.get("name") == "lamb" and isinstance(own, int | float):
        norm = min(norm, own)
    elif own is not None and own != norm:
        raise UsageError(
            f"train.clip_grad_norm: {show(norm)}, and optim.max_grad_norm is {show(own)}. They are "
            "one key: remove the first with ~train.clip_grad_norm."
        )
    return {**item, "max_grad_norm": norm}
