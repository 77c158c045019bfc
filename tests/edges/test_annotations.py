"""Shapes and types are checked in tests of edges: see ``tests/conftest.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from wiremap.edges import ModelGraph
from wiremap.edges.question.metrics import Targets, logit_diff


@pytest.mark.parametrize(
    ("logits", "answers"),
    [
        (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)),
        (torch.zeros(2, 5), torch.zeros(3, 1, dtype=torch.long)),
        (torch.zeros(2, 5, 1), torch.zeros(2, 1, dtype=torch.long)),
    ],
    ids=["dtype", "size", "axes"],
)
def test_tensors_of_another_kind_are_noticed(logits: torch.Tensor, answers: torch.Tensor) -> None:
    with pytest.raises(TypeCheckError):
        logit_diff(logits, Targets(answers, answers, torch.empty(2, 0)))


def test_values_of_another_type_are_noticed() -> None:
    no_number: Any = "two"
    with pytest.raises(TypeCheckError):
        ModelGraph(2, 2, 2).edge(7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError):
        ModelGraph(no_number, 2, 2)
