"""Out of memory: halve, go on, lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from wiremap.edges import WiremapError, patch_edges, score_edges
from wiremap.edges.model.mlp import Mlp
from wiremap.edges.runs.memory import BatchSize, RowTooLargeError
from wiremap.edges.runs.sweep import check_pairs

OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"


def limited(limit: int, calls: list[int]):
    def function(rows: list[int]) -> list[int]:
        calls.append(len(rows))
        if len(rows) > limit:
            raise RuntimeError(OUT_OF_MEMORY)
        return [2 * row for row in rows]

    return function


def test_sizes_halve_until_they_fit_and_are_remembered() -> None:
    calls: list[int] = []
    size = BatchSize(100)
    found = [row for _, part in size.map(list(range(20)), limited(3, calls)) for row in part]
    assert found == [2 * row for row in range(20)]
    assert calls[:4] == [20, 10, 5, 3]
    assert size.rows == 3


def test_a_row_that_does_not_fit_is_an_error_of_ours() -> None:
    with pytest.raises(RowTooLargeError, match="a single row does not fit into memory"):
        list(BatchSize(4).map([1, 2], limited(0, [])))


def test_an_outer_batch_shrinks_when_an_inner_one_cannot() -> None:
    """Rows of an inner batch are as large as the outer one; only the outer can make them smaller."""

    def outer(pairs: list[int]) -> int:
        def inner(items: list[int]) -> int:
            if len(items) * len(pairs) > 4:
                raise torch.OutOfMemoryError
            return len(items)

        return sum(result for _, result in BatchSize(8).map(list(range(8)), inner))

    size = BatchSize(16)
    assert [result for _, result in size.map(list(range(16)), outer)] == [8] * 4
    assert size.rows == 4


def test_other_errors_pass_through() -> None:
    def broken(rows: list[int]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(BatchSize(4).map([1, 2], broken))


def test_scores_and_effects_survive_a_failing_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(6)
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()][::5]
    scores, effects = score_edges(model, pairs).scores, patch_edges(model, pairs, names).effects
    mlp = Mlp.__call__

    def small_memory(self: Mlp, resid: torch.Tensor, see: Any = None) -> torch.Tensor:
        if resid.numel() > 4 * 7 * model.d_model:
            raise RuntimeError(OUT_OF_MEMORY)
        return mlp(self, resid, see)

    monkeypatch.setattr(Mlp, "__call__", small_memory)
    torch.testing.assert_close(
        score_edges(model, pairs).scores, scores, rtol=1e-4, atol=1e-5, equal_nan=True
    )
    torch.testing.assert_close(
        patch_edges(model, pairs, names).effects, effects, rtol=1e-4, atol=2e-5
    )


def test_memory_that_holds_no_pair_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    check_pairs(model, pairs)

    def none(self: Mlp, resid: torch.Tensor, see: Any = None) -> torch.Tensor:
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(Mlp, "__call__", none)
    with pytest.raises(WiremapError, match="use shorter prompts, a smaller dtype"):
        patch_edges(model, pairs, ["m0->logits"])
