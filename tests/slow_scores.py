"""Every edge's score by its definition, from the slow model alone: one pass, one edge at a time.

    linear    (clean - corrupted write) . gradient by what the reader reads
    exact     the reader computed anew with another write in its input, and from what it gives on
              the gradient; into the logits the metric itself

``python tests/slow_scores.py`` writes the committed reference scores anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from slow import ORDINARY, Rules, SlowModel, Values, Writes, normed, total
from torch import Tensor

if TYPE_CHECKING:
    from wiremap.edges import PromptPairs

RULES = {
    "relevance": Rules(freeze_norms=True, identity_activation=True, half_gate=True),
    "gim": Rules(
        freeze_norms=True, softmax_temperature=2.0, q_factor=0.25, k_factor=0.25, v_factor=0.5
    ),
}


def logit_diff(logits: Tensor, pairs: PromptPairs) -> Tensor:
    """Of the one answer and the one wrong answer that each pair has."""
    rows = torch.arange(len(pairs.clean))
    return logits[rows, pairs.answers[:, 0]] - logits[rows, pairs.wrong[:, 0]]


class Pass(NamedTuple):
    """A way back from the metric: the run's input write, and a layer whose write is constant."""

    resid: Tensor
    dropped: int | None = None


class SlowScores:
    """All scores of edges with one rule for gradients.

    Args:
        pairs: of one length.
        gradient: a rule's name. The rules at one run that do not name it take the run edited:
            the clean one for noising, the corrupted one for denoising.
        steps, schedule: of ``integrated``.
        rules: changes of the backward pass; those of ``gradient`` unless given.
    """

    def __init__(
        self,
        slow: SlowModel,
        pairs: PromptPairs,
        gradient: str = "clean",
        direction: str = "noising",
        steps: int = 1,
        schedule: str = "midpoint",
        rules: Rules | None = None,
    ) -> None:
        self.slow, self.pairs = slow, pairs
        self.unsigned = gradient == "graddrop"
        self.rules = RULES.get(gradient, ORDINARY) if rules is None else rules
        clean, corrupted = slow.embed(pairs.clean), slow.embed(pairs.corrupted)
        self.writes = {"clean": slow.run_from(clean)[1], "corrupted": slow.run_from(corrupted)[1]}
        self.edited = "clean" if direction == "noising" else "corrupted"
        edited = clean if direction == "noising" else corrupted
        if gradient == "integrated":
            offset = {"midpoint": 0.5, "left": 0.0}[schedule]
            parts = [(step + offset) / steps for step in range(steps)]
            self.passes = [Pass(part * clean + (1 - part) * corrupted) for part in parts]
        elif gradient == "graddrop":
            self.passes = [Pass(edited, layer) for layer in range(slow.n_layers)]
        else:
            runs = {"clean": [clean], "corrupted": [corrupted], "both": [clean, corrupted]}
            self.passes = [Pass(resid) for resid in runs.get(gradient, [edited])]

    def scores(self, reader: str = "linear", each: bool = False) -> Tensor:
        """Scores ``[pair pos writer reader]``, with one ``pos`` for all if they are not ``each``.

        What is no edge has 0.
        """
        return self.mean_of(self.tables(reader, each))

    def tables(self, reader: str, each: bool) -> Tensor:
        """Signed scores of every pass, ``[pass pair pos writer reader]``."""
        if reader == "linear":
            return self.linear(each)
        return self.exact(each) if reader == "exact" else self.exact_attention(each)

    def mean_of(self, tables: Tensor) -> Tensor:
        """Over the passes that have a gradient; of absolute values with GradDrop."""
        if not self.unsigned:
            return tables.mean(0)
        # What lies in the dropped layer has none: L - 1 passes, but L for the logits.
        n_passes = torch.full((len(self.slow.readers),), self.slow.n_layers - 1)
        n_passes[-1] = self.slow.n_layers
        return tables.abs().sum(0) / n_passes

    def _table(self, n_pos: int) -> Tensor:
        """Zeros, ``[pass pair pos writer reader]``."""
        slow = self.slow
        shape = (len(self.passes), len(self.pairs.clean), n_pos)
        return torch.zeros(*shape, len(slow.writers), len(slow.readers), dtype=torch.float64)

    # ---- linear

    def linear(self, each: bool) -> Tensor:
        table = self._table(self.pairs.clean.shape[1])
        for index, one in enumerate(self.passes):
            by_input = self.by_input(one)
            for column, reader in enumerate(self.slow.readers):
                for writer in self.slow.reads(reader):
                    change = self.writes["clean"][writer] - self.writes["corrupted"][writer]
                    row = self.slow.writers.index(writer)
                    table[index, :, :, row, column] = (change * by_input[reader]).sum(-1).detach()
        return table if each else table.sum(2, keepdim=True)

    def by_input(self, one: Pass) -> Values:
        """The metric's gradient by what each reader reads, by autograd through the whole run."""
        constant = [f"{kind}{one.dropped}" for kind in ("a", "bias", "m")]
        leaves = {
            reader: torch.zeros_like(one.resid).requires_grad_() for reader in self.slow.readers
        }

        def read(reader: str, writes: Writes) -> Tensor:
            seen = {
                name: write.detach() if name.split(".")[0] in constant else write
                for name, write in writes.items()
            }
            return total(reader, seen) + leaves[reader]

        return self._gradients(self.slow.run_from(one.resid, read, self.rules)[0], leaves)

    def _gradients(self, logits: Tensor, leaves: Values) -> Values:
        value = logit_diff(logits, self.pairs).sum()
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    # ---- exact

    def exact(self, each: bool, attention_only: bool = False) -> Tensor:
        slow, edited = self.slow, self.edited
        base, other = self.writes[edited], self.writes[_other(edited)]
        by_output = [self.by_output(one) for one in self.passes]
        readers = OneReader(slow, self.pairs, edited)
        n_pos = self.pairs.clean.shape[1]
        patched = torch.eye(n_pos) if each else torch.ones(1, n_pos)  # which positions
        table = self._table(len(patched))
        sign = -1 if edited == "clean" else 1  # clean minus corrupted
        for column, reader in enumerate(slow.readers):
            if attention_only and reader[-3:] not in ("<q>", "<k>"):
                continue
            for writer in slow.reads(reader):
                row = slow.writers.index(writer)
                for place, positions in enumerate(patched):
                    change = (other[writer] - base[writer]) * positions[:, None]
                    effects = readers.effects(reader, change, by_output)
                    table[:, :, place, row, column] = sign * effects
        return table

    def exact_attention(self, each: bool) -> Tensor:
        """Queries and keys exact, all others linear."""
        table = self.linear(each)
        exact = self.exact(each, attention_only=True)
        columns = [reader[-3:] in ("<q>", "<k>") for reader in self.slow.readers]
        table[..., columns] = exact[..., columns]
        return table

    def by_output(self, one: Pass) -> Values:
        """The metric's gradient by every head's z and by what every MLP writes."""
        leaves: Values = {}

        def see(name: str, value: Tensor) -> Tensor:
            if name not in self.slow.writers or name == "input":
                return value
            leaves[name] = torch.zeros_like(value).requires_grad_()
            return value + leaves[name]

        return self._gradients(self.slow.run_nodes(one.resid, see, one.dropped, self.rules), leaves)


def _other(run: str) -> str:
    return "corrupted" if run == "clean" else "clean"


class OneReader:
    """Readers of one run, computed anew one at a time with something added to their input."""

    def __init__(self, slow: SlowModel, pairs: PromptPairs, run: str) -> None:
        self.slow, self.pairs = slow, pairs
        resid = slow.embed(pairs.clean if run == "clean" else pairs.corrupted)
        self.values = slow.values(resid)
        self.inputs: Values = {}

        def read(reader: str, writes: Writes) -> Tensor:
            self.inputs[reader] = total(reader, writes)
            return self.inputs[reader]

        self.metric = logit_diff(slow.run_from(resid, read)[0], pairs)

    def effects(self, reader: str, change: Tensor, by_output: Sequence[Values]) -> Tensor:
        """On the metric, with each of the gradients. ``[gradients pair]``"""
        new = self.inputs[reader] + change
        if reader == "logits":
            effect = logit_diff(self.slow.unembed(new[:, -1:])[:, 0], self.pairs) - self.metric
            return effect.expand(len(by_output), -1)
        outputs = self._mlp(reader, new) if reader.startswith("m") else self._heads(reader, new)
        moved = {name: value - self.values[name] for name, value in outputs.items()}
        worth = [
            torch.stack([(moved[name] * gradients[name]).sum((1, 2)) for name in moved]).sum(0)
            for gradients in by_output
        ]
        return torch.stack(worth)

    def _mlp(self, reader: str, new: Tensor) -> Values:
        block = self.slow.blocks[int(reader[1:])]
        output = block.mlp(normed(block.mlp_norm, new, ORDINARY), ORDINARY)
        return self.slow.written({reader: output}, block.post_mlp)

    def _heads(self, reader: str, new: Tensor) -> Values:
        """z of every query head that uses this query, key or value."""
        slow, layer, slot = self.slow, int(reader[1 : reader.index(".")]), reader[-2]
        of_slot = [slow.slot_name(layer, slot, at) for at in range(slow.n_readers(slot))]
        x = normed(slow.blocks[layer].attention_norm, new, ORDINARY)
        read = {**self.values, reader: slow.project(layer, slot, of_slot.index(reader), x)}
        found: Values = {}
        for head in range(slow.n_heads):
            names = slow.slot_names(layer, head)
            if reader in names:
                query, key, value = (read[name] for name in names)
                found[f"a{layer}.h{head}"] = slow.pattern(query, key, layer) @ value
        return found


# ---- comparisons


def assert_equal_scores(
    found: Tensor | None, expected: Tensor, slow: SlowModel, without: str = ""
) -> None:
    """Equal to 1e-4 of the largest score of their kind of reader, which must be one to speak of.

    Args:
        found, expected: ``[..., writer reader]``.
        without: kinds of readers whose scores are all 0.
    """
    assert found is not None
    assert found.shape == expected.shape
    error = (found.double().nan_to_num() - expected).abs()
    for kind in ("q", "k", "v", "mlp", "logits"):
        columns = [_kind(reader) == kind for reader in slow.readers]
        scale = float(expected[..., columns].abs().max())
        assert (scale > 1e-3) != (kind in without), kind
        assert float(error[..., columns].max()) <= 1e-4 * scale, kind


def _kind(reader: str) -> str:
    return reader[-2] if reader.endswith(">") else "mlp" if reader != "logits" else reader


# ---- the committed table

REFERENCE = Path(__file__).parent / "edges" / "scores" / "reference_scores.json"
REFERENCE_KIND, REFERENCE_PAIRS = "llama-gqa", {"n_pairs": 2, "n_pos": 6}
REFERENCE_RULES: dict[str, dict[str, Any]] = {
    "clean": {"gradient": "clean"},
    "integrated": {"gradient": "integrated", "steps": 3},
}


def reference_scores(slow: SlowModel, pairs: PromptPairs) -> dict[str, dict[str, float]]:
    """Scores of every edge, to six digits, by ``gradient reader``."""
    tables: dict[str, dict[str, float]] = {}
    for name, options in REFERENCE_RULES.items():
        rule = SlowScores(slow, pairs, **options)
        for reader in ("linear", "exact"):
            table = rule.scores(reader).sum(1).mean(0)
            tables[f"{name} {reader}"] = {
                f"{writer}->{column}": float(
                    f"{table[slow.writers.index(writer), slow.readers.index(column)]:.6g}"
                )
                for writer, column in slow.edges
            }
    return tables


def _write() -> None:
    import tiny  # the models alone; no scores

    slow = SlowModel(tiny.hf_model(REFERENCE_KIND))
    tables = reference_scores(slow, tiny.pairs(**REFERENCE_PAIRS))
    REFERENCE.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    _write()
