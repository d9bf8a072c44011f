"""Which layers of a network are its classifier."""

from torch import nn

HEAD_LAYERS = (nn.Linear, nn.Conv2d)  # what maps features to classes


def find_heads(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that give a network's logits, by their full names; empty where it has none.

    timm's networks say it themselves: their configuration names the layers (two of a distilled
    DeiT), and what `get_classifier` gives beside them counts too, as some configurations name one
    of two. Of any other network it is the last linear layer.
    """
    named = dict(model.named_modules())
    told = getattr(model, "default_cfg", {}).get("classifier") or ()
    names = [told] if isinstance(told, str) else list(told)
    found = {name for name in names if isinstance(named.get(name), HEAD_LAYERS)}
    for root in _timm_classifiers(model):
        path = next((name for name, module in named.items() if module is root), None)
        inside = [n for n, m in named.items() if _is_within(n, path) and isinstance(m, HEAD_LAYERS)]
        if inside and not found.intersection(inside):
            found.add(inside[-1])
    if not found:
        found.update([name for name, m in named.items() if isinstance(m, nn.Linear)][-1:])
    return {name: module for name, module in named.items() if name in found}


def _timm_classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """What timm's `get_classifier` gives, one or several."""
    getter = getattr(model, "get_classifier", None)
    given = getter() if getter is not None else ()
    return (given,) if isinstance(given, nn.Module) else tuple(given)


def _is_within(name: str, path: str | None) -> bool:
    return path is not None and (name == path or name.startswith(f"{path}."))
