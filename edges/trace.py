"""What a clean and a corrupted run leave behind: differences and gradients, never per head.

Kept are z, the MLP outputs and the gradients of q, k, v and the MLP inputs: O(layers x tokens x
d_model), whatever the number of heads. A head's write, and the gradient at its reader's input,
are made of them when and where they are needed (``attribution``, ``patching``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    final = model.run(resid, kept.noting(keep))
    return Run(resid, kept, final, answer_logits(model, final))


class Tape:
    """A run that can be gone through backwards, block by block, as often as one likes.

    Every block has a graph of its own, from a leaf at its residual stream to its output, so a
    backward pass can begin at any layer with any gradient. No parameter receives one.

    Args:
        resid: what the input writes.
        metric: of the logits at the answer position, one number per row.
        by: names of the activations whose gradients are wanted.
        keep: names of the activations to keep the values of.

    Attributes:
        kept, final, logits: as in ``Run``.
        final_gradient: of the metric, by the last residual stream.
    """

    def __init__(
        self,
        model: Model,
        resid: Float[Tensor, "pair pos d_model"],
        metric: Callable[[Float[Tensor, "pair d_vocab"]], Float[Tensor, "pair"]],
        by: Collection[str],
        keep: Collection[str] = (),
    ) -> None:
        self.kept = Activations()
        self.input = resid.detach()
        if "input" in keep:
            self.kept.input.append(self.input)
        self._by = tuple(by)
        self._leaves: list[Tensor] = []
        self._sites: list[dict[str, Tensor]] = []
        self._outputs: list[Tensor] = []

        def see(name: str, layer: int, value: Tensor) -> Tensor:
            if name in self._by:
                self._sites[layer][name] = value
            if name in keep:
                getattr(self.kept, name).append(value.detach())
            return value

        with torch.enable_grad():
            for layer in range(model.graph.n_layers):
                self._leaves.append(resid.detach().requires_grad_())
                self._sites.append({})
                resid = model.block(layer, self._leaves[layer], see)
                self._outputs.append(resid)
            final = resid.detach().requires_grad_()
            logits = answer_logits(model, final)
            values = metric(logits)
            if not values.requires_grad:
                raise InputError("the metric does not depend on the logits; use another metric")
            (self.final_gradient,) = torch.autograd.grad(values.sum(), final)
        self.final, self.logits = final.detach(), logits.detach()

    def backward(
        self,
        gradient: Float[Tensor, "pair pos d_model"],
        start: int | None = None,
        again: bool = False,
    ) -> Iterator[tuple[int, dict[str, Tensor], Float[Tensor, "pair pos d_model"]]]:
        """Goes backwards from the residual stream before block ``start`` (the last by default).

        Args:
            gradient: by that residual stream.
            again: the tape will be gone through once more; else each block's graph is freed.

        Yields:
            For each block, last first: its layer, the gradients by its activations named in
            ``by``, and the gradient by the residual stream before it.
        """
        for layer in reversed(range(len(self._leaves) if start is None else start)):
            sites = self._sites[layer]
            *found, gradient = torch.autograd.grad(
                self._outputs[layer],
                [*sites.values(), self._leaves[layer]],
                gradient,
                retain_graph=again,
            )
            yield layer, dict(zip(sites, found, strict=True)), gradient


def trace(
    model: Model, batch: PairBatch, metric: Metric, gradient: Gradient, by: Collection[str]
) -> Trace:
    """Both runs of a batch, and the metric's gradients, by the activations named in ``by``.

    Raises:
        InputError: a metric that does not depend on the logits.
        WiremapError: NaN or infinite activations or gradients; the layer and pairs are named.
    """
    writes = ("z", "mlp_out")
    clean = run(model, batch.clean, writes) if gradient == "corrupted" else None
    tokens = batch.clean if gradient == "clean" else batch.corrupted

    def of_logits(logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, "pair"]:
        return metric(logits, Targets.of(batch, clean.logits if clean else logits.detach()))

    tape = Tape(model, model.embed(tokens.to(model.device)), of_logits, by, (*writes, "resid_pre"))
    gradients = Activations()
    input_gradient = tape.final_gradient
    for _, found, below in tape.backward(tape.final_gradient):
        input_gradient = below
        for name in by:
            getattr(gradients, name).insert(0, found[name])
    other = clean or run(model, batch.corrupted, writes)
    one, two = (tape, other) if gradient == "clean" else (other, tape)
    difference = Trace(
        input=one.input - two.input,
        z=[a - b for a, b in zip(one.kept.z, two.kept.z, strict=True)],
        mlp_out=[a - b for a, b in zip(one.kept.mlp_out, two.kept.mlp_out, strict=True)],
        resid_pre=tape.kept.resid_pre,
        gradients=gradients,
        input_gradient=input_gradient,
        final_gradient=tape.final_gradient,
    )
    _refuse_nonfinite(difference, batch, gradient)
    return difference


def first_nonfinite(model: Model, batch: PairBatch) -> str | None:
    """Which activation of which layer is the first that is not finite, in either run, in words."""
    for name_of_run, tokens in (("clean", batch.clean), ("corrupted", batch.corrupted)):
        found: list[str] = []

        def see(name: str, layer: int, value: Tensor, found: list[str] = found) -> Tensor:
            if not found and not bool(torch.isfinite(value).all()):
                found.append(f"{name} of layer {layer}")
            return value

        with torch.no_grad():
            final = model.run(model.embed(tokens.to(model.device)), see)
            logits = answer_logits(model, final)
        if not found and not bool(torch.isfinite(logits).all()):
            found.append("logits")
        if found:
            return f"{found[0]} in the {name_of_run} run"
    return None


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
