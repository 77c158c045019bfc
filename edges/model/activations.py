"""What a run leaves behind, by name and layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Float
from torch import Tensor

from .parts import See


@dataclass
class Activations:
    """What a run leaves behind: one tensor per layer in each list, those only that were asked for.

    ``kept[name][layer]`` for a name that is data, ``kept.z[layer]`` for one that is known.

    Attributes:
        input: what the input writes, the residual stream before the first block.
        resid_pre: the residual stream before a block. ``[pair pos d_model]``
        pattern: attention weights, after the softmax. ``[pair head query key]``
        neurons: of the MLP, after the activation (and the gate). ``[pair pos d_mlp]``
        mlp_in: the residual stream as its MLP reads it, a branch of its own, so that the gradient
            by it is the one that comes through the MLP. ``[pair pos d_model]``
        q, k, v: queries, keys and values, after their norms and before any rotation.
            ``[pair pos head d_head]``
        z: the heads' outputs before W_O. ``[pair pos head d_head]``
        written: z times the scale of a norm behind attention; z itself where there is none.
        mlp_out: what the MLP writes, after a norm behind it. ``[pair pos d_model]``
    """

    input: list[Tensor] = field(default_factory=list[Tensor])
    resid_pre: list[Tensor] = field(default_factory=list[Tensor])
    mlp_in: list[Tensor] = field(default_factory=list[Tensor])
    q: list[Tensor] = field(default_factory=list[Tensor])
    k: list[Tensor] = field(default_factory=list[Tensor])
    v: list[Tensor] = field(default_factory=list[Tensor])
    z: list[Tensor] = field(default_factory=list[Tensor])
    written: list[Tensor] = field(default_factory=list[Tensor])
    mlp_out: list[Tensor] = field(default_factory=list[Tensor])
    pattern: list[Tensor] = field(default_factory=list[Tensor])
    neurons: list[Tensor] = field(default_factory=list[Tensor])

    def __getitem__(self, name: str) -> list[Tensor]:
        """The activation of this name, layer by layer. Raises KeyError for a name there is not."""
        if name not in NAMES:
            raise KeyError(f"no activation {name!r}; there are {', '.join(NAMES)}")
        return getattr(self, name)

    def add(self, name: str, value: Tensor) -> None:
        """Takes the activation of the next layer."""
        self[name].append(value)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of which there is any."""
        return tuple(name for name in NAMES if self[name])

    def map(self, function: Callable[[Tensor], Tensor]) -> Activations:
        """The same activations, ``function`` applied to each."""
        changed = Activations()
        for name in self.names:
            changed[name].extend(map(function, self[name]))
        return changed

    def noting(self, names: Collection[str]) -> See:
        """What makes a run note here the activations of these names, and change none."""

        def see(name: str, layer: int, value: Tensor) -> Tensor:
            if name in names:
                self.add(name, value)
            return value

        return see


NAMES = tuple(field.name for field in fields(Activations))
"""What can be kept of a run."""


@dataclass(frozen=True)
class Past:
    """Keys and values of the first positions, which no edit reaches, by layer.

    Attributes:
        k, v: before any rotation. ``[pair pos head d_head]``
    """

    k: Sequence[Float[Tensor, "pair pos head d_head"]]
    v: Sequence[Float[Tensor, "pair pos head d_head"]]

    def before(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """These keys and values, and those of ``layer`` before them; rows are items times pairs."""

        # What was kept is the same for every item: [pair past head d_head] -> [(item pair) ...]
        def joined(
            past: Float[Tensor, "pair past head d_head"], new: Float[Tensor, "row pos head d_head"]
        ) -> Tensor:
            return torch.cat([past.repeat(len(new) // len(past), 1, 1, 1), new], 1)

        return joined(self.k[layer], k), joined(self.v[layer], v)
