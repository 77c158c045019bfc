"""Whether what a model was taken apart into makes the whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError, WiremapError
from ..names.graph import SLOTS
from .activations import Activations
from .borrowing import hooked_modules, hooks_on
from .parts import at_least_float32
from .plain import refuse_altered
from .transformer import Model


def check_parts(model: Model, tokens: Int64[Tensor, "pair pos"]) -> None:
    """Checks that the bridge's parts make its logits: once, and again for longer prompts or
    when hooks came or went.

    The logits computed from the parts must be the bridge's own, hooks included; at every reader the
    writers before it must sum to what it reads; and queries, keys and values, and the gradients
    through them, must be those of the weights that scores are computed with. All to 1e-4 of the
    largest value in float32.

    Raises:
        WiremapError: they are not. InputError, if modules that were changed, or hooks, are the
            reason.
    """
    if model.checked is not None:
        hooks, length = model.checked
        if hooks == hooks_on(model.bridge) and tokens.shape[1] <= length:
            return
    # It may have been altered since it was made a Model of.
    refuse_altered(model.bridge.original_model, model.architecture, model.name, model.bridge)
    tolerance = 1e-4 if at_least_float32(model.dtype) == model.dtype else 3e-2
    for what, error, finite in _errors(model, tokens):
        if not finite:
            raise WiremapError(
                f"model {model.name}: the {what} of a longest prompt is not finite; try float32 "
                "(--dtype float32)"
            )
        if not error <= tolerance:  # so that NaN is refused, too
            raise _parts_differ(model, what, error, tolerance)
    # Anew, because the bridge may have put hooks of its own where its first run needs them.
    model.checked = hooks_on(model.bridge), tokens.shape[1]


@torch.no_grad()
def _errors(model: Model, tokens: Int64[Tensor, "pair pos"]) -> list[tuple[str, float, bool]]:
    """What is compared, in words; the largest difference, as a share of the largest value; and
    whether all values are finite.
    """
    with model.borrowed(with_hooks=True):
        whole = model.bridge(tokens)
    with model.borrowed():  # all of it, for what is compared is made layer by layer
        kept = Activations()
        seen = kept.noting(("resid_pre", "mlp_in", "written", "mlp_out"))
        final = model.run(model.embed(tokens), seen)
        errors: list[tuple[str, float, bool]] = []
        for what, value, expected in chain(
            [("logits", model.logits(final), whole)],
            _sums_of_writers(model, tokens, kept, final),
            _reads(model, kept),
        ):
            largest = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
            error = float((value - expected).abs().max() / largest)
            errors.append((what, error, bool(torch.isfinite(expected).all())))
    return errors


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


def _reads(model: Model, kept: Activations) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What the readers of attention make of a stream, and the gradient through it: by their weights,
    as scores have it, and by running and differentiating their modules.
    """
    for layer, block in enumerate(model.blocks):
        attention, resid = block.attention, kept.resid_pre[layer][:1]
        for slot in SLOTS:
            normed = attention.norm(resid).requires_grad_()
            with torch.enable_grad():
                made = attention.project_raw(slot, normed)
                # Of half their sum of squares: the gradient by what is made is what is made.
                (gradient,) = torch.autograd.grad((made * made.detach()).sum(), normed)
            weight, bias = attention.projection(slot)
            by_weight = torch.einsum("ptm,hme->pthe", normed, weight)
            if bias is not None:
                by_weight = by_weight + bias
            yield f"{slot} of layer {layer}", by_weight, made
            pulled = torch.einsum("pthe,hme->ptm", made, weight)
            yield f"gradient through {slot} of layer {layer}", pulled, gradient


def _parts_differ(model: Model, what: str, error: float, tolerance: float) -> WiremapError:
    if hooked := hooked_modules(model.bridge):
        return InputError(
            f"hooks on the bridge change its {what} (by {error:.1e} of the largest value): "
            f"{', '.join(hooked[:5])}. wiremap studies the model without hooks; remove them "
            "(bridge.reset_hooks(), or handle.remove() of those of torch) or write the change into "
            "the weights"
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
