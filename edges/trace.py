"""What a clean and a corrupted run leave behind: differences and gradients, never per head.

Kept are z, the MLP outputs and the gradients of q, k, v and the MLP inputs: O(layers x tokens x
d_model), whatever the number of heads. A head's write, and the gradient at its reader's input,
are made of them when and where they are needed (``attribution``, ``patching``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .errors import InputError, WiremapError
from .metrics import Metric, Targets
from .model import Activations, Model
from .prompts import PairBatch, name_rows

Gradient = Literal["clean", "corrupted"]
GRADIENTS: tuple[Gradient, ...] = ("clean", "corrupted")


@dataclass(frozen=True)
class Run:
    """One run of a batch, without gradients.

    Attributes:
        kept: the activations asked for.
        input, final: the first and the last residual stream.
        logits: at the answer position, in float32 at least.
    """

    input: Float[Tensor, "pair pos d_model"]
    kept: Activations
    final: Float[Tensor, "pair pos d_model"]
    logits: Float[Tensor, "pair d_vocab"]


@dataclass(frozen=True)
class Trace:
    """Differences (clean - corrupted) of all writes, and gradients of the metric at one run.

    Attributes:
        input, z, mlp_out: the differences of what was written.
        resid_pre: the residual streams of the run the gradients belong to.
        gradients: by the activations asked for.
        input_gradient, final_gradient: by the first and the last residual stream.
    """

    input: Float[Tensor, "pair pos d_model"]
    z: list[Tensor]
    mlp_out: list[Tensor]
    resid_pre: list[Tensor]
    gradients: Activations
    input_gradient: Float[Tensor, "pair pos d_model"]
    final_gradient: Float[Tensor, "pair pos d_model"]


def answer_logits(
    model: Model, final: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits at the last position alone, in float32 at least."""
    logits = model.logits(final[:, -1])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def run(model: Model, tokens: Int64[Tensor, "pair pos"], keep: Collection[str]) -> Run:
    """Runs the model on tokens and keeps the named activations."""
    kept = Activations()
    resid = model.embed(tokens.to(model.device))
    final = model.run(resid, kept, frozenset(keep))
    return Run(resid, kept, final, answer_logits(model, final))


def trace(
    model: Model, batch: PairBatch, metric: Metric, gradient: Gradient, by: Collection[str]
) -> Trace:
    """Both runs of a batch, and the metric's gradients, by the activations named in ``by``.

    Only activations receive a gradient, through ``torch.autograd.grad`` on an embedding leaf.

    Raises:
        InputError: a metric that does not depend on the logits.
        WiremapError: NaN or infinite activations or gradients; the layer and pairs are named.
    """
    writes = ("z", "mlp_out")
    clean_run = run(model, batch.clean, writes) if gradient == "corrupted" else None
    tokens = batch.clean if gradient == "clean" else batch.corrupted
    kept = Activations()
    with torch.enable_grad():
        resid = model.embed(tokens.to(model.device)).detach().requires_grad_()
        kept_names = frozenset((*writes, "resid_pre", *by))
        final = model.run(resid, kept, kept_names)
        logits = answer_logits(model, final)
        clean_logits = clean_run.logits if clean_run else logits.detach()
        values = metric(logits, Targets.of(batch, clean_logits))
        if not values.requires_grad:
            raise InputError("the metric does not depend on the logits; use another metric")
        inputs = [resid, final, *(tensor for name in by for tensor in getattr(kept, name))]
        found = iter(torch.autograd.grad(values.sum(), inputs))
    del logits
    input_gradient, final_gradient = next(found), next(found)
    gradients = Activations()
    for name in by:
        getattr(gradients, name).extend(next(found) for _ in range(model.graph.n_layers))
    resid_pre = [tensor.detach() for tensor in kept.resid_pre]
    own = (resid.detach(), [t.detach() for t in kept.z], [t.detach() for t in kept.mlp_out])
    del kept, inputs, values
    other = clean_run or run(model, batch.corrupted, writes)
    sign = 1 if gradient == "clean" else -1
    difference = Trace(
        input=sign * (own[0] - other.input),
        z=[sign * (one - two) for one, two in zip(own[1], other.kept.z, strict=True)],
        mlp_out=[sign * (one - two) for one, two in zip(own[2], other.kept.mlp_out, strict=True)],
        resid_pre=resid_pre,
        gradients=gradients,
        input_gradient=input_gradient,
        final_gradient=final_gradient,
    )
    _refuse_nonfinite(difference, batch, gradient)
    return difference


def _refuse_nonfinite(found: Trace, batch: PairBatch, gradient: str) -> None:
    """Raises WiremapError, with the first layer and the pairs, if anything traced is not finite."""
    finite = torch.isfinite(found.input_gradient).flatten(1).all(1)
    for tensor in (*found.z, *found.mlp_out):
        finite &= torch.isfinite(tensor).flatten(1).all(1)
    if bool(finite.all()):
        return
    rows = batch.rows[~finite.cpu()].tolist()
    for layer, (z, mlp_out) in enumerate(zip(found.z, found.mlp_out, strict=True)):
        for what, tensor in (("attention", z), ("MLP", mlp_out)):
            if not bool(torch.isfinite(tensor).all()):
                raise WiremapError(
                    f"NaN or infinite values in the {what} of layer {layer} "
                    + name_rows(rows, "try float32 (--dtype float32)")
                )
    raise WiremapError(
        f"NaN or infinite gradient at the {gradient} run "
        + name_rows(rows, "try float32 (--dtype float32) or another metric")
    )
