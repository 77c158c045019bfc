"""Bootstrap over pairs, against a loop, and where the answer is known."""

from __future__ import annotations

import json
from itertools import combinations

import numpy
import pytest
import torch
from torch import Tensor

from wiremap.circuits.evidence.stability import bootstrap, keep_above, keep_largest
from wiremap.circuits.record.intervals import resampled_means
from wiremap.edges import InputError

NAMES = ("input->m0", "m0->logits", "input->logits", "m1->logits")


@pytest.fixture
def effects() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 12, generator=generator)
    return noise + torch.tensor([3.0, -2.0, 0.3, 0.0])[:, None]


def test_it_equals_a_loop(effects: Tensor) -> None:
    n_resamples, n_pairs = 150, effects.shape[1]
    found = bootstrap(
        NAMES, effects, keep_largest(3), n_resamples=n_resamples, confidence=0.9, seed=4
    )
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randint(n_pairs, (n_resamples, n_pairs), generator=generator).tolist()
    means = [[float(row.double()[list(pairs)].mean()) for row in effects] for pairs in drawn]
    circuits = [
        {name for _, name in sorted(zip((-abs(m) for m in row), NAMES, strict=True))[:3]}
        for row in means
    ]
    for place, edge in enumerate(found.edges):
        assert edge.edge == NAMES[place]
        of_edge = [row[place] for row in means]
        expected = numpy.quantile(of_edge, [0.05, 0.95])
        assert (edge.low, edge.high) == pytest.approx(tuple(expected), rel=1e-12)
        assert edge.effect == pytest.approx(float(effects[place].double().mean()), rel=1e-12)
        frequency = sum(edge.edge in circuit for circuit in circuits) / n_resamples
        assert edge.frequency == pytest.approx(frequency)
    alike = [len(one & other) / len(one | other) for one, other in combinations(circuits, 2)]
    assert found.jaccard == pytest.approx(sum(alike) / len(alike), rel=1e-12)


def test_what_is_certain_is_certain() -> None:
    same = torch.tensor([[2.0] * 5, [-1.0] * 5, [0.0] * 5])
    found = bootstrap(NAMES[:3], same, keep_above(1.0))
    assert [edge.frequency for edge in found.edges] == [1, 1, 0]
    assert [(edge.low, edge.high) for edge in found.edges] == [(2, 2), (-1, -1), (0, 0)]
    assert found.jaccard == 1
    assert bootstrap(NAMES[:3], same, keep_above(9.0)).jaccard == 1  # all empty


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(400, 50, generator=generator)
    found = bootstrap([str(edge) for edge in range(400)], table, keep_largest(1), n_resamples=400)
    covered = sum(edge.low <= 0 <= edge.high for edge in found.edges) / 400
    assert 0.90 < covered < 0.98


def test_only_the_seed_changes_it(effects: Tensor) -> None:
    found = bootstrap(NAMES, effects, keep_largest(2))
    assert bootstrap(NAMES, effects, keep_largest(2)) == found
    assert bootstrap(NAMES, effects, keep_largest(2), seed=1) != found
    assert resampled_means(effects.double(), 100).shape == (100, 4)
    document = json.loads(json.dumps(found.as_document(), allow_nan=False))
    assert document["mean_pairwise_jaccard"] == found.jaccard
    assert document["edges"][0]["interval"] == [found.edges[0].low, found.edges[0].high]


def test_wrong_input_is_refused(effects: Tensor) -> None:
    rule = keep_largest(2)
    for names, table, message in (
        ((), effects[:0], "expected the names of verified edges"),
        (("a", "a", "b", "c"), effects, "3 of them distinct"),
        (NAMES[:3], effects, "expected effects of 3 edges"),
        (NAMES, effects[:, :1], "at least 2 pairs to resample, got 1"),
        (NAMES, effects.masked_fill(effects == effects[1, 1], torch.nan), "not for m0->logits"),
    ):
        with pytest.raises(InputError, match=message):
            bootstrap(names, table, rule)
    with pytest.raises(InputError, match="at least 100 resamples, got 99"):
        bootstrap(NAMES, effects, rule, n_resamples=99)
    with pytest.raises(InputError, match="confidence between 0 and 1, got 1"):
        bootstrap(NAMES, effects, rule, confidence=1.0)
    with pytest.raises(InputError, match="chooses among the edges given, got m9"):
        bootstrap(NAMES, effects, lambda effects: ["m9"])
    with pytest.raises(InputError, match="at least 1 edge"):
        keep_largest(0)
    with pytest.raises(InputError, match="threshold >= 0"):
        keep_above(-1.0)
