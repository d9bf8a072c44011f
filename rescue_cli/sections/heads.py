"""Finds the layers of a network that are its classifier."""

from torch import nn

HEAD_LAYERS = (nn.Linear, nn.Conv2d)  # what maps features to classes


def find_heads(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that compute a network's logits, by full name; empty where there is none.

    For timm's networks, the layers that their configuration names (two for a distilled DeiT) and
    those that `get_classifier` returns, because some configurations name only one of two. For any
    other network, the last linear layer.
    """
    named = dict(model.named_modules())
    configured = getattr(model, "default_cfg", {}).get("classifier") or ()
    names = [configured] if isinstance(configured, str) else list(configured)
    head_names = {name for name in names if isinstance(named.get(name), HEAD_LAYERS)}
    for root in _timm_classifiers(model):
        path = next((name for name, module in named.items() if module is root), None)
        inside = [n for n, m in named.items() if _is_within(n, path) and isinstance(m, HEAD_LAYERS)]
        if inside and not head_names.intersection(inside):
            head_names.add(inside[-1])
    if not head_names:
        head_names.update([name for name, m in named.items() if isinstance(m, nn.Linear)][-1:])
    return {name: module for name, module in named.items() if name in head_names}


def _timm_classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that timm's `get_classifier` returns, one or several."""
    getter = getattr(model, "get_classifier", None)
    classifiers = getter() if getter is not None else ()
    return (classifiers,) if isinstance(classifiers, nn.Module) else tuple(classifiers)


def _is_within(name: str, path: str | None) -> bool:
    return path is not None and (name == path or name.startswith(f"{path}."))
