"""Whether what a model was taken apart into makes the whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError, WiremapError
from .activations import Activations
from .borrowing import hooks_on
from .parts import at_least_float32
from .transformer import Model


def check_parts(model: Model, tokens: Int64[Tensor, "pair pos"]) -> None:
    """Checks that the bridge's parts make its logits: once, and again for longer prompts or
    when hooks came or went.

    The logits computed from the parts must be the bridge's own, hooks included, and at every
    reader the writers before it must sum to what it reads; to 1e-4 of the largest value in
    float32.

    Raises:
        WiremapError: they are not. InputError, if hooks on the bridge are the reason.
    """
    if model.checked is not None:
        hooks, length = model.checked
        if hooks == hooks_on(model.bridge) and tokens.shape[1] <= length:
            return
    tolerance = 1e-4 if at_least_float32(model.dtype) == model.dtype else 3e-2
    for what, value, expected in _compared(model, tokens):
        if not bool(torch.isfinite(expected).all()):
            raise WiremapError(
                f"model {model.name}: the {what} of a longest prompt is not finite; try float32 "
                "(--dtype float32)"
            )
        error = float((value - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:  # so that NaN is refused, too
            raise _parts_differ(model, what, error, tolerance)
    # Anew, because the bridge may have put hooks of its own where its first run needs them.
    model.checked = hooks_on(model.bridge), tokens.shape[1]


@torch.no_grad()
def _compared(model: Model, tokens: Int64[Tensor, "pair pos"]) -> list[tuple[str, Tensor, Tensor]]:
    """What is compared, in words; what the parts make of it, and what it should be."""
    with model.borrowed(with_hooks=True):
        whole = model.bridge(tokens)
    with model.borrowed():
        kept = Activations()
        seen = kept.noting(("resid_pre", "mlp_in", "written", "mlp_out"))
        final = model.run(model.embed(tokens), seen)
        sums = _sums_of_writers(model, tokens, kept, final)
        return [("logits", model.logits(final), whole), *sums]


def _sums_of_writers(
    model: Model, tokens: Int64[Tensor, "pair pos"], kept: Activations, final: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What all writers before a reader add up to, and what it reads, reader by reader."""
    total = model.embed(tokens)
    for layer, block in enumerate(model.blocks):
        yield f"sum of writers before layer {layer}", total, kept.resid_pre[layer]
        attention, z = block.attention, kept.written[layer]
        # The bias of W_O is no head's own: attention writes it, whatever its heads do.
        bias = attention.raw_output(torch.zeros_like(z)[:1, :1])
        writes = torch.einsum("pthd,hdm->ptm", z, attention.output_weight())
        written = writes + bias * attention.gain()
        read = total if model.graph.parallel else total + written
        yield f"sum of writers before m{layer}", read, kept.mlp_in[layer]
        total = total + written + kept.mlp_out[layer]
    yield "sum of writers", total, final


def _parts_differ(model: Model, what: str, error: float, tolerance: float) -> WiremapError:
    hooked = [name for name, hook in model.bridge.hook_dict.items() if hook.has_hooks()]
    if hooked:
        return InputError(
            f"hooks on the bridge change its {what} (by {error:.1e} of the largest value): "
            f"{', '.join(hooked[:5])}. wiremap studies the model without hooks; remove them "
            "(bridge.reset_hooks()) or write the change into the weights"
        )
    if at_least_float32(model.dtype) != model.dtype:
        return WiremapError(
            f"model {model.name}: in {model.dtype} its {what} cannot be computed closely enough "
            f"(off by {error:.1e} of the largest value, allowed {tolerance:.0e}); use float32 "
            "(--dtype float32)"
        )
    return WiremapError(
        f"model {model.name}: the {what} computed from its parts differ from its own by "
        f"{error:.1e} of the largest value (allowed {tolerance:.0e}), so its edges cannot be "
        f"trusted. Please report this with the model's config (architecture "
        f"{model.architecture})"
    )
