"""A TransformerBridge seen as writers and readers of a residual stream.

``Model`` takes the bridge apart into the functions between two residual streams: projections,
attention, MLPs, norms, unembedding. Everything else in wiremap is made of them, so that a run can
be resumed anywhere, and a reader recomputed alone, without a copy of the residual stream per head.
The bridge's own forward pass is used once per model, to check that the parts add up to the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .errors import InputError, WiremapError
from .graph import SLOTS, ModelGraph, Slot
from .prompts import PromptPairs, name_rows
from .tokens import Tokenizer

_SUPPORTED = {
    "GPT2LMHeadModel": "GPT-2",
    "LlamaForCausalLM": "Llama",
    "GPTNeoXForCausalLM": "NeoX",
}
_MISSING = {
    "MistralForCausalLM": "attention in a sliding window",
    "Qwen2ForCausalLM": "its layout has not been proved against a reference",
    "Qwen3ForCausalLM": "norms of queries and keys",
    "Gemma2ForCausalLM": "norms after attention and MLP, and soft-capped scores",
    "Gemma3ForCausalLM": "norms after attention and MLP, and norms of queries and keys",
    "Olmo2ForCausalLM": "norms after attention and MLP, and norms of queries and keys",
    "GraniteForCausalLM": "scaled residual contributions",
    "MixtralForCausalLM": "mixtures of experts",
    "GPTJForCausalLM": "attention and MLP behind one norm",
    "PhiForCausalLM": "attention and MLP behind one norm",
    "FalconForCausalLM": "attention and MLP behind one norm",
}
_NOT_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
_HOOK_KINDS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


See = Callable[[str, int, Tensor], Tensor]
"""Shown (name, layer, value) of every activation of a run as it comes; what it returns goes on."""


@dataclass
class Activations:
    """What a run leaves behind: one tensor per layer in each list, those only that were asked for.

    Attributes:
        input: what the input writes, the residual stream before the first block.
        resid_pre: the residual stream before a block. ``[pair pos d_model]``
        pattern: attention weights, after the softmax. ``[pair head query key]``
        neurons: of the MLP, after the activation (and the gate). ``[pair pos d_mlp]``
        mlp_in: the residual stream as its MLP reads it, a branch of its own, so that the gradient
            by it is the one that comes through the MLP. ``[pair pos d_model]``
        q, k, v: queries, keys and values before any rotation. ``[pair pos head d_head]``
        z: the heads' outputs before W_O. ``[pair pos head d_head]``
        mlp_out: what the MLP writes. ``[pair pos d_model]``
    """

    input: list[Tensor] = field(default_factory=list[Tensor])
    resid_pre: list[Tensor] = field(default_factory=list[Tensor])
    mlp_in: list[Tensor] = field(default_factory=list[Tensor])
    q: list[Tensor] = field(default_factory=list[Tensor])
    k: list[Tensor] = field(default_factory=list[Tensor])
    v: list[Tensor] = field(default_factory=list[Tensor])
    z: list[Tensor] = field(default_factory=list[Tensor])
    mlp_out: list[Tensor] = field(default_factory=list[Tensor])
    pattern: list[Tensor] = field(default_factory=list[Tensor])
    neurons: list[Tensor] = field(default_factory=list[Tensor])

    def noting(self, names: Collection[str]) -> See:
        """What makes a run note here the activations of these names, and change none."""

        def see(name: str, layer: int, value: Tensor) -> Tensor:
            if name in names:
                getattr(self, name).append(value)
            return value

        return see


@dataclass(frozen=True)
class NormDerivative:
    """The derivative of a LayerNorm or RMSNorm at a residual stream x, one row per token.

    The norm is ``weight * normalized + bias`` with ``normalized = (x - mean) * scale`` (no mean for
    RMS). With P taking the mean away (the identity for RMS), its derivative is

        weight * scale * (P - normalized normalized^T / d_model)

    The epsilon of the norm is part of ``scale``, which makes this exact.
    """

    weight: Float[Tensor, "d_model"]
    scale: Float[Tensor, "token 1"]
    normalized: Float[Tensor, "token d_model"]
    centers: bool


class Model:
    """A transformer as wiremap sees it.

    Args:
        bridge: a ``TransformerBridge``. It is run frozen, in evaluation mode and without hooks,
            and left as it was: flags, requires_grad, training mode and hooks.
        name: what results call the model.
        tokenizer: a ``transformers`` tokenizer; None takes the bridge's own, if it has one.
        bos: put the BOS token before every prompt. None takes the bridge's own convention (yes,
            but for models trained without one, or whose tokenizer has none).

    Raises:
        InputError: an architecture wiremap does not know, or weights that are not finite.
    """

    def __init__(
        self,
        bridge: Any,
        name: str | None = None,
        tokenizer: Any = None,
        bos: bool | None = None,
    ) -> None:
        architecture = str(bridge.cfg.architecture)
        refuse_unsupported(architecture)
        self.bridge = bridge
        self.name = name or str(bridge.cfg.model_name)
        self.architecture = architecture
        n_heads = int(bridge.cfg.n_heads)
        self.graph = ModelGraph(
            n_layers=int(bridge.cfg.n_layers),
            n_heads=n_heads,
            n_kv_heads=int(bridge.cfg.n_key_value_heads or n_heads),
            parallel=bool(bridge.cfg.parallel_attn_mlp),
        )
        self.d_head = int(bridge.cfg.d_head)
        self.d_model = int(bridge.cfg.d_model)
        self.d_mlp = int(bridge.cfg.d_mlp)
        self.d_vocab = int(bridge.cfg.d_vocab)
        self.n_context = int(bridge.cfg.n_ctx)
        self._checked: tuple[frozenset[int], int] | None = None
        if getattr(bridge.original_model.config, "scale_attn_weights", True) is False:
            raise InputError(
                f"model {self.name}: attention without scaling (scale_attn_weights=False) is not "
                "supported, here or by TransformerBridge; multiply it into the query weights"
            )
        self._refuse_nonfinite_weights()
        tokenizer = tokenizer or getattr(bridge, "tokenizer", None)
        self.tokenizer: Tokenizer | None = None
        if tokenizer is not None:
            if bos is None:
                trained_with_bos = bool(getattr(bridge.cfg, "default_prepend_bos", True))
                bos = trained_with_bos and tokenizer.bos_token_id is not None
            self.tokenizer = Tokenizer(tokenizer, bos)

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        bos: bool | None = None,
    ) -> Model:
        """Loads a bundled model, a local Hugging Face directory, or a model of the hub.

        A directory is read without touching the network; only safetensors are read, never a
        pickle. A name is first looked for among the bundled models.

        Args:
            device: ``auto`` (CUDA, else MPS, else CPU) or a torch device.

        Raises:
            InputError: no such model, files missing, an unsupported architecture.
        """
        from .loading import load_bridge  # transformers and transformer_lens take seconds

        bridge, tokenizer = load_bridge(name, device, dtype)
        return cls(bridge, name, tokenizer, bos)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError when the model came without one."""
        if self.tokenizer is None:
            raise InputError(
                f"model {self.name} has no tokenizer, which texts need; put its tokenizer files "
                "beside the weights, or give tokens: PromptPairs(clean, corrupted, answers, ...)"
            )
        return self.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.bridge.parameters()).dtype

    def fingerprint(self) -> str:
        """SHA-256 of the config and of all weights, by name, dtype, shape and value."""
        config = self.bridge.original_model.config.to_dict()
        told = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        for name, weight in self.bridge.named_parameters():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            raw = weight.detach().contiguous().view(-1).view(torch.uint8)
            digest.update(raw.cpu().numpy().tobytes())
        return digest.hexdigest()

    # ---- the parts of a block

    @cached_property
    def _blocks(self) -> list[Any]:
        return list(self.bridge.blocks)

    def embed(self, tokens: Int64[Tensor, "pair pos"]) -> Float[Tensor, "pair pos d_model"]:
        """What the ``input`` writes: token embedding, and position embedding where there is one."""
        resid = self.bridge.embed(tokens)
        if hasattr(self.bridge, "pos_embed"):
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            resid = resid + self.bridge.pos_embed(positions[None])
        return resid

    def embedding_deviation(self) -> float:
        """The standard deviation of the token embedding's entries."""
        return float(self.bridge.embed.original_component.weight.float().std())

    def attention_norm(self, layer: int, resid: Tensor) -> Tensor:
        """The residual stream as queries, keys and values of ``layer`` are computed from it."""
        return self._blocks[layer].ln1(resid)

    def attention_norm_derivative(
        self, layer: int, resid: Float[Tensor, "token d_model"]
    ) -> NormDerivative:
        """The derivative of ``attention_norm`` at a residual stream."""
        norm = self._blocks[layer].ln1
        resid = resid.to(_at_least_float32(resid.dtype))  # squares overflow in float16
        centered = resid if norm.uses_rms_norm else resid - resid.mean(-1, keepdim=True)
        module = norm.original_component
        eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
        scale = (centered.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        return NormDerivative(norm.weight, scale, centered * scale, not norm.uses_rms_norm)

    def mlp_norm(self, layer: int, resid: Tensor) -> Tensor:
        """The residual stream as the MLP of ``layer`` is computed from it."""
        return self._blocks[layer].ln2(resid)

    def projection(
        self, layer: int, slot: Slot
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
        """Weight and bias of the queries, keys or values of ``layer``, by (key-value) head."""
        linear = getattr(self._blocks[layer].attn, slot)
        weight = linear.weight.view(-1, self.d_head, self.d_model).transpose(1, 2)
        bias = None if linear.bias is None else linear.bias.view(-1, self.d_head)
        return weight, bias

    def project(self, layer: int, slot: Slot, normed: Tensor) -> Tensor:
        """Queries, keys or values of all heads. ``[... d_model] -> [... head d_head]``"""
        projected = getattr(self._blocks[layer].attn, slot)(normed)
        return projected.unflatten(-1, (-1, self.d_head))

    def project_heads(
        self,
        layer: int,
        slot: Slot,
        heads: Sequence[int],
        normed: Float[Tensor, "item pair pos d_model"],
    ) -> Float[Tensor, "item pair pos d_head"]:
        """The query, key or value of ``heads[i]`` computed from a stream of its own, for each i."""
        chosen = torch.tensor(heads, device=normed.device)
        weight, bias = self.projection(layer, slot)
        projected = torch.einsum("ebpm,emd->ebpd", normed, weight[chosen])
        return projected if bias is None else projected + bias[chosen][:, None, None]

    def output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of ``layer``: a head writes ``z @ W_O[head]`` to the residual stream."""
        linear = self._blocks[layer].attn.o.original_component
        # GPT-2 keeps its matrices as [in, out], everyone else as [out, in].
        weight = linear.weight if type(linear).__name__ == "Conv1D" else linear.weight.T
        return weight.reshape(-1, self.d_head, self.d_model)

    def attention_output(self, layer: int, z: Tensor) -> Tensor:
        """What attention adds to the residual stream, bias included. ``[... head d_head]``"""
        return self._blocks[layer].attn.o(z.flatten(-2))

    def mlp(self, layer: int, normed: Tensor, see: See | None = None) -> Tensor:
        """What the MLP of ``layer`` writes, given its normalized input; ``see`` sees its neurons."""
        mlp = self._blocks[layer].mlp
        if see is None:
            return mlp(normed)

        def show(module: torch.nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            return (see("neurons", layer, arguments[0]),)

        hook = mlp.out.register_forward_pre_hook(show)
        try:
            return mlp(normed)
        finally:
            hook.remove()

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row pos head d_head"],
        k: Float[Tensor, "row pos kv_head d_head"],
        v: Float[Tensor, "row pos kv_head d_head"],
        see: See | None = None,
    ) -> Float[Tensor, "row pos head d_head"]:
        """Causal attention: z = softmax(rotated q . rotated k * scale) v, softmax in float32.

        Any number of heads may be given, so long as ``kv_head`` divides ``head``: each key and
        value serves as many consecutive query heads. ``see`` sees the pattern.
        """
        scores = self.attention_scores(layer, q, k)
        pattern = scores.softmax(-1, dtype=_at_least_float32(scores.dtype)).to(v.dtype)
        if see is not None:
            pattern = see("pattern", layer, pattern)
        grouped = pattern.unflatten(1, (k.shape[2], -1))
        return torch.einsum("rgnqk,rkgd->rqgnd", grouped, v).flatten(2, 3)

    def attention_scores(
        self,
        layer: int,
        q: Float[Tensor, "row pos head d_head"],
        k: Float[Tensor, "row pos kv_head d_head"],
    ) -> Float[Tensor, "row head query key"]:
        """What the softmax of ``attend`` is taken of; -inf where a query may not look."""
        n_pos, n_kv_heads = k.shape[1:3]
        q, k = self._rotate(q), self._rotate(k)
        grouped_q = q.unflatten(2, (n_kv_heads, -1))
        scores = torch.einsum("rqgnd,rkgd->rgnqk", grouped_q, k) * self._score_scale(layer)
        future = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(future, -torch.inf).flatten(1, 2)

    def _score_scale(self, layer: int) -> float:
        by_layer = getattr(self.bridge.cfg, "scale_attn_by_inverse_layer_idx", False)
        return self.d_head**-0.5 / (layer + 1 if by_layer else 1)

    def _rotate(self, heads: Float[Tensor, "row pos head d_head"]) -> Tensor:
        """Rotary position embedding of queries or keys; the identity where there is none."""
        if not hasattr(self.bridge, "rotary_emb"):
            return heads
        positions = torch.arange(heads.shape[1], device=heads.device)[None]
        cos, sin = (table[:, :, None] for table in self.bridge.rotary_emb(heads, positions))
        rotated, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
        low, high = rotated.chunk(2, dim=-1)
        return torch.cat([rotated * cos + torch.cat([-high, low], -1) * sin, rest], -1)

    def logits(self, resid: Tensor) -> Tensor:
        """Logits from the last residual stream. ``[... d_model] -> [... d_vocab]``"""
        return self.bridge.unembed(self.bridge.ln_final(resid))

    # ---- runs

    def block(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        see: See | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """One block; ``see`` sees its activations, in the order they are computed."""

        def seen(name: str, value: Tensor) -> Tensor:
            return value if see is None else see(name, layer, value)

        resid = seen("resid_pre", resid)
        normed = self.attention_norm(layer, resid)
        q, k, v = (seen(slot, self.project(layer, slot, normed)) for slot in SLOTS)
        z = seen("z", self.attend(layer, q, k, v, see))
        after_attention = resid + self.attention_output(layer, z)
        mlp_in = resid if self.graph.parallel else after_attention
        mlp_in = seen("mlp_in", mlp_in.view_as(mlp_in))
        mlp_out = seen("mlp_out", self.mlp(layer, self.mlp_norm(layer, mlp_in), see))
        return after_attention + mlp_out

    def run(
        self,
        resid: Float[Tensor, "row pos d_model"],
        see: See | None = None,
        start: int = 0,
    ) -> Float[Tensor, "row pos d_model"]:
        """The last residual stream, from the one before block ``start``; see ``block``."""
        if see is not None and start == 0:
            resid = see("input", 0, resid)
        for layer in range(start, self.graph.n_layers):
            resid = self.block(layer, resid, see)
        return resid

    @contextmanager
    def borrowed(self, with_hooks: bool = False) -> Generator[None]:
        """The bridge frozen, in evaluation mode and without hooks; then as it was, come what may."""
        modules = self._modules()
        training = [module for module in modules if module.training]
        trained = [weight for weight in self.bridge.parameters() if weight.requires_grad]
        hooked = [
            (module, kind, hooks)
            for module in modules
            for kind in _HOOK_KINDS
            if not with_hooks and (hooks := module.__dict__[kind])
        ]
        try:
            for module in training:
                module.training = False
            for weight in trained:
                weight.requires_grad_(False)
            for module, kind, hooks in hooked:
                module.__dict__[kind] = type(hooks)()
            yield
        finally:
            for module, kind, hooks in hooked:
                module.__dict__[kind] = hooks
            for weight in trained:
                weight.requires_grad_(True)
            for module in training:
                module.training = True

    # ---- checks

    def _refuse_nonfinite_weights(self) -> None:
        for name, weight in self.bridge.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                n_bad = int((~torch.isfinite(weight)).sum())
                raise InputError(
                    f"expected finite weights, got {n_bad} NaN or infinite values in "
                    f"{name.replace('._original_component', '')} of model {self.name}; "
                    "the file may be damaged: load it again"
                )

    def check_pairs(self, pairs: PromptPairs) -> None:
        """Refuses pairs this model cannot run, and a bridge whose parts do not make the whole.

        Raises:
            InputError: prompts longer than the context, tokens outside the vocabulary.
            WiremapError: see ``check_parts``.
        """
        too_long = (pairs.lengths > self.n_context).nonzero().flatten().tolist()
        if too_long:
            raise InputError(
                f"expected prompts of at most {self.n_context} tokens, the context of model "
                f"{self.name}; longer " + name_rows(too_long, "shorten them")
            )
        tokens = torch.cat([pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong], dim=1)
        strange = (tokens >= self.d_vocab).any(1).nonzero().flatten().tolist()
        if strange:
            raise InputError(
                f"expected tokens below {self.d_vocab}, the vocabulary of model {self.name}; "
                "others " + name_rows(strange, "tokenize with this model's tokenizer")
            )
        longest = list(pairs.batches())[-1]
        self.check_parts(longest.clean[:1].to(self.device))

    def check_parts(self, tokens: Int64[Tensor, "pair pos"]) -> None:
        """Checks that the bridge's parts make its logits: once, and again for longer prompts or
        when hooks came or went.

        The logits computed from the parts must be the bridge's own, hooks included, and the sum of
        all writers must be the last residual stream; to 1e-4 of the largest value in float32.

        Raises:
            WiremapError: they are not. InputError, if hooks on the bridge are the reason.
        """
        if (
            self._checked
            and self._hooks() == self._checked[0]
            and tokens.shape[1] <= self._checked[1]
        ):
            return
        tolerance = 1e-4 if _at_least_float32(self.dtype) == self.dtype else 3e-2
        with torch.no_grad():
            with self.borrowed(with_hooks=True):
                whole = self.bridge(tokens)
            with self.borrowed():
                kept = Activations()
                total = self.embed(tokens)
                final = self.run(total, kept.noting(("z", "mlp_out")))
                for layer, (z, mlp_out) in enumerate(zip(kept.z, kept.mlp_out, strict=True)):
                    bias = self.attention_output(layer, torch.zeros_like(z))
                    writes = torch.einsum("pthd,hdm->ptm", z, self.output_weight(layer))
                    total = total + writes + bias + mlp_out
                parts = self.logits(final)
                norm, by_formula = self._norm_both_ways(total.flatten(0, 1))
        compared = (
            ("logits", parts, whole),
            ("sum of writers", total, final),
            ("norm", by_formula, norm),
        )
        for what, one, other in compared:
            if not bool(torch.isfinite(other).all()):
                raise WiremapError(
                    f"model {self.name}: the {what} of a longest prompt is not finite; try float32 "
                    "(--dtype float32)"
                )
            error = float((one - other).abs().max() / other.abs().max())
            if not error <= tolerance:
                raise self._parts_differ(what, error, tolerance)
        self._checked = self._hooks(), tokens.shape[1]

    def _norm_both_ways(self, resid: Float[Tensor, "token d_model"]) -> tuple[Tensor, Tensor]:
        """Differences of a norm's values at two streams, from the module and from the formula."""
        other = resid.roll(1, dims=-1)
        of = self.attention_norm_derivative
        one, two = of(0, resid), of(0, other)
        by_formula = one.weight * (one.normalized - two.normalized)
        return self.attention_norm(0, resid) - self.attention_norm(0, other), by_formula

    def _hooks(self) -> frozenset[int]:
        """Identities of all hooks on the bridge, the caller's and its own."""
        return frozenset(
            key
            for module in self._modules()
            for kind in _HOOK_KINDS
            for key in module.__dict__[kind]
        )

    def _modules(self) -> list[torch.nn.Module]:
        """All modules of the bridge, and those of the model inside it that are not its own."""
        return list({*self.bridge.modules(), *self.bridge.original_model.modules()})

    def _parts_differ(self, what: str, error: float, tolerance: float) -> WiremapError:
        hooked = [name for name, hook in self.bridge.hook_dict.items() if hook.has_hooks()]
        if hooked:
            return InputError(
                f"hooks on the bridge change its {what} (by {error:.1e} of the largest value): "
                f"{', '.join(hooked[:5])}. wiremap studies the model without hooks; remove them "
                "(bridge.reset_hooks()) or write the change into the weights"
            )
        if _at_least_float32(self.dtype) != self.dtype:
            return WiremapError(
                f"model {self.name}: in {self.dtype} its {what} cannot be computed closely enough "
                f"(off by {error:.1e} of the largest value, allowed {tolerance:.0e}); use float32 "
                "(--dtype float32)"
            )
        return WiremapError(
            f"model {self.name}: the {what} computed from its parts differ from its own by "
            f"{error:.1e} of the largest value (allowed {tolerance:.0e}), so its edges cannot be "
            f"trusted. Please report this with the model's config (architecture "
            f"{self.architecture})"
        )


def refuse_unsupported(architecture: str) -> None:
    """Raises InputError, with what is missing, for an architecture wiremap cannot take apart."""
    if architecture not in _SUPPORTED:
        known = ", ".join(f"{kind} ({cls})" for cls, kind in _SUPPORTED.items())
        why = _MISSING.get(architecture, "its layout is unknown")
        raise InputError(f"architecture {architecture} is not supported: {why}. Supported: {known}")


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
