"""Crossings: summed over queries they are scores by position, and each entry is the slow model's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from slow import ORDINARY, SlowModel, normed
from slow_scores import OneReader, SlowScores
from torch import Tensor

from wiremap.edges import InputError, Model, PromptPairs, score_edges
from wiremap.edges.scores.crossing import Crossings, score_crossings

Options = dict[str, Any]

N_POS = 6
KINDS = ("gpt2", "llama-gqa", "llama-gqa per query", "gemma3", "olmo2")


@functools.cache
def twins(kind: str) -> tuple[Model, SlowModel]:
    kind, _, per_query = kind.partition(" ")
    hf = tiny.hf_model(kind)
    slow = SlowModel(hf, bool(per_query))
    return Model(tiny.bridge(hf), name=kind, kv="per-query" if per_query else "grouped"), slow


def into_keys_and_values(model: Model) -> list[str]:
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    return [name for name in names if name.endswith(("<k>", "<v>"))]


def assert_same(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


# ---- sums


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "clean"},
        {"gradient": "integrated", "steps": 2, "direction": "denoising"},
        {"gradient": "relevance"},
    ],
    ids=lambda options: options["gradient"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_over_queries_are_scores_by_position(
    kind: str, options: Options, some_pairs: PromptPairs
) -> None:
    model, _ = twins(kind)
    names = into_keys_and_values(model)
    found = score_crossings(model, some_pairs, names, **options)
    each = score_edges(model, some_pairs, reader="exact", positions="each", **options).by_position
    assert each is not None
    assert found.edges == tuple(names)
    rows, columns = torch.tensor([model.graph.edge(name) for name in names]).T
    assert_same(found.scores.sum(1), each[:, rows, columns].T)
    # No query looks at a key behind it.
    assert not found.scores.triu(1).any()
    assert bool(found.scores.tril(-1).any())


# ---- single entries


def slow_crossing(scores: SlowScores, edge: str) -> Tensor:
    """The scores ``[query key]`` of an edge: one key or value patched alone, one query's row."""
    slow, pairs, edited = scores.slow, scores.pairs, scores.edited
    writer, reader = edge.split("->")
    base, other = (
        scores.writes[edited],
        scores.writes["corrupted" if edited == "clean" else "clean"],
    )
    run = OneReader(slow, pairs, edited)
    gradients = [scores.by_output(one) for one in scores.passes]
    layer, slot = int(reader[1 : reader.index(".")]), reader[-2]
    names = [slow.slot_name(layer, slot, at) for at in range(slow.n_readers(slot))]
    table = torch.zeros(N_POS, N_POS, dtype=torch.float64)
    for position in range(N_POS):
        new_input = run.inputs[reader].clone()
        new_input[:, position] += (other[writer] - base[writer])[:, position]
        x = normed(slow.blocks[layer].attention_norm, new_input, ORDINARY)
        new = slow.project(layer, slot, names.index(reader), x)
        read = {**run.values, reader: new}
        for head in range(slow.n_heads):
            of_head = slow.slot_names(layer, head)
            if reader not in of_head:
                continue
            query, key, value = (read[name] for name in of_head)
            moved = slow.pattern(query, key, layer) @ value - run.values[f"a{layer}.h{head}"]
            for at in gradients:
                worth = (moved * at[f"a{layer}.h{head}"]).sum(-1)  # [pair query]
                table[:, position] += worth.mean(0) / len(gradients)
    return -table if edited == "clean" else table


def assert_slow(found: Crossings, scores: SlowScores) -> None:
    for edge, table in zip(found.edges, found.scores, strict=True):
        expected = slow_crossing(scores, edge)
        scale = float(expected.abs().max())
        assert scale > 1e-4
        assert float((table.double() - expected).abs().max()) <= 1e-4 * scale, edge


@pytest.mark.parametrize("kind", KINDS)
def test_each_entry_equals_the_slow_model(kind: str, some_pairs: PromptPairs) -> None:
    model, slow = twins(kind)
    some = into_keys_and_values(model)[::17]
    assert {name[-2] for name in some} == {"k", "v"}
    options: Options = {"gradient": "integrated", "steps": 2}
    found = score_crossings(model, some_pairs, some, **options)
    assert_slow(found, SlowScores(slow, some_pairs, **options))


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_each_entry_equals_the_slow_model_the_other_way_round(
    kind: str, some_pairs: PromptPairs
) -> None:
    model, slow = twins(kind)
    some = into_keys_and_values(model)[5::29]
    options: Options = {"gradient": "gim", "direction": "denoising"}
    found = score_crossings(model, some_pairs, some, **options)
    assert_slow(found, SlowScores(slow, some_pairs, **options))


def test_an_edge_alone_and_among_others_agree(some_pairs: PromptPairs) -> None:
    model, _ = twins("llama-gqa")
    some = into_keys_and_values(model)[::23][::-1]
    together = score_crossings(model, some_pairs, [*some, some[0]])
    assert together.edges == tuple(some)  # each once, as they were given
    for edge, table in zip(together.edges, together.scores, strict=True):
        alone = score_crossings(model, some_pairs, [edge])
        assert_same(alone.scores[0], table)


# ---- batches and memory


@pytest.mark.parametrize("kind", ["llama-gqa", "olmo2"])
def test_batches_and_memory_change_nothing(kind: str) -> None:
    model, pairs = twins(kind)[0], tiny.pairs(3, n_pos=5)
    some = into_keys_and_values(model)[::7]

    def score(pairs: PromptPairs, **changes: Any) -> Tensor:
        options: Options = {"gradient": "integrated", "steps": 3, **changes}
        return score_crossings(model, pairs, some, **options).scores

    whole = score(pairs)
    assert_same(score(pairs, memory_limit=20_000), whole)
    assert_same(score(pairs, batch_size=2), whole)
    alone = [score(tiny.one_pair(pairs, row)) for row in range(3)]
    assert_same(torch.stack(alone).mean(0), whole)


# ---- top


def test_top_names_edge_key_and_query() -> None:
    scores = torch.zeros(2, 3, 3)
    scores[0, 2, 1], scores[1, 1, 0] = -3.0, 2.0
    crossings = Crossings(("m0->a1.h0<k>", "input->a1.h0<v>"), scores)
    assert crossings.top(2) == [
        ("m0->a1.h0<k> @1 to @2", -3.0),
        ("input->a1.h0<v> @0 to @1", 2.0),
    ]
    assert len(crossings.top()) == 2 * 3 * 3


# ---- refusals


def refuse(edges: Sequence[str], message: str, pairs: PromptPairs, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        score_crossings(twins("gpt2")[0], pairs, edges, **options)


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        (["input->a0.h0<q>"], {}, r"keys or values, got input->a0.h0<q>; all others are read and"),
        (["m0->a1.h0<k>", "m0->m1"], {}, "expected edges into keys or values, got m0->m1"),
        (["m0->logits"], {}, "got m0->logits"),
        (["m9->a1.h0<k>"], {}, "unknown writer 'm9'"),
        (["m0->a1.kv0<k>"], {}, "unknown reader 'a1.kv0<k>'"),
        (["m1->a1.h0<k>"], {}, "m1 is computed after"),
        (["m0"], {}, "expected an edge 'writer->reader', got 'm0'"),
        ([], {}, "expected at least one edge into keys or values, got none"),
        (["m0->a1.h0<k>"], {"gradient": "graddrop"}, "signed scores, which gradient graddrop has"),
        (["m0->a1.h0<k>"], {"gradient": "mean"}, "unknown gradient 'mean'"),
        (["m0->a1.h0<k>"], {"memory_limit": 0}, "expected a memory limit above 0 bytes, got 0"),
    ],
)
def test_what_has_no_crossings_is_refused(
    edges: list[str], options: Options, message: str, some_pairs: PromptPairs
) -> None:
    refuse(edges, message, some_pairs, **options)


def test_prompts_of_several_lengths_are_refused() -> None:
    short, long = tiny.pairs(1, n_pos=5), tiny.pairs(1, n_pos=6)
    pad = torch.full((1, 1), -1)
    mixed = PromptPairs(
        torch.cat([torch.cat([short.clean, pad], 1), long.clean]),
        torch.cat([torch.cat([short.corrupted, pad], 1), long.corrupted]),
        torch.cat([short.answers, long.answers]),
        torch.cat([short.wrong, long.wrong]),
    )
    refuse(["m0->a1.h0<k>"], "prompts of one length, got lengths 5, 6", mixed)
