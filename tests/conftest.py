"""Fixtures: tiny models of every kind with their slow twins; nothing touches the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import tiny
import torch
from slow import SlowModel

from wiremap.edges import Model, PromptPairs

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=tiny.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def twins(kind: str) -> tuple[Model, SlowModel]:
    """A model and the slow, obviously right version of it."""
    hf = tiny.hf_model(kind)
    slow = SlowModel(hf)
    return Model(tiny.bridge(hf), name=f"tiny {kind}"), slow


@pytest.fixture(scope="session")
def pairs() -> PromptPairs:
    return tiny.pairs()
