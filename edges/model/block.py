"""A block: what attention and MLP add to the residual stream."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from .activations import Past
from .attention import Attention
from .mlp import Mlp
from .parts import See


class Block:
    """One block, run as a whole, or part by part through ``attention`` and ``mlp``.

    Args:
        bridge: the whole TransformerBridge.
        layer: the block's number.
        kv_group: see ``Attention``.
        parallel: the MLP reads what attention reads, not what attention wrote.
    """

    def __init__(self, bridge: Any, layer: int, kv_group: int, parallel: bool) -> None:
        self.attention = Attention(bridge, layer, kv_group)
        self.mlp = Mlp(bridge, layer)
        self._layer, self._parallel = layer, parallel

    def __call__(
        self,
        resid: Float[Tensor, "row pos d_model"],
        see: See | None = None,
        past: Past | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "row query d_model"]:
        """The residual stream behind the block; ``see`` sees its activations as they are computed.

        Args:
            past: keys and values of the positions before those of ``resid``.
            last_only: compute what the block writes at the last position alone.
        """
        attention, mlp, layer = self.attention, self.mlp, self._layer

        def seen(name: str, value: Tensor) -> Tensor:
            return value if see is None else see(name, layer, value)

        resid = seen("resid_pre", resid)
        normed = attention.norm(resid, see)
        written_at = slice(-1, None) if last_only else slice(None)
        q = seen("q", attention.project("q", normed[:, written_at], see))
        k = seen("k", attention.project("k", normed, see))
        v = seen("v", attention.project("v", normed, see))
        if past is not None:
            k, v = past.before(layer, k, v)
        resid = resid[:, written_at]
        z = seen("z", attention.attend(q, k, v, see))
        after_attention = resid + attention.write(z, see)
        # A view, so that the gradient by what the MLP reads is no other branch's of the stream.
        mlp_in = resid if self._parallel else after_attention
        mlp_in = seen("mlp_in", mlp_in.view_as(mlp_in))
        return after_attention + seen("mlp_out", mlp(mlp_in, see))
