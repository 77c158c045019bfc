"""Gradients by masks of edges: as autograd and finite differences of the slow model have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from slow import SlowModel, Writes, total
from torch import Tensor

from wiremap.edges import InputError, Model, PromptPairs, score_edges
from wiremap.edges.effects.mask_gradients import (
    MaskedRuns,
    mask_gradients,
    mean_mask_gradients,
)
from wiremap.edges.effects.reduced import run_edges
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.model.mlp import Mlp
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import full_mask, live_mask, places_mask
from wiremap.edges.runs.sweep import Resources

KINDS = [*tiny.EVERY_KIND, "llama-gqa per query"]
SOME_KINDS = ["gpt2", "llama-gqa", "neox", "gemma2", "mixtral"]
CLOSE: dict[str, Any] = {
    "rtol": 2e-5,
    "atol": 2e-5,
}  # norms and softmaxes of some kinds are computed in float32


def twins(name: str) -> tuple[Model, SlowModel]:
    kind, _, per_query = name.partition(" ")
    hf = tiny.hf_model(kind).double()
    hf.config._experts_implementation = "eager"  # grouped products have no float64
    slow = SlowModel(hf, bool(per_query))
    return Model(tiny.bridge(hf), kv="per-query" if per_query else "grouped"), slow


def masks(model: Model) -> dict[str, Tensor]:
    """Full, a random half, a tenth, and random fractions of a half."""
    every = full_mask(model.graph)
    random = torch.rand(every.shape, generator=torch.Generator().manual_seed(0))
    half, few = every & (random < 0.5), every & (random < 0.1)
    return {"full": every, "half": half, "few": few, "fractions": half * 2 * random.double()}


def names(model: Model, mask: Tensor) -> list[str]:
    graph = model.graph
    return [graph.edge_name(edge) for edge in graph.edges() if mask[edge.writer, edge.reader]]


def slow_values(slow: SlowModel, pairs: PromptPairs, mask: Tensor) -> Tensor:
    """The logit difference of each pair under a mask of fractions, every reader's input explicit."""
    with torch.no_grad():
        base = slow.run(pairs.corrupted)[1]
    row = {name: index for index, name in enumerate(slow.writers)}
    column = {name: index for index, name in enumerate(slow.readers)}

    def read(reader: str, writes: Writes) -> Tensor:
        changes = [
            mask[row[name], column[reader]] * (write - base[name])
            for name, write in writes.items()
            if name in row  # biases are the same in every run
        ]
        before = {name: base[name] for name in writes}
        return total(reader, before) + torch.stack(changes).sum(0)

    logits = slow.run(pairs.clean, read)[0]
    rows = torch.arange(len(pairs))
    return logits[rows, pairs.answers[:, 0]] - logits[rows, pairs.wrong[:, 0]]


def slow_gradients(slow: SlowModel, pairs: PromptPairs, mask: Tensor) -> tuple[Tensor, Tensor]:
    leaf = mask.double().requires_grad_()
    values = slow_values(slow, pairs, leaf)
    values.mean().backward()
    assert leaf.grad is not None
    return values.detach(), leaf.grad


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_all_edges_are_those_of_the_slow_model(name: str) -> None:
    model, slow = twins(name)
    pairs = tiny.pairs(2)
    for mask in masks(model).values():
        values, expected = slow_gradients(slow, pairs, mask)
        found = mask_gradients(model, pairs, mask)
        torch.testing.assert_close(found.values[0], values, **CLOSE)
        torch.testing.assert_close(found.gradients, expected, **CLOSE)
        # Those of the mask alone, which need not compute what is on no path.
        kept = mask != 0
        inside = mask_gradients(model, pairs, mask, wanted=kept)
        torch.testing.assert_close(inside.values[0], values, **CLOSE)
        torch.testing.assert_close(inside.gradients, expected.where(kept, 0.0), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_finite_differences_of_masked_runs(name: str) -> None:
    model, _ = twins(name)
    step, every = 1e-4, full_mask(model.graph).flatten().nonzero().flatten()
    with MaskedRuns(model, Question(pairs=tiny.pairs(2)), Resources()) as runs:
        for mask in masks(model).values():
            gradients = runs.gradients(mask).gradients.flatten()
            largest = gradients.abs().topk(3).indices.tolist()
            for place in [*largest, *every[:: len(every) // 4].tolist()]:
                change = torch.zeros_like(gradients)
                change[place] = step
                ends = [
                    runs.values(mask.double() + sign * change.view(mask.shape)).mean().item()
                    for sign in (-1, 1)
                ]
                slope = (ends[1] - ends[0]) / (2 * step)
                assert slope == pytest.approx(gradients[place].item(), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("kind", tiny.EVERY_KIND)
def test_at_the_full_circuit_they_are_the_scores_of_the_clean_gradient(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(3)
    scores = score_edges(model, pairs, gradient="clean", reader="linear").scores
    found = mask_gradients(model, pairs, full_mask(model.graph)).gradients
    every = full_mask(model.graph)
    torch.testing.assert_close(found[every].float(), scores[every], rtol=1e-3, atol=1e-4)


def test_a_batch_gives_what_its_pairs_give_alone() -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(4)
    mask = masks(model)["fractions"]
    together = mean_mask_gradients(model, pairs, mask, steps=3)
    alone = [
        mean_mask_gradients(model, tiny.one_pair(pairs, row), mask, steps=3) for row in range(4)
    ]
    values = torch.cat([found.values for found in alone], 1)
    torch.testing.assert_close(together.values, values, rtol=1e-4, atol=1e-5)
    mean = torch.stack([found.gradients for found in alone]).mean(0)
    torch.testing.assert_close(together.gradients, mean, rtol=1e-3, atol=1e-5)
    for rows in (1, 2, 8):  # a part of the mask alone, or two of four pairs each
        cut = mean_mask_gradients(model, pairs, mask, steps=3, batch_size=rows)
        torch.testing.assert_close(together.gradients, cut.gradients, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.values, cut.values, rtol=1e-4, atol=1e-5)


def test_values_are_those_of_reduced_runs() -> None:
    model, pairs = tiny.model("gpt2"), mixed_lengths()
    for mask in list(masks(model).values())[:3]:
        found = mask_gradients(model, pairs, mask).values[0].float()
        torch.testing.assert_close(
            found, run_edges(model, pairs, names(model, mask)).circuit, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_values_alone_are_those_of_reduced_models(kind: str) -> None:
    model, pairs = tiny.model(kind), mixed_lengths()
    with ReducedRuns(model, Question(pairs=pairs), Resources()) as runs:
        for mask in list(masks(model).values())[:3]:
            expected = run_edges(model, pairs, mask).circuit.double()
            torch.testing.assert_close(runs.values(mask), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(runs.values(names(model, mask)), runs.values(mask))
        nothing = torch.zeros_like(full_mask(model.graph))
        torch.testing.assert_close(runs.values(nothing), runs.empty)
        assert runs.n_runs == 10


@pytest.mark.parametrize("kind", [*SOME_KINDS, "neox-sequential"])
def test_circuits_without_groups_are_as_if_run_alone(kind: str) -> None:
    model, pairs = tiny.model(kind), mixed_lengths()
    told: list[tuple[str, int, int]] = []
    resources = Resources(report=lambda *step: told.append(step))
    with ReducedRuns(model, Question(pairs=pairs), resources) as runs:
        for mask in list(masks(model).values())[:3]:
            edges = mask.nonzero()
            order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(1))
            groups = [
                places_mask(model.graph, edges[order[:size]])
                for size in (0, 1, 1, 2, 5, len(edges))
            ]
            groups += [places_mask(model.graph, edges[[place]]) for place in (0, len(edges) // 2)]
            told.clear()
            without = runs.values_without(mask, groups)
            whole = len(groups) * len(pairs)
            assert sum(done for _, done, _ in told) == whole
            assert {(stage, total) for stage, _, total in told} == {
                ("run circuits without edges", whole)
            }
            for values, group in zip(without, groups, strict=True):
                expected = runs.values(mask & ~group)
                torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
            outside = full_mask(model.graph) & ~mask  # edges that the circuit does not have
            same = runs.values_without(mask, [names(model, groups[3]), outside])
            expected = torch.stack([without[3], runs.values(mask)])
            torch.testing.assert_close(same, expected, rtol=1e-4, atol=1e-5)


def test_what_is_run_again_is_only_what_is_downstream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all MLPs, without an edge into the last, that one alone."""
    model, pairs, rows = tiny.model("gpt2"), tiny.pairs(2), list[int]()
    mlp = Mlp.__call__

    def counted(self: Mlp, resid: Tensor, see: Any = None) -> Tensor:
        rows.append(len(resid))
        return mlp(self, resid, see)

    with ReducedRuns(model, Question(pairs=pairs), Resources()) as runs:
        monkeypatch.setattr(Mlp, "__call__", counted)
        runs.values_without(full_mask(model.graph), [["m0->m2"], ["input->m1"], ["m2->logits"]])
    assert rows == [2] * (3 + 1 + 2 + 0)


def mixed_lengths() -> PromptPairs:
    """Pairs of 7 and of 5 tokens."""
    one, other = tiny.pairs(2), tiny.pairs(2, n_pos=5, seed=1)
    short = [torch.nn.functional.pad(x, (0, 2), value=-1) for x in (other.clean, other.corrupted)]
    return PromptPairs(
        torch.cat([one.clean, short[0]]),
        torch.cat([one.corrupted, short[1]]),
        torch.cat([one.answers[:, 0], other.answers[:, 0]]),
        torch.cat([one.wrong[:, 0], other.wrong[:, 0]]),
    )


def test_along_the_line_the_gradients_add_up_to_what_the_circuit_differs() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(3)
    with MaskedRuns(model, Question(pairs=pairs), Resources()) as runs:
        for mask in (full_mask(model.graph), masks(model)["half"]):
            found = runs.gradients_along(mask, 60)
            owed = float((found.gradients * mask).sum())
            difference = (runs.values(live_mask(model.graph, mask)) - runs.empty).mean().item()
            assert owed == pytest.approx(difference, rel=0.02, abs=0.02)


@pytest.mark.parametrize("same_until", [0, 3, 6])
def test_positions_before_the_first_difference_are_left_out(same_until: int) -> None:
    model, pairs = tiny.model("gpt2", dtype=torch.float64), tiny.pairs(2)
    clean = pairs.clean.clone()
    clean[:, :same_until] = pairs.corrupted[:, :same_until]
    clean[:, 6] = 1 + pairs.corrupted[:, 6] % 40
    pairs = PromptPairs(clean, pairs.corrupted, pairs.answers, pairs.wrong)
    mask = masks(model)["fractions"]
    _, expected = slow_gradients(SlowModel(tiny.hf_model("gpt2")), pairs, mask)
    torch.testing.assert_close(mask_gradients(model, pairs, mask).gradients, expected, **CLOSE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[1:], "expected a mask of edges"),
        (lambda mask: torch.ones_like(mask), "does not exist in this model"),
        (lambda mask: torch.where(mask != 0, torch.nan, 0.0), "finite numbers"),
    ],
    ids=["shape", "edges", "nan"],
)
def test_masks_that_cannot_be_are_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    model = tiny.model("gpt2")
    with pytest.raises(InputError, match=message):
        mask_gradients(model, tiny.pairs(2), change(full_mask(model.graph).double()))


def test_less_than_one_step_and_a_constant_metric_are_refused() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    with pytest.raises(InputError, match="at least 1 step"):
        mean_mask_gradients(model, pairs, full_mask(model.graph), steps=0)
    with pytest.raises(InputError, match="does not depend on the logits"):
        mask_gradients(
            model, pairs, full_mask(model.graph), metric=lambda logits, _: logits[:, 0].detach()
        )
