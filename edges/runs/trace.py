"""What the clean and the corrupted run of a batch leave behind: small tensors only, never per head.

Kept are z, the MLP outputs and the gradients at the readers: O(layers x tokens x d_model), whatever
the number of heads. A head's write, and the gradient at its reader's input, are made of them when
and where they are needed (``readers``, ``patching``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError
from ..model.activations import Activations
from ..model.parts import See
from ..model.transformer import Model
from ..question.metrics import Metric, Targets
from ..question.prompts import PairBatch


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


def answer_logits(
    model: Model, final: Float[Tensor, "row pos d_model"], see: See | None = None
) -> Float[Tensor, "row d_vocab"]:
    """Logits at the last position alone, in float32 at least; ``see`` sees the final norm."""
    logits = model.logits(final[:, -1], see)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def run(model: Model, tokens: Int64[Tensor, "pair pos"], keep: Collection[str]) -> Run:
    """Runs the model on tokens and keeps the named activations."""
    kept = Activations()
    resid = model.embed(tokens.to(model.device))
    final = model.run(resid, kept.noting(keep))
    return Run(resid, kept, final, answer_logits(model, final))


@dataclass(frozen=True, kw_only=True)
class TapeOptions:
    """What a tape takes down of its run.

    Attributes:
        by: names of the activations whose gradients are wanted.
        keep: names of the activations to keep the values of.
        through: what changes how gradients pass an activation; it is shown each after its gradient
            was asked for, so that the change counts for what lies before it.
    """

    by: Collection[str]
    keep: Collection[str] = ()
    through: See | None = None


class Tape:
    """A run that can be gone through backwards, block by block, as often as one likes.

    Every block has a graph of its own, from a leaf at its residual stream to its output, so a
    backward pass can begin at any layer with any gradient. No parameter receives one.

    Args:
        resid: what the input writes.
        metric: of the logits at the answer position, one number per row.
        options: what is taken down of it.

    Attributes:
        kept, final, logits: as in ``Run``.
        final_gradient: of the metric, by the last residual stream.
    """

    def __init__(
        self,
        model: Model,
        resid: Float[Tensor, "pair pos d_model"],
        metric: Callable[[Float[Tensor, "pair d_vocab"]], Float[Tensor, "pair"]],
        options: TapeOptions,
    ) -> None:
        keep, through = options.keep, options.through
        self.kept = Activations()
        self.input = resid.detach()
        if "input" in keep:
            self.kept.add("input", self.input)
        self._by = tuple(options.by)
        self._leaves: list[Tensor] = []
        self._sites: list[dict[str, Tensor]] = []
        self._outputs: list[Tensor] = []

        def see(name: str, layer: int, value: Tensor) -> Tensor:
            if name in self._by:
                value = value if through is None else value.view_as(value)
                self._sites[layer][name] = value
            if name in keep:
                self.kept.add(name, value.detach())
            return value if through is None else through(name, layer, value)

        with torch.enable_grad():
            for layer in range(model.graph.n_layers):
                # Detached, so that no graph reaches into the block before.
                self._leaves.append(resid.detach().requires_grad_())
                self._sites.append({})
                resid = model.blocks[layer](self._leaves[layer], see)
                self._outputs.append(resid)
            final = resid.detach().requires_grad_()
            logits = answer_logits(model, final, through)
            values = metric(logits)
            if not values.requires_grad:
                raise InputError("the metric does not depend on the logits; use another metric")
            # Rows do not mix: the gradient of the sum is that of each row's own value.
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
            # The gradient by a block's input is, for the next round, that by the output before it.
            *by_sites, gradient = torch.autograd.grad(
                self._outputs[layer],
                [*sites.values(), self._leaves[layer]],
                gradient,
                retain_graph=again,
                materialize_grads=True,  # a rule may cut activations off
            )
            yield layer, dict(zip(sites, by_sites, strict=True)), gradient


class BothRuns:
    """The clean and the corrupted run of a batch, each computed when it is first needed.

    Args:
        metric: a function of (logits, targets), one number per row.
        keep: names of the activations that both runs keep.
        streams: those that every run gone back through keeps.

    Attributes:
        depends: whether the metric's gradient was anything but zero so far.
    """

    def __init__(
        self,
        model: Model,
        batch: PairBatch,
        metric: Metric,
        keep: Collection[str],
        streams: Collection[str] = ("resid_pre",),
    ) -> None:
        self.model, self.batch, self.metric = model, batch, metric
        self.depends = False
        self._keep, self._streams = frozenset(keep), frozenset(streams)
        self._runs: dict[str, Run | Tape] = {}

    def at(self, name: str) -> Run | Tape:
        """The run called ``clean`` or ``corrupted``."""
        if name not in self._runs:
            self._runs[name] = run(self.model, self._tokens(name), self._keep)
        return self._runs[name]

    def _tokens(self, name: str) -> Int64[Tensor, "pair pos"]:
        return self.batch.clean if name == "clean" else self.batch.corrupted

    def tape(self, name: str, by: Collection[str], through: See | None = None) -> Tape:
        """The run called ``name``, to be gone through backwards; see ``Tape``."""
        resid = self.model.embed(self._tokens(name).to(self.model.device))
        if name != "clean":
            self.at("clean")  # its logits are what others may be compared with
        options = TapeOptions(by=by, keep=self._keep | self._streams, through=through)
        tape = self._tape(resid, 1, options)
        # Rules change gradients and leave values alone, so no other run of it is needed.
        self._runs.setdefault(name, tape)
        return tape

    def between(self, parts: Collection[float], by: Collection[str]) -> Tape:
        """Runs from inputs on the line from the corrupted (0) to the clean one (1), part by part."""
        corrupted, clean = self.at("corrupted").input, self.at("clean").input
        # [(part pair) pos d_model]
        resid = torch.cat([corrupted + part * (clean - corrupted) for part in parts])
        return self._tape(resid, len(parts), TapeOptions(by=by, keep=self._streams))

    def _tape(self, resid: Tensor, times: int, options: TapeOptions) -> Tape:
        def metric(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row"]:
            # Not there yet when it is the clean run that is taped: then its logits are these.
            clean = self._runs["clean"].logits if "clean" in self._runs else logits.detach()
            return self.metric(logits, Targets.of(self.batch, clean).repeat(times))

        tape = Tape(self.model, resid, metric, options)
        self.depends |= bool(tape.final_gradient.any())
        return tape


def cost_of_trace(model: Model, n_pos: int, n_patterns: int = 4) -> int:
    """Bytes that autograd keeps of one row.

    Args:
        n_patterns: how many tables of the size of attention patterns are kept for each layer.
    """
    residual_like = 60 * n_pos * model.d_model
    patterns = n_patterns * model.graph.n_heads * n_pos**2
    numbers = model.graph.n_layers * (residual_like + patterns) + 3 * model.d_vocab
    return model.dtype.itemsize * numbers


def first_nonfinite(model: Model, batch: PairBatch) -> str | None:
    """Which activation of which layer is the first that is not finite, in either run, in words."""
    for name_of_run, tokens in (("clean", batch.clean), ("corrupted", batch.corrupted)):
        places: list[str] = []

        def see(name: str, layer: int, value: Tensor, places: list[str] = places) -> Tensor:
            masked = name == "scores"  # -inf where a query may not look
            # The first alone tells: what is computed from it is not finite either.
            if not places and not masked and not bool(torch.isfinite(value).all()):
                places.append(f"{name} of layer {layer}")
            return value

        with torch.no_grad():
            final = model.run(model.embed(tokens.to(model.device)), see)
            logits = answer_logits(model, final)
        if not places and not bool(torch.isfinite(logits).all()):
            places.append("logits")
        if places:
            return f"{places[0]} in the {name_of_run} run"
    return None
