"""Edits of a run against loops over rows, positions and entries."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from wiremap.edges import InputError, Model
from wiremap.edges.effects.edits import ALL, Edit, How, applying
from wiremap.edges.model.parts import See
from wiremap.edges.runs.trace import run

N_PAIRS, N_ITEMS, N_POS = 2, 3, 6

# (item, position, entry); item 1 is left as it is but for one place, all of an activation is once
# asked for by positions and once by entries.
WHERE = torch.tensor([[0, 2, 1], [0, 4, 0], [1, 5, 0], [2, ALL, 0], [0, 0, 0]])
EVERYTHING = torch.tensor([[1, ALL, ALL]])

ACTIVATIONS = ("resid_pre", "q", "k", "v", "z", "written", "neurons", "mlp_in", "mlp_out")
WHOLE = ("resid_pre", "mlp_in", "mlp_out", "input")


def a_basis(d: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator)).Q


def by_loops(edit: Edit, x: Tensor, n_pairs: int = N_PAIRS) -> Tensor:
    """What an edit makes of an activation, number by number."""
    x = x.clone()
    for item, position, entry in edit.where.tolist():
        positions = range(x.shape[1]) if position == ALL else [position]
        for pair in range(n_pairs):
            row = item * n_pairs + pair
            of_pair = min(pair, len(edit.values) - 1)
            for at in positions:
                if x.ndim == 4:
                    entries = range(x.shape[2]) if entry == ALL else [entry]
                    for head in entries:
                        new = by_hand(edit, x[row, at, head], edit.values[of_pair, at, head])
                        x[row, at, head] = new
                elif edit.activation == "neurons" and entry != ALL:
                    new = by_hand(edit, x[row, at], edit.values[of_pair, at])
                    x[row, at, entry] = new[entry]
                else:
                    x[row, at] = by_hand(edit, x[row, at], edit.values[of_pair, at])
    return x


def by_hand(edit: Edit, x: Tensor, value: Tensor) -> Tensor:
    """What becomes of one vector."""
    if edit.how == "replace":
        return value
    if edit.how == "add":
        return x + value
    assert edit.basis is not None
    changed = x.clone()
    for direction in edit.basis.T:
        along = float(direction @ value) - float(direction @ x)
        changed = changed + along * direction
    return changed


def where_of(activation: str) -> Tensor:
    """``WHERE``, with the one entry that a residual stream has."""
    where = WHERE.clone()
    if activation in WHOLE:
        where[:, 2] = 0
    return where


@pytest.mark.parametrize("how", ["replace", "add", "project"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "gemma2"])
def test_edited_runs_are_those_of_loops(kind: str, activation: str, how: How) -> None:
    model, pairs, layer = tiny.model(kind), tiny.pairs(N_PAIRS, N_POS), 1
    values = run(model, pairs.corrupted, {activation}).kept[activation][layer]
    basis = a_basis(values.shape[-1], 3) if how == "project" else None
    where = where_of(activation)
    if activation == "neurons" and how == "project":
        where[:, 2] = ALL
    edits = [Edit(activation, layer, where, values, how, basis)]
    if how != "replace":  # edits of one activation come one after the other
        edits.append(Edit(activation, layer, EVERYTHING, values * 0.5, "add"))

    def loops(name: str, at: int, value: Tensor) -> Tensor:
        for edit in edits if (name, at) == (activation, layer) else ():
            value = by_loops(edit, value)
        return value

    final, expected = (
        final_stream(model, pairs.clean, see) for see in (applying(edits, N_ITEMS), loops)
    )
    torch.testing.assert_close(final, expected, rtol=1e-4, atol=1e-4)
    untouched = final_stream(model, pairs.clean, lambda name, at, value: value)
    moved = (final - untouched).abs().flatten(1).amax(1)
    assert float(moved.min()) > 1e-3, "every row is edited"


def final_stream(model: Model, tokens: Tensor, see: See) -> Tensor:
    with torch.no_grad(), model.borrowed():
        return model.run(model.embed(tokens).repeat(N_ITEMS, 1, 1), see)


@pytest.mark.parametrize("how", ["replace", "add", "project"])
@pytest.mark.parametrize("d_head", [None, 5])
def test_a_run_may_lack_the_first_positions(how: How, d_head: int | None) -> None:
    entries = () if d_head is None else (2,)
    d = d_head or 7
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1, N_POS, *entries, d, generator=generator)  # one pair's, for all
    x = torch.randn(N_ITEMS * N_PAIRS, N_POS, *entries, d, generator=generator)
    activation = "mlp_out" if d_head is None else "z"
    basis = a_basis(d, 2) if how == "project" else None
    edit = Edit(activation, 0, where_of(activation), values, how, basis)
    whole = by_loops(edit, x)
    torch.testing.assert_close(edit.apply(x, N_ITEMS), whole, rtol=1e-5, atol=1e-5)
    for start in range(1, N_POS):
        cut = edit.apply(x[:, start:], N_ITEMS)
        torch.testing.assert_close(cut, whole[:, start:], rtol=1e-5, atol=1e-5)


def test_a_projection_changes_the_subspace_alone_and_a_whole_basis_replaces() -> None:
    generator = torch.Generator().manual_seed(2)
    x, values = torch.randn(2, N_PAIRS, N_POS, 4, 8, generator=generator, dtype=torch.float64)
    basis = a_basis(8, 3).double()
    everywhere = torch.tensor([[0, ALL, ALL]])
    changed = Edit("z", 0, everywhere, values, "project", basis).apply(x, 1)
    torch.testing.assert_close(changed @ basis, values @ basis, rtol=0, atol=1e-6)
    outside = torch.eye(8, dtype=torch.float64) - basis @ basis.T
    torch.testing.assert_close(changed @ outside, x @ outside, rtol=0, atol=1e-6)
    whole = Edit("z", 0, everywhere, values, "project", a_basis(8, 8).double()).apply(x, 1)
    torch.testing.assert_close(whole, values, rtol=0, atol=1e-5)


def test_what_is_not_changed_stays_to_the_bit_although_values_are_not_finite() -> None:
    x = torch.randn(N_ITEMS * N_PAIRS, N_POS, 4, 8, generator=torch.Generator().manual_seed(3))
    values = torch.full((N_PAIRS, N_POS, 4, 8), torch.nan)
    hows: tuple[How, ...] = ("replace", "add", "project")
    for how in hows:
        basis = a_basis(8, 2) if how == "project" else None
        changed = Edit("q", 0, torch.tensor([[1, 3, 2]]), values, how, basis).apply(x, N_ITEMS)
        rows = changed.unflatten(0, (N_ITEMS, N_PAIRS))
        assert bool(rows[1, :, 3, 2].isnan().all())
        rows[1, :, 3, 2] = x.unflatten(0, (N_ITEMS, N_PAIRS))[1, :, 3, 2]
        assert torch.equal(changed, x)


def test_edits_that_make_no_sense_are_refused() -> None:
    values, basis = torch.zeros(1, 2, 4), a_basis(4, 2)
    with pytest.raises(InputError, match="expected a basis for 'project'.* got none"):
        Edit("resid_pre", 0, WHERE, values, "project")
    with pytest.raises(InputError, match="for nothing else, got one for 'add'"):
        Edit("resid_pre", 0, WHERE, values, "add", basis)
    with pytest.raises(InputError, match=r"orthonormal columns, got .*torch\.linalg\.qr"):
        Edit("resid_pre", 0, WHERE, values, "project", 2 * basis)
    with pytest.raises(InputError, match="activation 'pattern' cannot be edited; there are input"):
        Edit("pattern", 0, WHERE, values)
