"""Scores against the slow float64 model, and the theorems they must satisfy."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from slow import SlowModel
from torch import Tensor

from wiremap.edges import (
    InputError,
    Model,
    PromptPairs,
    WiremapError,
    score_edges,
    score_nodes,
)
from wiremap.edges.names.vocabulary import READERS
from wiremap.edges.question.metrics import Targets
from wiremap.edges.scores.rules.registry import recommended_gradient

DIRECTIONS = ("noising", "denoising")
GRADIENTS = ("clean", "corrupted")


def logit_diff(logits: Tensor, pairs: PromptPairs) -> Tensor:
    rows = torch.arange(len(pairs))
    return logits[rows, pairs.answers[:, 0]] - logits[rows, pairs.wrong[:, 0]]


def slow_scores(slow: SlowModel, pairs: PromptPairs, gradient: str) -> Tensor:
    """Every edge's score by autograd through explicit per-edge inputs. ``[pair writer reader]``"""
    runs = (pairs.clean, pairs.corrupted)
    base, other = runs if gradient == "clean" else runs[::-1]
    shape = (len(pairs), len(slow.writers), len(slow.readers))
    amount = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    metric = logit_diff(slow.edited(base, other, amount), pairs).sum()
    (by_amount,) = torch.autograd.grad(metric, amount)
    # Towards the corrupted values the metric falls by the score; towards the clean ones it rises.
    return -by_amount if gradient == "clean" else by_amount


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal to 1e-4 of the largest value."""
    error = (found.double().nan_to_num() - expected).abs().max()
    return bool(error <= 1e-4 * expected.abs().max())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_edge_scores_equal_the_slow_model(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs, gradient: str
) -> None:
    model, slow = every_twins
    expected = slow_scores(slow, pairs, gradient)
    found = score_edges(model, pairs, gradient=gradient, per_pair=True)
    assert found.per_pair is not None
    assert close(found.per_pair, expected)
    assert close(found.scores, expected.mean(0))
    assert float(expected.abs().max()) > 0.1


def test_scores_exist_exactly_where_edges_do(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    model, slow = every_twins
    scores = score_edges(model, pairs).scores
    exists = {
        (slow.writers.index(writer), slow.readers.index(reader)) for writer, reader in slow.edges
    }
    found = (~scores.isnan()).nonzero().tolist()
    assert {(writer, reader) for writer, reader in found} == exists
    assert len(exists) == model.graph.n_edges


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_outgoing_edge_scores_sum_to_the_node_score(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs, gradient: str
) -> None:
    model, _ = every_twins
    edges = score_edges(model, pairs, gradient=gradient).scores
    nodes = score_nodes(model, pairs, "writers", gradient=gradient).scores
    torch.testing.assert_close(
        edges.nansum(1), nodes, rtol=1e-4, atol=1e-4 * float(nodes.abs().max())
    )


def test_outgoing_relevance_sums_to_the_relevance_of_the_node(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    """By relevance, or gim where that has no rule for the experts."""
    model, _ = every_twins
    for direction in DIRECTIONS:
        rule = "gim" if model.blocks[0].mlp.experts() else "relevance"
        edges = score_edges(model, pairs, gradient=rule, direction=direction)
        nodes = score_nodes(model, pairs, "writers", gradient=rule, direction=direction)
        assert edges.gradient == nodes.gradient == rule
        scale = float(nodes.scores.abs().max())
        assert scale > 0.1
        torch.testing.assert_close(
            edges.scores.nansum(1), nodes.scores, rtol=1e-4, atol=1e-4 * scale
        )


def test_node_scores_equal_the_slow_model(
    twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    model, slow = twins
    expected = slow_scores(slow, pairs, "clean").sum(2)
    found = score_nodes(model, pairs, "writers", per_pair=True)
    assert found.per_pair is not None
    assert close(found.per_pair, expected)


def test_a_batch_gives_what_its_pairs_give_alone(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(4)
    together = score_edges(model, pairs, per_pair=True).per_pair
    assert together is not None
    for row in range(4):
        one = PromptPairs(
            pairs.clean[row : row + 1],
            pairs.corrupted[row : row + 1],
            pairs.answers[row : row + 1],
            pairs.wrong[row : row + 1],
        )
        torch.testing.assert_close(
            score_edges(model, one).scores, together[row], rtol=1e-4, atol=1e-5, equal_nan=True
        )


def test_small_chunks_and_batches_change_nothing() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(4)
    for reader in READERS:
        whole = score_edges(model, pairs, reader=reader).scores
        in_parts = score_edges(
            model, pairs, reader=reader, batch_size=3, memory_limit=16 * 20_000
        ).scores
        torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_prompts_of_several_lengths_are_never_padded() -> None:
    model = tiny.model("llama-gqa")
    short, long = tiny.pairs(2, n_pos=5), tiny.pairs(3, n_pos=8, seed=1)

    def padded(tokens: Tensor) -> Tensor:
        return torch.nn.functional.pad(tokens, (0, 8 - tokens.shape[1]), value=-1)

    mixed = PromptPairs(
        torch.cat([padded(short.clean), long.clean]),
        torch.cat([padded(short.corrupted), long.corrupted]),
        torch.cat([short.answers, long.answers]),
        torch.cat([short.wrong, long.wrong]),
    )
    expected = (2 * score_edges(model, short).scores + 3 * score_edges(model, long).scores) / 5
    found = score_edges(model, mixed).scores
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_top_is_ordered_by_magnitude() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs()
    scores = score_edges(model, pairs)
    top = scores.top()
    assert len(top) == model.graph.n_edges
    assert [abs(score) for _, score in top] == sorted((abs(s) for _, s in top), reverse=True)
    name, score = scores.top(1)[0]
    edge = model.graph.edge(name)
    assert scores.scores[edge.writer, edge.reader].item() == score
    nodes = score_nodes(model, pairs, "writers")
    assert nodes.top(1)[0][1] == nodes.scores[nodes.scores.abs().argmax()].item()


def test_no_parameter_gets_a_gradient() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs()
    score_edges(model, pairs)
    assert all(weight.grad is None for weight in model.bridge.parameters())


def test_progress_counts_pairs() -> None:
    done: list[int] = []
    score_edges(
        tiny.model("gpt2"), tiny.pairs(5), batch_size=2, progress=lambda _, n, total: done.append(n)
    )
    assert done == [2, 2, 1]


def test_directions_choose_the_gradient() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs()
    for direction, gradient in zip(DIRECTIONS, GRADIENTS, strict=True):
        by_direction = score_nodes(model, pairs, "writers", direction=direction).scores
        by_gradient = score_nodes(model, pairs, "writers", gradient=gradient).scores
        assert torch.equal(by_direction, by_gradient)


@pytest.mark.parametrize(
    ("kind", "metric", "gradient"),
    [
        ("gpt2", "logit_diff", "integrated"),
        ("llama-gqa", "prob_diff", "integrated"),
        ("mixtral", "logit_diff", "integrated"),
        ("qwen2-moe", "log_prob", "integrated"),
        ("gpt2", "kl", "corrupted"),
        ("mixtral", "kl", "corrupted"),
    ],
)
def test_the_recommended_gradient_is_taken(kind: str, metric: str, gradient: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs()
    assert recommended_gradient(metric) == gradient
    by_default = score_edges(model, pairs, metric)
    assert by_default.gradient == gradient
    by_name = score_edges(model, pairs, metric, gradient=gradient)
    torch.testing.assert_close(by_default.scores, by_name.scores, rtol=0, atol=0, equal_nan=True)
    other = score_edges(model, pairs, metric, gradient="both").scores
    assert float((by_name.scores - other).nan_to_num().abs().max()) > 1e-3


def test_a_gradient_is_recommended_for_no_model_in_particular() -> None:
    def own(logits: Tensor, targets: Targets) -> Tensor:
        return logits[:, 0]

    assert recommended_gradient() == recommended_gradient(own) == "integrated"
    assert recommended_gradient("kl") == "corrupted"
    assert score_edges(tiny.model("gpt2"), tiny.pairs(), own).gradient == "integrated"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "fidelity"}, "unknown metric 'fidelity'; there are logit_diff"),
        ({"gradient": "mean"}, "unknown gradient 'mean'; there are clean, corrupted"),
        ({"direction": "up"}, "unknown direction 'up'; there are noising, denoising"),
        ({"metric": "kl", "gradient": "clean"}, "metric kl is 0 at the clean run"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_edges(tiny.model("gpt2"), tiny.pairs(), **options)


def test_a_constant_metric_is_refused() -> None:
    def constant(logits: Tensor, targets: Targets) -> Tensor:
        return 0 * logits[:, 0]

    with pytest.raises(InputError, match="does not change with the model's output"):
        score_edges(tiny.model("gpt2"), tiny.pairs(), metric=constant)


def test_infinite_activations_name_the_layer_and_the_pair() -> None:
    model, pairs = tiny.model("neox"), tiny.pairs()
    elsewhere = torch.cat([pairs.clean, pairs.corrupted[[0, 2]]])
    token = next(token for token in pairs.corrupted[1].tolist() if token not in elsewhere)
    with torch.no_grad():
        model.bridge.embed.weight[token] = 3e38  # finite, but its square is not
    with pytest.raises(
        WiremapError,
        match=r"NaN or infinite values in the q of layer 0 in the corrupted run, in row 2",
    ):
        score_edges(model, pairs)


def test_float16_streams_beyond_its_squares_keep_their_scores() -> None:
    """A residual entry above 256 has no square in float16; massive activations are common."""
    scores: list[Tensor] = []
    for dtype in (torch.float32, torch.float16):
        hf = tiny.hf_model("gpt2")
        with torch.no_grad():
            hf.transformer.h[0].mlp.c_proj.bias[0] += 300
            hf.transformer.h[2].mlp.c_proj.bias[0] -= 300
        model = Model(tiny.bridge(hf.to(dtype)), name="massive")
        scores.append(score_edges(model, tiny.pairs()).scores[:, model.graph.attention_readers(1)])
    exact, half = (table.nan_to_num() for table in scores)
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_metric_that_averages_over_rows_is_refused() -> None:
    model = tiny.model("gpt2")
    with pytest.raises(InputError, match=r"one number per row, \[15\], got \[\]"):
        score_edges(model, tiny.pairs(), lambda logits, targets: logits.mean())


def test_one_saturated_pair_does_not_stop_the_others() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs()

    def clamped(logits: Tensor, targets: Targets) -> Tensor:
        right = logits.gather(1, targets.answers)[:, 0]
        return right * (targets.answers[:, 0] != pairs.answers[0, 0])

    together = score_edges(model, pairs, clamped).scores
    alone = score_edges(model, pairs, clamped, batch_size=1).scores
    torch.testing.assert_close(together, alone, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_the_bridge_is_given_back_while_an_error_is_still_held() -> None:
    model = tiny.model("gpt2")
    weight = next(model.bridge.parameters()).requires_grad_(True)

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_edges(model, tiny.pairs(), progress=stop)
    assert weight.requires_grad
