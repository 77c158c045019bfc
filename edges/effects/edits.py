"""Edits of a run as data: which activation of which layer, where in it, how, and by which values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import InputError
from ..model.parts import See

How = Literal["replace", "project", "add"]


ALL = -1
"""In place of a position or an entry: all of them."""


_WITH_ENTRIES = ("q", "k", "v", "z", "written", "neurons")


_WHOLE = ("input", "resid_pre", "mlp_in", "mlp_out")


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one activation of one layer, in some rows of a run.

    The rows of an edited run are items times pairs: every pair of the first item, then of the next.

    Attributes:
        activation, layer: what is changed, by its name among ``model.Activations`` (no patterns).
        where: rows of (item, position, entry). Entries are heads or neurons; a residual stream, or
            what an MLP writes, is entry 0 as a whole. ``ALL`` takes all positions, or entries.
        values: ``[pair pos ...]`` in the shape of the activation, at all positions of the prompts;
            one pair's, if they are the same for all.
        how: ``replace``: x becomes the value; ``add``: x + value; ``project``: x becomes
            x + B B^T (value - x), the value within a subspace and as it was outside of it.
        basis: of ``project``, the subspace of the activation's last axis: B, orthonormal columns.

    Raises:
        InputError: an activation that cannot be edited; ``project`` without a basis, or with one
            that is not orthonormal; a basis for anything else.
    """

    activation: str
    layer: int
    where: Int64[Tensor, "place 3"]
    values: Float[Tensor, "pair pos *entry d"]
    how: How = "replace"
    basis: Float[Tensor, "d k"] | None = None

    def __post_init__(self) -> None:
        if self.activation not in _WITH_ENTRIES + _WHOLE:
            raise InputError(
                f"activation {self.activation!r} cannot be edited; there are "
                f"{', '.join(_WHOLE + _WITH_ENTRIES)}"
            )
        if (self.how == "project") != (self.basis is not None):
            got = "none" if self.basis is None else f"one for {self.how!r}"
            raise InputError(f"expected a basis for 'project' and for nothing else, got {got}")
        if self.basis is not None:
            products = self.basis.float().T @ self.basis.float()
            off = float((products - torch.eye(len(products)).to(products)).abs().max())
            if off > 1e-3:
                raise InputError(
                    "expected a basis of orthonormal columns, got products of columns that are off "
                    f"by {off:.1e}; orthonormalize it: torch.linalg.qr(basis).Q"
                )

    def apply(
        self, x: Float[Tensor, "row pos *entry d"], n_items: int
    ) -> Float[Tensor, "row pos *entry d"]:
        """The activation as edited. ``x`` may lack the first positions: those no edit reaches."""
        n_pos = x.shape[1]
        before = self.values.shape[1] - n_pos
        n_entries = x.shape[2] if self.activation in _WITH_ENTRIES else 1
        mask = self._mask(n_items, before, n_pos, n_entries)
        # [item pos entry] -> [item pair pos entry], and of heads [item pair pos head d_head]
        mask = mask[:, None, ..., None] if x.ndim == 4 else mask[:, None]
        rows = x.unflatten(0, (n_items, -1))  # [(item pair) pos ...] -> [item pair pos ...]
        changed = self._changed(rows, self.values[:, before:])
        return torch.where(mask.to(x.device), changed, rows).flatten(0, 1)

    def _mask(
        self, n_items: int, before: int, n_pos: int, n_entries: int
    ) -> Bool[Tensor, "item pos entry"]:
        """What of an activation is changed, of which the first ``before`` positions are missing."""
        item, position, entry = self.where.T
        counts = (position == ALL) | (position >= before)
        position = torch.where(position == ALL, ALL, position - before)
        # One place more on each axis, its last, stands for all: there index -1 leads.
        mask = torch.zeros(n_items, n_pos + 1, n_entries + 1, dtype=torch.bool)
        mask[item[counts], position[counts], entry[counts]] = True
        mask = mask[:, :-1] | mask[:, -1:]
        return mask[..., :-1] | mask[..., -1:]

    def _changed(
        self,
        x: Float[Tensor, "item pair pos *entry d"],
        values: Float[Tensor, "#pair pos *entry d"],
    ) -> Float[Tensor, "... pair pos *entry d"]:
        """What ``x`` becomes where it is changed; for ``replace``, the same for all items."""
        if self.how == "add":
            return x + values
        if self.basis is None:
            return values
        basis = self.basis.to(x)
        return x + (values - x) @ basis @ basis.T


def applying(edits: Sequence[Edit], n_items: int) -> See:
    """What makes a run of so many items (times pairs) undergo these edits, in their order."""
    by_site: dict[tuple[str, int], list[Edit]] = {}
    for edit in edits:
        by_site.setdefault((edit.activation, edit.layer), []).append(edit)

    def see(name: str, layer: int, value: Tensor) -> Tensor:
        for edit in by_site.get((name, layer), ()):
            value = edit.apply(value, n_items)
        return value

    return see
