"""Reader rules, positions, spans and candidates, against the slow model one edge at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from comparing import name_of
from slow import SlowModel
from slow_scores import SlowScores, assert_equal_scores
from torch import Tensor

from wiremap.edges import EdgeScores, InputError, Model, PromptPairs, patch_edges, score_edges
from wiremap.edges.names.vocabulary import GRADIENTS, READERS

Options = dict[str, Any]

DIRECTIONS = ("noising", "denoising")
N_POS = 6


def assert_same(found: Tensor | None, expected: Tensor | None) -> None:
    """Equal to rounding: 1e-5 of the largest."""
    assert found is not None
    assert expected is not None
    scale = float(expected.nan_to_num().abs().max())
    assert scale > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)


def edge_names(model: Model) -> list[str]:
    return [model.graph.edge_name(edge) for edge in model.graph.edges()]


def by_edge(model: Model, table: Tensor) -> Tensor:
    """``[... edge]``, in the order of their names."""
    rows, columns = torch.tensor(list(model.graph.edges())).T
    return table[..., rows, columns]


# ---- against the slow model


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "clean"},
        {"gradient": "integrated", "steps": 2, "direction": "denoising"},
    ],
    ids=name_of,
)
def test_every_edge_equals_the_slow_model(
    every_twins: tuple[Model, SlowModel], some_pairs: PromptPairs, options: Options
) -> None:
    model, slow = every_twins
    expected = SlowScores(slow, some_pairs, **options).scores("exact").sum(1)
    found = score_edges(model, some_pairs, reader="exact", per_pair=True, **options)
    assert_equal_scores(found.per_pair, expected, slow)
    assert_equal_scores(found.scores, expected.mean(0), slow)
    assert (found.reader, found.exact, found.by_position) == ("exact", None, None)


@pytest.mark.parametrize(
    ("gradient", "direction"),
    [
        ("corrupted", "noising"),
        ("integrated", "noising"),
        ("graddrop", "noising"),
        ("graddrop", "denoising"),
        ("relevance", "noising"),
        ("gim", "denoising"),
    ],
)
def test_any_gradient_goes_with_the_exact_reader(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, gradient: str, direction: str
) -> None:
    model, slow = twins
    options: Options = {"gradient": gradient, "direction": direction, "steps": 2}
    expected = SlowScores(slow, some_pairs, **options).scores("exact").sum(1)
    found = score_edges(model, some_pairs, reader="exact", per_pair=True, **options)
    assert_equal_scores(found.per_pair, expected, slow)
    assert found.unsigned == (gradient == "graddrop")


@pytest.mark.parametrize("kind", ["olmo2", "gemma2", "granite"])
@pytest.mark.parametrize("gradient", ["graddrop", "relevance", "gim"])
def test_norms_behind_attention_are_the_gradients_business(
    kind: str, some_pairs: PromptPairs, gradient: str
) -> None:
    """A head's output is taken before them, so that gradients go through them by the rule."""
    hf = tiny.hf_model(kind)
    slow, model = SlowModel(hf), Model(tiny.bridge(hf), name=kind)
    expected = SlowScores(slow, some_pairs, gradient).scores("exact").sum(1)
    found = score_edges(model, some_pairs, gradient=gradient, reader="exact", per_pair=True)
    assert_equal_scores(found.per_pair, expected, slow)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_exact_attention_is_linear_but_for_queries_and_keys(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, direction: str
) -> None:
    model, slow = twins
    options: Options = {"gradient": "clean", "direction": direction}
    expected = SlowScores(slow, some_pairs, **options).scores("exact-attention").sum(1)
    tables: dict[str, Tensor] = {}
    for reader in READERS:
        scores = score_edges(model, some_pairs, reader=reader, per_pair=True, **options).per_pair
        assert scores is not None
        tables[reader] = scores
    found = tables["exact-attention"]
    assert_equal_scores(found, expected, slow)
    for column, name in enumerate(slow.readers):
        of_edge = "exact" if name.endswith(("<q>", "<k>")) else "linear"
        torch.testing.assert_close(
            found[..., column],
            tables[of_edge][..., column],
            rtol=1e-5,
            atol=1e-6,
            equal_nan=True,
        )


def test_no_two_readers_of_the_slow_model_are_the_same(some_pairs: PromptPairs) -> None:
    """Guards the tests above."""
    slow = SlowModel(tiny.hf_model("llama-gqa"))
    cases: list[Options] = [
        {"gradient": "clean"},
        {"gradient": "clean", "direction": "denoising"},
        {"gradient": "integrated", "steps": 2},
        {"gradient": "integrated", "steps": 2, "direction": "denoising"},
        {"gradient": "graddrop"},
        {"gradient": "gim"},
        {"gradient": "relevance"},
    ]
    exact = [SlowScores(slow, some_pairs, **case).scores("exact") for case in cases]
    tables = [*exact, SlowScores(slow, some_pairs).scores()]
    for index, one in enumerate(tables):
        for other in tables[:index]:
            change = (one.abs() - other.abs()).abs()[..., :-1]  # all agree on the logits, exactly
            assert float(change.max()) > 0.05 * float(one[..., :-1].abs().max())


# ---- theorems


@pytest.fixture(scope="module", params=DIRECTIONS)
def linear_effects(request: pytest.FixtureRequest) -> tuple[Model, PromptPairs, str, Tensor]:
    """A linear model, pairs, a direction, and the effects ``[edge pair]``."""
    model, pairs = tiny.linear_model(), tiny.pairs(2, n_pos=N_POS)
    effects = patch_edges(model, pairs, edge_names(model), direction=request.param).effects
    return model, pairs, request.param, effects


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "gradient", [name for name in GRADIENTS if name not in ("graddrop", "gim")]
)
def test_estimates_of_a_linear_model_are_exact(
    linear_effects: tuple[Model, PromptPairs, str, Tensor], gradient: str, reader: str
) -> None:
    model, pairs, direction, effects = linear_effects
    options: Options = {"gradient": gradient, "steps": 3, "direction": direction}
    found = score_edges(model, pairs, reader=reader, per_pair=True, **options)
    assert found.per_pair is not None
    scale = float(effects.abs().max())
    assert scale > 0.1
    error = by_edge(model, found.per_pair).T - effects
    assert float(error.abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("gradient", ["clean", "integrated", "graddrop"])
def test_exact_scores_into_the_logits_are_effects(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, gradient: str, direction: str
) -> None:
    """Of any model, whatever the gradient: nothing comes after them."""
    model, _ = twins
    names = [f"{writer.name}->logits" for writer in model.graph.writers]
    metric = "log_prob"  # far from linear in the logits
    effects = patch_edges(model, some_pairs, names, metric=metric, direction=direction).effects.T
    found = score_edges(
        model,
        some_pairs,
        metric,
        gradient=gradient,
        direction=direction,
        steps=2,
        reader="exact",
        per_pair=True,
    )
    assert found.per_pair is not None
    assert_same(found.per_pair[..., -1], effects.abs() if found.unsigned else effects)


# ---- positions


@pytest.mark.parametrize(
    ("gradient", "reader"),
    [*(("clean", reader) for reader in READERS), ("graddrop", "exact")],
)
def test_positions_equal_the_slow_model(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, gradient: str, reader: str
) -> None:
    model, slow = twins
    expected = SlowScores(slow, some_pairs, gradient).scores(reader, each=True)
    found = score_edges(
        model, some_pairs, gradient=gradient, reader=reader, positions="each", per_pair=True
    )
    assert found.positions == tuple(map(str, range(N_POS)))
    assert_equal_scores(found.by_position, expected.mean(0), slow)
    assert_equal_scores(found.per_pair, expected.sum(1), slow)
    assert found.by_position is not None
    assert_same(found.by_position.sum(0), found.scores)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gemma3", "olmo2", "mixtral"])
def test_positions_of_other_architectures_equal_the_slow_model(
    kind: str, some_pairs: PromptPairs
) -> None:
    """Windows, soft-caps, norms of queries and keys, experts."""
    hf = tiny.hf_model(kind)
    slow, model = SlowModel(hf), Model(tiny.bridge(hf), name=kind)
    expected = SlowScores(slow, some_pairs).scores("exact", each=True)
    found = score_edges(model, some_pairs, gradient="clean", reader="exact", positions="each")
    assert_equal_scores(found.by_position, expected.mean(0), slow)


@pytest.mark.parametrize("reader", READERS)
def test_positions_add_up_but_for_exact_keys(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, reader: str
) -> None:
    """Keys share the softmax's rows: patched one at a time they do something else."""
    model, _ = twins
    each = score_edges(model, some_pairs, reader=reader, positions="each").by_position
    summed = score_edges(model, some_pairs, reader=reader)
    assert each is not None
    assert summed.by_position is None
    assert summed.positions == ()
    scale = float(summed.scores.nan_to_num().abs().max())
    for index, column in enumerate(model.graph.readers):
        change = (each.sum(0) - summed.scores)[: column.n_writers, index].abs().max()
        shared = column.kind == "k" and reader != "linear"
        assert (float(change) < 1e-5 * scale) != shared, column.name


def test_only_the_last_position_of_the_logits_counts(some_pairs: PromptPairs) -> None:
    for reader in READERS:
        found = score_edges(tiny.model("gpt2"), some_pairs, reader=reader, positions="each")
        assert found.by_position is not None
        assert not found.by_position[:-1, :, -1].any()
        assert bool(found.by_position[-1, :, -1].any())


def with_spans(pairs: PromptPairs, spans: Sequence[Any]) -> PromptPairs:
    """The pairs with these in their ``spans`` column."""
    return replace(pairs, features=tuple({"spans": one} for one in spans))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("gradient", ["integrated", "graddrop"])
def test_spans_regroup_the_positions_of_each_pair(
    some_pairs: PromptPairs, gradient: str, reader: str
) -> None:
    """Spans of different places in each pair; what lies in none is outside."""
    hf = tiny.hf_model("llama-gqa")
    slow, model = SlowModel(hf), Model(tiny.bridge(hf), name="llama-gqa")
    options: Options = {"gradient": gradient, "steps": 2}
    pairs = with_spans(
        some_pairs, [{"subject": [1, 3], "end": 5}, {"end": [4, 6], "subject": 0, "verb": (2, 3)}]
    )
    places = {  # of each pair
        "outside": [[0, 3, 4], [1, 3]],
        "subject": [[1, 2], [0]],
        "end": [[5], [4, 5]],
        "verb": [[], [2]],
    }
    # Absolute values are taken of a span's sum, in each pass.
    slow_scores = SlowScores(slow, some_pairs, **options)
    each = slow_scores.tables(reader, each=True)
    expected = [
        slow_scores.mean_of(
            torch.stack([each[:, pair, at].sum(1) for pair, at in enumerate(of_pair)], 1)
        )
        for of_pair in places.values()
    ]
    found = score_edges(model, pairs, reader=reader, positions="spans", per_pair=True, **options)
    assert found.positions == tuple(places)
    by_span = torch.stack(expected, 1)  # [pair span writer reader]
    assert_equal_scores(found.by_position, by_span.mean(0), slow)
    assert_equal_scores(found.per_pair, by_span.sum(1), slow)


def mixed_lengths() -> tuple[PromptPairs, list[PromptPairs]]:
    """Pairs of two lengths, and each of them alone, with spans."""
    short, long = tiny.pairs(1, n_pos=5), tiny.pairs(2, n_pos=8, seed=1)
    spans = [{"end": 4, "start": [0, 2]}, {"end": 7, "start": [0, 3]}, {"end": [6, 8]}]

    def joined(short: Tensor, long: Tensor) -> Tensor:
        short = torch.nn.functional.pad(short, (0, long.shape[1] - short.shape[1]), value=-1)
        return torch.cat([short, long])

    both = PromptPairs(
        joined(short.clean, long.clean),
        joined(short.corrupted, long.corrupted),
        joined(short.answers, long.answers),
        joined(short.wrong, long.wrong),
    )
    alone = [short, tiny.one_pair(long, 0), tiny.one_pair(long, 1)]
    return with_spans(both, spans), [
        with_spans(one, [span]) for one, span in zip(alone, spans, strict=True)
    ]


@pytest.mark.parametrize("gradient", ["integrated", "graddrop"])
@pytest.mark.parametrize("reader", READERS)
def test_prompts_of_several_lengths_have_spans(gradient: str, reader: str) -> None:
    model = tiny.model("llama-gqa")
    pairs, alone = mixed_lengths()
    options: Options = {"gradient": gradient, "steps": 2, "reader": reader, "positions": "spans"}
    together = score_edges(model, pairs, per_pair=True, **options)
    assert together.positions == ("outside", "end", "start")
    assert together.per_pair is not None
    by_position = torch.zeros(3, *together.scores.shape)
    for row, one in enumerate(alone):
        found = score_edges(model, one, **options)
        assert_same(found.scores, together.per_pair[row])
        assert found.by_position is not None
        for name, table in zip(found.positions, found.by_position, strict=True):
            by_position[together.positions.index(name)] += table / len(alone)
    assert_same(together.by_position, by_position)


def test_one_span_of_everything_is_the_sum(some_pairs: PromptPairs) -> None:
    model = tiny.model("gpt2")
    pairs = with_spans(some_pairs, [{"all": [0, N_POS]}] * 2)
    found = score_edges(model, pairs, positions="spans")
    assert found.positions == ("outside", "all")
    assert found.by_position is not None
    assert not found.by_position[0].nan_to_num().any()
    assert_same(found.by_position[1], score_edges(model, some_pairs).scores)


def test_aggregates(some_pairs: PromptPairs) -> None:
    model = tiny.model("gpt2")
    scores = score_edges(model, some_pairs, positions="each")
    assert scores.by_position is not None
    absolute = scores.by_position.abs().sum(0)
    assert scores.aggregated("sum") is scores.scores
    assert torch.equal(by_edge(model, scores.aggregated("sum-of-abs")), by_edge(model, absolute))
    assert bool((by_edge(model, absolute) >= by_edge(model, scores.scores).abs() - 1e-5).all())
    top = scores.top(aggregate="sum-of-abs")
    assert dict(top) == dict(zip(edge_names(model), by_edge(model, absolute).tolist(), strict=True))
    assert [score for _, score in top] == sorted((score for _, score in top), reverse=True)
    for refused in (scores.aggregated, lambda name: scores.top(1, name)):
        with pytest.raises(InputError, match="unknown aggregate 'max'; there are sum, sum-of-abs"):
            refused("max")
    with pytest.raises(InputError, match="sum-of-abs needs scores by position"):
        score_edges(model, some_pairs).top(aggregate="sum-of-abs")


def test_top_by_position(some_pairs: PromptPairs) -> None:
    model = tiny.model("gpt2")
    scores = score_edges(model, some_pairs, positions="each")
    assert scores.by_position is not None
    top = scores.top_by_position()
    assert len(top) == N_POS * model.graph.n_edges
    for name, score in (*top[:20], *top[-20:]):
        edge, position = name.split(" @")
        found = scores.by_position[int(position)][model.graph.edge(edge)]
        assert found.item() == score
    assert [abs(s) for _, s in top] == sorted((abs(s) for _, s in top), reverse=True)
    assert scores.top_by_position(3) == top[:3]
    with pytest.raises(InputError, match="expected scores by position"):
        score_edges(model, some_pairs).top_by_position()


# ---- candidates


def chosen(scores: EdgeScores) -> Tensor:
    assert scores.exact is not None
    return scores.exact


@pytest.mark.parametrize("n", [1, 60])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "integrated", "reader": "exact", "positions": "sum"},
        {"gradient": "clean", "reader": "exact", "positions": "each"},
        {"gradient": "clean", "reader": "exact-attention", "positions": "sum"},
        {"gradient": "graddrop", "reader": "exact", "positions": "each"},
    ],
    ids=name_of,
)
def test_the_best_candidates_are_exact_all_others_linear(
    some_pairs: PromptPairs, options: Options, n: int
) -> None:
    model = tiny.model("llama-gqa")

    def score(**changes: Any) -> EdgeScores:
        return score_edges(model, some_pairs, steps=2, per_pair=True, **{**options, **changes})

    linear, exact, found = score(reader="linear"), score(), score(candidates=n)
    wanted = chosen(found)
    assert wanted.shape == found.scores.shape
    assert {name for name, _ in linear.top(n)} == {
        model.graph.edge_name(edge) for edge in model.graph.edges() if wanted[edge]
    }
    assert int(wanted.sum()) == n
    tables = [
        (found.scores, exact.scores, linear.scores),
        (found.per_pair, exact.per_pair, linear.per_pair),
    ]
    if options["positions"] == "each":
        tables.append((found.by_position, exact.by_position, linear.by_position))
    for mixed, of_exact, of_linear in tables:
        assert mixed is not None
        assert of_exact is not None
        assert of_linear is not None
        assert_same(mixed, torch.where(wanted, of_exact, of_linear))


def test_all_edges_as_candidates_are_all_exact(some_pairs: PromptPairs) -> None:
    for kind in ("gpt2", "neox"):
        model = tiny.model(kind)
        every = score_edges(model, some_pairs, reader="exact", candidates=model.graph.n_edges)
        assert_same(every.scores, score_edges(model, some_pairs, reader="exact").scores)
        assert torch.equal(chosen(every), ~every.scores.isnan())


# ---- batches and memory


@pytest.mark.parametrize("kind", ["llama-gqa", "neox"])
@pytest.mark.parametrize("gradient", ["clean", "integrated", "graddrop"])
def test_a_batch_gives_what_its_pairs_give_alone(kind: str, gradient: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(3, n_pos=N_POS)
    options: Options = {"gradient": gradient, "steps": 2, "reader": "exact"}
    together = score_edges(model, pairs, per_pair=True, **options)
    assert together.per_pair is not None
    for row in range(3):
        alone = score_edges(model, tiny.one_pair(pairs, row), **options)
        assert_same(alone.scores, together.per_pair[row])


@pytest.mark.parametrize("reader", ["exact", "exact-attention"])
@pytest.mark.parametrize("gradient", ["clean", "integrated", "graddrop"])
def test_small_memory_changes_nothing(gradient: str, reader: str) -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(3, n_pos=5)
    options: Options = {
        "gradient": gradient, "steps": 3, "reader": reader, "positions": "each", "per_pair": True,
    }  # fmt: skip
    whole = score_edges(model, pairs, **options)
    changes: list[Options] = [{"memory_limit": 16 * 20_000}, {"batch_size": 2}]
    for change in changes:
        parts = score_edges(model, pairs, **options, **change)
        assert_same(parts.scores, whole.scores)
        assert_same(parts.per_pair, whole.per_pair)
        assert_same(parts.by_position, whole.by_position)


# ---- precision


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float64, 1e-5)])
@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3", "gemma2", "gemma3", "olmo2"])
def test_scores_of_models_of_any_precision_are_float32(
    kind: str, dtype: torch.dtype, bound: float, some_pairs: PromptPairs
) -> None:
    """With norms of queries and keys, of one head or of all, and norms behind attention."""
    model, whole = tiny.model(kind, dtype=dtype), tiny.model(kind)
    for reader in READERS:
        options: Options = {"gradient": "clean", "reader": reader}
        found = score_edges(model, some_pairs, **options).scores
        expected = score_edges(whole, some_pairs, **options).scores.nan_to_num()
        assert found.dtype == torch.float32
        error = (found.nan_to_num() - expected).abs().max() / expected.abs().max()
        assert float(error) < bound, reader


# ---- refusals


def refuse(message: str, pairs: PromptPairs, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        score_edges(tiny.model("gpt2"), pairs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reader": "exactly"},
            "unknown reader 'exactly'; there are linear, exact, exact-attention",
        ),
        ({"candidates": 5}, "candidates are for the exact reader"),
        (
            {"reader": "exact", "candidates": 0},
            r"expected between 1 and [\d,]+ candidates, the edges of the model, got 0",
        ),
        ({"reader": "exact", "candidates": -3}, "got -3; leave them out"),
        ({"reader": "exact", "candidates": 100_000}, "got 100,000; leave them out"),
        ({"positions": "all"}, "unknown positions 'all'; there are sum, each, spans"),
        ({"memory_limit": 0}, "expected a memory limit above 0 bytes, got 0"),
        ({"memory_limit": -1, "reader": "exact"}, "above 0 bytes, got -1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: Options, message: str, some_pairs: PromptPairs
) -> None:
    refuse(message, some_pairs, **options)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([1, 3], "row 2: expected spans as an object of names and positions, got \\[1, 3\\]"),
        (None, "row 2: expected spans as an object"),
        (
            {"subject": [0, N_POS + 1]},
            "span 'subject' within the 6 tokens of its prompt .*got 0 to 7",
        ),
        ({"subject": N_POS}, "span 'subject' within the 6 tokens of its prompt"),
        ({"subject": -1}, "span 'subject' within the 6 tokens of its prompt"),
        ({"subject": [3, 3]}, "span 'subject' within the 6 tokens of its prompt"),
        ({"subject": [4, 2]}, "span 'subject' within the 6 tokens of its prompt"),
        ({"subject": [1, 4], "verb": 3}, "row 2: span 'verb' overlaps another one"),
        ({"subject": "3"}, "row 2: expected span 'subject' as a position or"),
        ({"subject": [1, 2, 3]}, "row 2: expected span 'subject' as a position or"),
        ({"subject": [1.0, 2]}, "row 2: expected span 'subject' as a position or"),
        ({"subject": True}, "row 2: expected span 'subject' as a position or"),
        ({"outside": 3}, "row 2: 'outside' is what lies in no span; rename it"),
    ],
)
def test_spans_that_cannot_be_are_refused(
    spans: Any, message: str, some_pairs: PromptPairs
) -> None:
    refuse(message, with_spans(some_pairs, [{"subject": 2}, spans]), positions="spans")


def test_missing_spans_are_refused(some_pairs: PromptPairs) -> None:
    refuse("expected spans for every pair, row 1 has none", some_pairs, positions="spans")
    some = replace(some_pairs, features=({"spans": {"end": 5}}, {"length": 4}))
    refuse("expected spans for every pair, row 2 has none", some, positions="spans")


def test_positions_of_several_lengths_are_refused() -> None:
    pairs, _ = mixed_lengths()
    refuse("prompts of one length, got lengths 5, 8", pairs, positions="each")
