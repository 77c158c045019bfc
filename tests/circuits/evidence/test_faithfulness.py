"""Faithfulness and its curves: figures by hand, and the ends that are known."""

from __future__ import annotations

import json

import induction_by_hand as by_hand
import pytest
import tiny
import torch

from wiremap.circuits import evaluate
from wiremap.circuits.evidence.faithfulness import (
    MIB_SIZES,
    Curve,
    CurvePoint,
    Localization,
    curve,
    localize,
    read_metrics,
)
from wiremap.edges import InputError, Model, PromptPairs, WiremapWarning, score_edges
from wiremap.edges.effects.reduced import run_edges


@pytest.fixture(scope="module")
def known() -> tuple[Model, PromptPairs]:
    return by_hand.model(), by_hand.pairs()


def drawn_by_hand(values: list[float], sizes: list[float]) -> Curve:
    points = (CurvePoint(size, 1, 1, value) for size, value in zip(sizes, values, strict=True))
    return Curve(tuple(points), 2.0, 0.0, 8, 100)


def test_areas_equal_figures_by_hand() -> None:
    found = drawn_by_hand([0.0, 0.5, 1.5, 1.0], [0.1, 0.2, 0.5, 1.0])
    # 0.1 * (0 + 0.5) / 2 + 0.3 * (0.5 + 1.5) / 2 + 0.5 * (1.5 + 1) / 2
    assert found.area == pytest.approx(0.025 + 0.3 + 0.625)
    # |1 - f| = 1, 0.5, 0.5, 0
    assert found.distance == pytest.approx(0.1 * 0.75 + 0.3 * 0.5 + 0.5 * 0.25)
    assert found.average == pytest.approx(0.75)
    both = Localization(signed=found, absolute=drawn_by_hand([0.0, 1.0], [0.5, 1.0]))
    assert both.cpr == pytest.approx(0.95)
    assert both.cmd == pytest.approx(0.25)


def test_a_perfect_curve_has_the_area_mib_says() -> None:
    found = drawn_by_hand([1.0] * 10, list(MIB_SIZES))
    assert found.area == pytest.approx(0.999)
    assert found.distance == 0


@pytest.mark.filterwarnings("ignore::wiremap.edges.WiremapWarning")  # of empty circuits
@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "gemma2"])
def test_points_are_those_of_evaluate(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(4)
    ranking = [name for name, _ in score_edges(model, pairs).top()]
    found = curve(model, pairs, ranking, batch_size=3)
    assert [point.fraction for point in found.points] == list(MIB_SIZES)
    assert found.n_edges == model.graph.n_edges
    for point in found.points:
        assert point.asked == int(point.fraction * model.graph.n_edges)
        places = [model.graph.edge(name) for name in ranking[: point.asked]]
        live = [model.graph.edge_name(edge) for edge in model.graph.live(places)]
        assert point.kept == len(live)
        expected = evaluate(model, pairs, live)
        assert point.faithfulness == pytest.approx(expected.faithfulness, abs=1e-3)
        assert (found.full, found.empty) == pytest.approx((expected.full, expected.empty), abs=1e-4)
    assert found.points[0].faithfulness == pytest.approx(0, abs=1e-6)
    assert found.points[-1].faithfulness == pytest.approx(1, abs=1e-4)


def test_rankings_by_sign_and_by_magnitude(known: tuple[Model, PromptPairs]) -> None:
    """Scores say which edges matter; with a large negative one on an idle edge in the way."""
    model, pairs = known
    scores = dict.fromkeys(by_hand.CIRCUIT, 1.0) | {"m0->logits": -9.0}
    sizes = [5 / model.graph.n_edges + 1e-9, 6 / model.graph.n_edges + 1e-9, 1.0]
    found = localize(model, pairs, scores, sizes=sizes)
    assert [point.asked for point in found.signed.points] == [5, 6, model.graph.n_edges]
    assert [point.kept for point in found.signed.points] == [5, 5, model.graph.n_edges]
    assert [p.faithfulness for p in found.signed.points] == pytest.approx([1, 1, 1], abs=1e-4)
    assert found.absolute.points[0].faithfulness < 0.3
    assert found.absolute.points[1].faithfulness == pytest.approx(1, abs=1e-4)
    assert found.cpr == pytest.approx(1 - sizes[0], abs=1e-4)
    missing = 1 - found.absolute.points[0].faithfulness
    assert found.cmd == pytest.approx(missing * (sizes[1] - sizes[0]) / 2, abs=1e-4)
    document = json.loads(json.dumps(found.as_document(), allow_nan=False))
    assert document["cpr"] == document["signed"]["area_under_the_faithfulness_curve"]
    assert document["cmd"] == document["absolute"]["area_between_the_faithfulness_curve_and_1"]


def test_a_short_ranking_is_taken_whole_and_the_model_at_the_end(
    known: tuple[Model, PromptPairs],
) -> None:
    found = curve(*known, by_hand.CIRCUIT[:2], sizes=[0.5, 1.0])
    assert [point.asked for point in found.points] == [2, known[0].graph.n_edges]
    assert [point.kept for point in found.points] == [0, known[0].graph.n_edges]
    assert [p.faithfulness for p in found.points] == pytest.approx([0, 1], abs=1e-5)


def test_an_empty_circuit_is_worth_nothing(known: tuple[Model, PromptPairs]) -> None:
    with pytest.warns(WiremapWarning, match="no edges: .* a faithfulness of 0"):
        assert evaluate(*known, []).faithfulness == 0


def test_metrics_of_one_run_are_those_of_their_own(known: tuple[Model, PromptPairs]) -> None:
    edges = by_hand.CIRCUIT
    found = {
        one.metric: one
        for one in read_metrics(*known, edges, metrics=("kl", "accuracy", "log_prob"))
    }
    assert found["accuracy"].full == found["accuracy"].circuit == 1
    assert found["accuracy"].empty < 0.5
    assert found["accuracy"].standard_errors is not None
    assert found["accuracy"].standard_errors[0] == 0
    assert found["kl"].full == 0
    assert found["kl"].empty < -1
    assert found["kl"].circuit == pytest.approx(0, abs=1e-5)
    for metric, one in found.items():
        values = run_edges(*known, edges, metric=metric)
        assert one.empty == pytest.approx(values.empty.double().mean().item(), rel=1e-6)
        error = values.empty.double().std() / len(values.empty) ** 0.5
        assert one.standard_errors is not None
        assert one.standard_errors[1] == pytest.approx(error.item(), rel=1e-6)
    (alone,) = read_metrics(known[0], tiny.one_pair(known[1], 0), edges, metrics=["kl"])
    assert alone.standard_errors is None


@pytest.mark.parametrize(
    ("ranking", "sizes", "message"),
    [
        ([], MIB_SIZES, "expected a ranking of edges, got none"),
        (["input->logits"] * 2, MIB_SIZES, "each edge once in a ranking"),
        (["input->logit"], MIB_SIZES, "unknown reader 'logit'"),
        (["input->logits"], [], "expected growing fractions"),
        (["input->logits"], [0.5, 0.1], "expected growing fractions"),
        (["input->logits"], [0.0, 1.0], "expected growing fractions"),
        (["input->logits"], [1.0, 1.5], "expected growing fractions"),
    ],
)
def test_wrong_input_is_refused(
    known: tuple[Model, PromptPairs], ranking: list[str], sizes: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        curve(*known, ranking, sizes=sizes)


def test_nothing_to_be_faithful_to_is_refused(known: tuple[Model, PromptPairs]) -> None:
    model, pairs = known
    same = PromptPairs(pairs.clean, pairs.clean, pairs.answers, pairs.wrong)
    for measure in (curve, evaluate):
        with pytest.raises(InputError, match="nothing to be faithful to"):
            measure(model, same, ["input->logits"])
    with pytest.raises(InputError, match="expected finite scores to rank by, got nan for input"):
        localize(model, pairs, {"input->logits": torch.nan})
