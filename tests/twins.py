"""Fixtures: tiny models of every kind with their slow twins."""

from __future__ import annotations

import pytest
import tiny
from slow import SlowModel

from wiremap.edges import Model, PromptPairs


@pytest.fixture(scope="session", params=tiny.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def twins(kind: str) -> tuple[Model, SlowModel]:
    """A model of each basic kind and the slow, obviously right version of it."""
    return _twins(kind)


@pytest.fixture(scope="session", params=[*tiny.EVERY_KIND, "llama-gqa per query"])
def every_twins(request: pytest.FixtureRequest) -> tuple[Model, SlowModel]:
    """The same of every architecture there is."""
    kind, _, per_query = request.param.partition(" ")
    return _twins(kind, bool(per_query))


def _twins(kind: str, per_query: bool = False) -> tuple[Model, SlowModel]:
    hf = tiny.hf_model(kind)
    slow = SlowModel(hf, per_query)
    kv = "per-query" if per_query else "grouped"
    return Model(tiny.bridge(hf), name=f"tiny {kind}", kv=kv), slow


@pytest.fixture(scope="session")
def pairs() -> PromptPairs:
    return tiny.pairs()


@pytest.fixture(scope="session")
def some_pairs() -> PromptPairs:
    """Two pairs of six tokens."""
    return tiny.pairs(2, n_pos=6)
