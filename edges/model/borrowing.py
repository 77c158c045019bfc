"""Borrowing a bridge: it is run frozen and without hooks, and given back as it was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from .plain import inner_modules

HOOK_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def borrowed(bridge: Any, tf32: bool, with_hooks: bool = False) -> Generator[None]:
    """The bridge frozen, in evaluation mode, without hooks; then all as it was, come what may.

    Args:
        tf32: whether CUDA may multiply float32 matrices in TF32 meanwhile.
        with_hooks: leave the hooks in place.
    """
    multiplies: Any = torch.backends.cuda.matmul
    flag, values = "allow_tf32", (False, True)
    if hasattr(multiplies, "fp32_precision"):  # since torch 2.9, which objects to mixing both
        flag, values = "fp32_precision", ("ieee", "tf32")
    multiplied = getattr(multiplies, flag)
    modules = _modules(bridge)
    training = [module for module in modules if module.training]
    trained = [weight for weight in bridge.parameters() if weight.requires_grad]
    hooked = [
        (module, kind, hooks)
        for module in modules
        for kind in HOOK_KINDS
        if not with_hooks and (hooks := module.__dict__[kind])
    ]
    try:
        setattr(multiplies, flag, values[tf32])
        for module in training:
            module.training = False  # not .eval(), which would change all modules below
        for weight in trained:
            weight.requires_grad_(False)
        for module, kind, hooks in hooked:
            # Put aside rather than removed: the handles that callers hold stay good.
            module.__dict__[kind] = type(hooks)()
        yield
    finally:
        setattr(multiplies, flag, multiplied)
        for module, kind, hooks in hooked:
            module.__dict__[kind] = hooks
        for weight in trained:
            weight.requires_grad_(True)
        for module in training:
            module.training = True


def hooks_on(bridge: Any) -> frozenset[int]:
    """Identities of all hooks on a bridge, the caller's and its own."""
    return frozenset(
        key for module in _modules(bridge) for kind in HOOK_KINDS for key in module.__dict__[kind]
    )


def hooked_modules(bridge: Any) -> list[str]:
    """Names of what people put hooks on: the bridge's points, modules of the Hugging Face model, and
    the bridge's components.
    """
    points = {id(point): name for name, point in bridge.hook_dict.items()}
    inner = {id(module): name for name, module in inner_modules(bridge.original_model)}
    names = {id(module): name for name, module in bridge.named_modules()} | inner | points
    return sorted(names[id(module)] for module in _modules(bridge) if _has_foreign_hooks(module))


def _has_foreign_hooks(module: Any) -> bool:
    if type(module).__name__ == "HookPoint":
        return module.has_hooks()
    hooks = [hook for kind in HOOK_KINDS for hook in vars(module)[kind].values()]
    # TransformerLens hooks some norms itself.
    return any(not str(hook.__module__).startswith("transformer_lens.") for hook in hooks)


def _modules(bridge: Any) -> list[torch.nn.Module]:
    """All modules of the bridge, and those of the model inside it that are not its own."""
    return list({*bridge.modules(), *bridge.original_model.modules()})
