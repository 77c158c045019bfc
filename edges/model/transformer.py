"""A TransformerBridge seen as writers and readers of a residual stream.

``Model`` takes the bridge apart into the functions between two residual streams: projections,
attention, MLPs, norms, unembedding. Everything else in wiremap is made of them, so that a run can
be resumed anywhere, and a reader recomputed alone, without a copy of the residual stream per head.
The bridge's own forward pass is used once per model, to check that the parts add up to the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError, WiremapError, name_rows
from ..names.graph import ModelGraph, Slot
from ..names.vocabulary import DEVICE, GROUPED, KV
from ..question.prompts import PromptPairs
from .activations import Activations, Past
from .architectures import refuse_unsupported
from .layer import Layer, MlpWeights, in_out_weight
from .parts import Norm, NormDerivative, See, at_least_float32
from .tokens import Tokenizer

_NOT_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")


_HOOK_KINDS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def mix(
    pattern: Float[Tensor, "row head query key"], v: Float[Tensor, "row key kv_head d_head"]
) -> Float[Tensor, "row query head d_head"]:
    """The values that a pattern attends to, summed."""
    grouped = pattern.unflatten(1, (v.shape[2], -1))
    return torch.einsum("rgnqk,rkgd->rqgnd", grouped, v).flatten(2, 3)


class Model:
    """A transformer as wiremap sees it.

    Args:
        bridge: a ``TransformerBridge``. It is run frozen, in evaluation mode and without hooks,
            and left as it was: flags, requires_grad, training mode and hooks.
        name: what results call the model.
        tokenizer: a ``transformers`` tokenizer; None takes the bridge's own, if it has one.
        bos: put the BOS token before every prompt. None takes the bridge's own convention (yes,
            but for models trained without one, or whose tokenizer has none).
        kv: ``grouped`` makes one reader of each key-value head; ``per-query`` one of each query
            head, the field's usual edges of grouped-query models: the key, or value, that this
            query head alone sees. The weights stay grouped.
        tf32: let CUDA multiply float32 matrices with 10 bits of mantissa (TF32): faster, and off
            by about 1e-3. Else float32 is float32, whatever torch is set to.

    Raises:
        InputError: an architecture wiremap does not know, or weights that are not finite.
    """

    def __init__(
        self,
        bridge: Any,
        name: str | None = None,
        tokenizer: Any = None,
        bos: bool | None = None,
        kv: str = GROUPED,
        tf32: bool = False,
    ) -> None:
        architecture = str(bridge.cfg.architecture)
        refuse_unsupported(architecture)
        self.bridge = bridge
        self.name = name or str(bridge.cfg.model_name)
        self.architecture = architecture
        config = bridge.original_model.config
        if kv not in KV:
            raise InputError(f"unknown kv {kv!r}; there are {', '.join(KV)}")
        n_heads = int(bridge.cfg.n_heads)
        n_kv_heads = int(bridge.cfg.n_key_value_heads or n_heads)
        self.kv = kv if n_kv_heads != n_heads else GROUPED
        self.kv_group = n_heads // n_kv_heads if kv == "per-query" else 1
        """How many readers of keys, or of values, one key-value head is split into."""
        self.graph = ModelGraph(
            n_layers=int(bridge.cfg.n_layers),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads * self.kv_group,
            parallel=bool(bridge.cfg.parallel_attn_mlp),
        )
        self.tf32 = tf32
        if tf32 and (self.device.type, self.dtype) != ("cuda", torch.float32):
            raise InputError(
                f"TF32 is for float32 on CUDA, got {self.dtype} on {self.device.type}; leave --tf32 "
                "(tf32=True) out"
            )
        self.d_head = int(bridge.cfg.d_head)
        self.d_model = int(bridge.cfg.d_model)
        self.d_vocab = int(bridge.cfg.d_vocab)
        self.n_context = int(bridge.cfg.n_ctx)
        self._checked: tuple[frozenset[int], int] | None = None
        self._refuse_variants(config)
        self._layers = [Layer(bridge, layer) for layer in range(self.graph.n_layers)]
        self.d_mlp = self._layers[0].d_mlp
        self._final_norm = Norm(bridge.ln_final)
        self._logits_divisor = float(getattr(config, "logits_scaling", 1.0))
        self._logits_cap: float | None = getattr(config, "final_logit_softcapping", None)
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
        device: str = DEVICE,
        dtype: torch.dtype = torch.float32,
        bos: bool | None = None,
        kv: str = GROUPED,
        tf32: bool = False,
    ) -> Model:
        """Loads a bundled model, a local Hugging Face directory, or a model of the hub.

        A directory is read without touching the network; only safetensors are read, never a
        pickle. A name is first looked for among the bundled models.

        Args:
            device: ``auto`` (CUDA, else MPS, else CPU) or a torch device.
            bos, kv, tf32: see ``Model``.

        Raises:
            InputError: no such model, files missing, an unsupported architecture.
        """
        from .loading import load_bridge  # transformers and transformer_lens take seconds

        bridge, tokenizer = load_bridge(name, device, dtype)
        return cls(bridge, name, tokenizer, bos, kv, tf32)

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

    def embed(self, tokens: Int64[Tensor, "pair pos"]) -> Float[Tensor, "pair pos d_model"]:
        """What the ``input`` writes: token embedding, and position embedding where there is one."""
        resid = self.bridge.embed(tokens) * self._embedding_factor
        if hasattr(self.bridge, "pos_embed"):
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            resid = resid + self.bridge.pos_embed(positions[None])
        return resid

    @cached_property
    def _embedding_factor(self) -> float:
        """What the model multiplies its embedding with outside of the embedding module."""
        return float(getattr(self.bridge.original_model.config, "embedding_multiplier", 1.0))

    def embedding_deviation(self) -> float:
        """The standard deviation of the token embedding's entries."""
        module = self.bridge.embed.original_component
        factor = self._embedding_factor * float(getattr(module, "scalar_embed_scale", 1.0))
        return float(module.weight.float().std()) * factor

    def attention_norm(
        self, layer: int, resid: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """The residual stream as queries, keys and values of ``layer`` are computed from it."""
        norm = self._layers[layer].attention_norm
        return resid if norm is None else norm(resid, see, layer)

    def attention_norm_derivative(
        self, layer: int, resid: Float[Tensor, "*token d_model"]
    ) -> NormDerivative | None:
        """The derivative of ``attention_norm`` at a residual stream; None if it is the identity."""
        norm = self._layers[layer].attention_norm
        return None if norm is None else norm.derivative(resid)

    def mlp_norm(
        self, layer: int, resid: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """The residual stream as the MLP of ``layer`` is computed from it."""
        norm = self._layers[layer].mlp_norm
        return resid if norm is None else norm(resid, see, layer)

    def projection(
        self, layer: int, slot: Slot
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
        """Weight and bias of the queries, keys or values of ``layer``, by (key-value) head."""
        linear = self._layers[layer].linears[slot]
        weight = linear.weight.view(-1, self.d_head, self.d_model).transpose(1, 2)
        bias = None if linear.bias is None else linear.bias.view(-1, self.d_head)
        return weight, bias

    def head_norm(self, layer: int, slot: Slot) -> Norm | None:
        """The norm of the queries or keys of ``layer``, where there is one."""
        return self._layers[layer].head_norms.get(slot)

    def norm_spans_heads(self, layer: int, slot: Slot) -> bool:
        """Whether the norm of queries or keys is one over all heads, rather than one for each."""
        norm = self.head_norm(layer, slot)
        return norm is not None and len(norm.weight) != self.d_head

    def project_raw(
        self, layer: int, slot: Slot, normed: Float[Tensor, "*token d_model"]
    ) -> Float[Tensor, "*token head d_head"]:
        """Queries, keys or values by (key-value) head, before any norm of theirs."""
        return self._layers[layer].linears[slot](normed).unflatten(-1, (-1, self.d_head))

    def project(
        self,
        layer: int,
        slot: Slot,
        normed: Float[Tensor, "*token d_model"],
        see: See | None = None,
    ) -> Float[Tensor, "*token head d_head"]:
        """Queries, keys or values, one for each reader of that slot."""
        heads = self.project_raw(layer, slot, normed)
        heads = self._normalize_heads(layer, slot, heads, see)
        return heads if slot == "q" else self.for_readers(heads)

    def for_readers(
        self, heads: Float[Tensor, "*token kv_head d_head"]
    ) -> Float[Tensor, "*token head d_head"]:
        """Keys or values (or what is of their shape) by reader: as they are, unless per query."""
        return heads if self.kv_group == 1 else heads.repeat_interleave(self.kv_group, -2)

    def _normalize_heads(
        self, layer: int, slot: Slot, heads: Tensor, see: See | None = None
    ) -> Tensor:
        norm = self.head_norm(layer, slot)
        if norm is None:
            return heads
        if self.norm_spans_heads(layer, slot):
            return norm(heads.flatten(-2), see, layer).view_as(heads)
        return norm(heads, see, layer)

    def project_heads(
        self,
        layer: int,
        slot: Slot,
        heads: Sequence[int],
        normed: Float[Tensor, "item pair pos d_model"],
    ) -> Float[Tensor, "item pair pos d_head"]:
        """The query, key or value of ``heads[i]`` computed from a stream of its own, for each i."""
        chosen = torch.tensor(heads, device=normed.device)
        if slot != "q":
            chosen = chosen // self.kv_group
        if self.norm_spans_heads(layer, slot):
            every = self._normalize_heads(layer, slot, self.project_raw(layer, slot, normed))
            return every[torch.arange(len(heads), device=normed.device), :, :, chosen]
        weight, bias = self.projection(layer, slot)
        if len(set(heads)) == 1:
            # A plain number: no copy of the weight for each item, and no wait for the device.
            projected = normed @ weight[heads[0] if slot == "q" else heads[0] // self.kv_group]
        else:
            projected = torch.einsum("ebpm,emd->ebpd", normed, weight[chosen])
        if bias is not None:
            projected = projected + bias[chosen][:, None, None]
        return self._normalize_heads(layer, slot, projected)

    def attention_gain(self, layer: int) -> Float[Tensor, "#d_model"]:
        """What the heads' summed outputs are multiplied with, after any scale, when written."""
        one = self._layers[layer]
        if one.post_attention_norm is None:
            return torch.full((1,), one.multiplier, device=self.device, dtype=self.dtype)
        return one.post_attention_norm.weight * one.multiplier

    def raw_output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of ``layer``."""
        weight = in_out_weight(self._layers[layer].linears["o"])
        return weight.reshape(-1, self.d_head, self.d_model)

    def output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """What makes a head's write of its ``written``: W_O, and the gain behind it."""
        weight = self.raw_output_weight(layer)
        one = self._layers[layer]
        if one.post_attention_norm is None and one.multiplier == 1:
            return weight
        return (weight * self.attention_gain(layer)).to(weight.dtype)

    def raw_attention_output(
        self, layer: int, z: Float[Tensor, "*token head d_head"]
    ) -> Float[Tensor, "*token d_model"]:
        """The heads' outputs summed through W_O, bias included, before any norm behind it."""
        return self._layers[layer].linears["o"](z.flatten(-2))

    def finish_attention(
        self, layer: int, raw: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """What attention adds to the residual stream, from ``raw_attention_output``."""
        one = self._layers[layer]
        if one.post_attention_norm is not None:
            raw = one.post_attention_norm(raw, see, layer)
        return raw * one.multiplier if one.multiplier != 1 else raw

    def written(
        self, layer: int, z: Float[Tensor, "*token head d_head"], see: See | None = None
    ) -> Float[Tensor, "*token head d_head"]:
        """z, times the scale of the norm behind attention where there is one.

        A head writes ``written @ output_weight``: with the scale of its own run, so that writes add
        up to the residual stream.
        """
        norm = self._layers[layer].post_attention_norm
        if norm is None:
            return z
        scale = norm.scale(self.raw_attention_output(layer, z))
        if see is not None:
            scale = see("norm_scale", layer, scale)
        return (z * scale[..., None]).to(z.dtype)

    def mlp(
        self, layer: int, normed: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """What the MLP of ``layer`` writes, given its normalized input; ``see`` sees its neurons.

        Shown are, where the MLP has them: ``gate`` (the activation's input), ``activation`` (its
        output), and for gated ones ``up`` (what that is multiplied with) and ``product``; last
        ``neurons``, what W_out is applied to.
        """
        one = self._layers[layer]
        hooks = [] if see is None else one.show_mlp(layer, see)
        try:
            out = one.mlp(normed)
        finally:
            for hook in hooks:
                hook.remove()
        if one.post_mlp_norm is not None:
            out = one.post_mlp_norm(out, see, layer)
        return out * one.multiplier if one.multiplier != 1 else out

    def mlp_norm_derivative(
        self, layer: int, resid: Float[Tensor, "*token d_model"], frozen: bool = False
    ) -> NormDerivative | None:
        """The derivative of ``mlp_norm`` at a residual stream; None if it is the identity."""
        norm = self._layers[layer].mlp_norm
        return None if norm is None else norm.derivative(resid, frozen)

    def mlp_weights(self, layer: int) -> MlpWeights:
        """The weights around the neurons of ``layer``, the gain behind them included."""
        one = self._layers[layer]
        gated = one.gate is not None
        gain = 1.0 if one.post_mlp_norm is None else one.post_mlp_norm.weight
        return MlpWeights(
            gate=in_out_weight(one.gate if gated else one.up),
            up=in_out_weight(one.up) if gated else None,
            out=in_out_weight(one.out) * gain * one.multiplier,
        )

    def mlp_scale(
        self, layer: int, neurons: Float[Tensor, "*token d_mlp"]
    ) -> Float[Tensor, "*token 1"]:
        """What a norm behind the MLP scales its output with, in the run these neurons are of."""
        one = self._layers[layer]
        if one.post_mlp_norm is None:
            return torch.ones_like(neurons[..., :1])
        return one.post_mlp_norm.scale(one.out(neurons))

    def experts(self, layer: int) -> tuple[str, ...]:
        """Names of the experts of ``layer``: ``e0`` and so on, and ``shared``; none for an MLP."""
        mlp = self._layers[layer].mlp
        if not hasattr(mlp, "experts"):
            return ()
        shared = ("shared",) if hasattr(mlp, "shared_expert") else ()
        return (*(f"e{index}" for index in range(int(mlp.experts.num_experts))), *shared)

    def expert(
        self,
        layer: int,
        name: str,
        normed: Float[Tensor, "token d_model"],
        routed_by: Float[Tensor, "token d_model"],
    ) -> Float[Tensor, "token d_model"]:
        """What one expert writes: its output times the routing weight that ``routed_by`` gives it.

        The shared expert's gate reads what the expert reads.
        """
        mlp = self._layers[layer].mlp
        if name == "shared":
            return torch.sigmoid(mlp.shared_expert_gate(normed)) * mlp.shared_expert(normed)
        _, weights, chosen = mlp.gate(routed_by)
        weights = weights * (chosen == int(name[1:]))
        return mlp.experts(normed, chosen, weights)

    @property
    def has_neurons(self) -> bool:
        """Whether every MLP is one layer of neurons, and no mixture of experts."""
        return all(one.out is not None for one in self._layers)

    def unruled_modules(self) -> str | None:
        """The first MLP whose inside cannot be shown, in words; None if there is none."""
        for layer, one in enumerate(self._layers):
            if one.out is None:
                return f"the mixture of experts blocks.{layer}.mlp ({type(one.mlp).__name__})"
            if one.activation is None:
                return f"the activation of blocks.{layer}.mlp ({type(one.mlp).__name__})"
        return None

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row key kv_head d_head"],
        v: Float[Tensor, "row key kv_head d_head"],
        see: See | None = None,
    ) -> Float[Tensor, "row query head d_head"]:
        """Causal attention: z = softmax(rotated q . rotated k * scale) v, softmax in float32.

        Any number of heads may be given, so long as ``kv_head`` divides ``head``: each key and
        value serves as many consecutive query heads. Queries may be fewer than keys: they stand at
        the last positions. ``see`` sees the scores and the pattern.
        """
        scores = self.attention_scores(layer, q, k)
        if see is not None:
            scores = see("scores", layer, scores)
        pattern = scores.softmax(-1, dtype=at_least_float32(scores.dtype)).to(v.dtype)
        if see is not None:
            pattern = see("pattern", layer, pattern)
        return mix(pattern, v)

    def attention_scores(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row key kv_head d_head"],
    ) -> Float[Tensor, "row head query key"]:
        """What the softmax of ``attend`` is taken of; -inf where a query may not look."""
        scores = self._layers[layer].scores
        rotated = scores.rotate(q, k.shape[1] - q.shape[1])
        grouped_q = rotated.unflatten(2, (k.shape[2], -1))
        products = torch.einsum("rqgnd,rkgd->rgnqk", grouped_q, scores.rotate(k))
        return scores(products).flatten(1, 2)

    def logits(
        self, resid: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_vocab"]:
        """Logits from the last residual stream."""
        logits = self.bridge.unembed(self._final_norm(resid, see, self.graph.n_layers))
        if self._logits_divisor != 1:
            logits = logits / self._logits_divisor
        if self._logits_cap is not None:
            logits = (logits / self._logits_cap).tanh() * self._logits_cap
        return logits

    # ---- runs

    def block(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        see: See | None = None,
        past: Past | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "row query d_model"]:
        """One block; ``see`` sees its activations, in the order they are computed.

        Args:
            past: keys and values of the positions before those of ``resid``.
            last_only: compute what the block writes at the last position alone.
        """

        def seen(name: str, value: Tensor) -> Tensor:
            return value if see is None else see(name, layer, value)

        resid = seen("resid_pre", resid)
        normed = self.attention_norm(layer, resid, see)
        written_at = slice(-1, None) if last_only else slice(None)
        q = seen("q", self.project(layer, "q", normed[:, written_at], see))
        k, v = (seen(slot, self.project(layer, slot, normed, see)) for slot in ("k", "v"))
        if past is not None:
            k, v = past.before(layer, k, v)
        resid = resid[:, written_at]
        z = seen("z", self.attend(layer, q, k, v, see))
        after_attention = resid + self._write_attention(layer, z, see)
        mlp_in = resid if self.graph.parallel else after_attention
        mlp_in = seen("mlp_in", mlp_in.view_as(mlp_in))
        mlp_out = seen("mlp_out", self.mlp(layer, self.mlp_norm(layer, mlp_in, see), see))
        return after_attention + mlp_out

    @property
    def heads_share_scale(self) -> bool:
        """Whether a norm behind attention scales what a head writes by what the others of its
        layer write."""
        return any(one.post_attention_norm is not None for one in self._layers)

    def _write_attention(self, layer: int, z: Tensor, see: See | None) -> Tensor:
        """What attention adds to the residual stream; ``see`` sees what each head writes."""
        written = z if see is None else see("written", layer, self.written(layer, z, see))
        if see is None or self._layers[layer].post_attention_norm is None:
            return self.finish_attention(layer, self.raw_attention_output(layer, written), see)
        return torch.einsum("rthe,hem->rtm", written, self.output_weight(layer))

    def run(
        self,
        resid: Float[Tensor, "row pos d_model"],
        see: See | None = None,
        start: int = 0,
        past: Past | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "row query d_model"]:
        """The last residual stream, from the one before block ``start``; see ``block``.

        Args:
            last_only: compute it at the last position alone, which spares most of the last block.
        """
        if see is not None and start == 0:
            resid = see("input", 0, resid)
        last = self.graph.n_layers - 1
        for layer in range(start, self.graph.n_layers):
            resid = self.block(layer, resid, see, past, last_only and layer == last)
        return resid

    @contextmanager
    def borrowed(self, with_hooks: bool = False) -> Generator[None]:
        """The bridge frozen, in evaluation mode, without hooks, and float32 multiplied as ``tf32``
        says; then all as it was, come what may.
        """
        multiplies: Any = torch.backends.cuda.matmul
        flag, values = "allow_tf32", (False, True)
        if hasattr(multiplies, "fp32_precision"):  # since torch 2.9, which objects to mixing both
            flag, values = "fp32_precision", ("ieee", "tf32")
        multiplied = getattr(multiplies, flag)
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
            setattr(multiplies, flag, values[self.tf32])
            for module in training:
                module.training = False
            for weight in trained:
                weight.requires_grad_(False)
            for module, kind, hooks in hooked:
                module.__dict__[kind] = type(hooks)()
            yield
        finally:
            setattr(multiplies, flag, multiplied)
            for module, kind, hooks in hooked:
                module.__dict__[kind] = hooks
            for weight in trained:
                weight.requires_grad_(True)
            for module in training:
                module.training = True

    # ---- checks

    def _refuse_variants(self, config: Any) -> None:
        """Raises InputError for variants of supported architectures that are taken apart wrongly."""
        refused = {
            "attention without scaling (scale_attn_weights=False), here or by TransformerBridge; "
            "multiply it into the query weights": not getattr(config, "scale_attn_weights", True),
            "ALiBi position biases (alibi=True)": bool(getattr(config, "alibi", False)),
            "attention before the MLP (parallel_attn=False)": not getattr(
                config, "parallel_attn", True
            ),
            "a mixture of experts in float64 by grouped products; set the Hugging Face model's "
            'config._experts_implementation to "eager" before it is wrapped': (
                self.dtype == torch.float64
                and self.bridge.blocks[0].mlp.submodules.get("out") is None
                and getattr(config, "_experts_implementation", None) != "eager"
            ),
            "biases behind attention that a norm scales (attention_bias=True)": (
                "ln1_post" in self.bridge.blocks[0].submodules
                and bool(getattr(config, "attention_bias", False))
            ),
        }
        for what, has in refused.items():
            if has:
                raise InputError(f"model {self.name}: not supported is {what}")

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

        The logits computed from the parts must be the bridge's own, hooks included, and at every
        reader the writers before it must sum to what it reads; to 1e-4 of the largest value in
        float32.

        Raises:
            WiremapError: they are not. InputError, if hooks on the bridge are the reason.
        """
        if (
            self._checked
            and self._hooks() == self._checked[0]
            and tokens.shape[1] <= self._checked[1]
        ):
            return
        tolerance = 1e-4 if at_least_float32(self.dtype) == self.dtype else 3e-2
        with torch.no_grad():
            with self.borrowed(with_hooks=True):
                whole = self.bridge(tokens)
            with self.borrowed():
                kept = Activations()
                seen = kept.noting(("resid_pre", "mlp_in", "written", "mlp_out"))
                final = self.run(self.embed(tokens), seen)
                parts = self.logits(final)
                compared = [("logits", parts, whole), *self._sums_of_writers(tokens, kept, final)]
        for what, one, other in compared:
            if not bool(torch.isfinite(other).all()):
                raise WiremapError(
                    f"model {self.name}: the {what} of a longest prompt is not finite; try float32 "
                    "(--dtype float32, dtype=torch.float32)"
                )
            error = float((one - other).abs().max() / other.abs().max())
            if not error <= tolerance:
                raise self._parts_differ(what, error, tolerance)
        self._checked = self._hooks(), tokens.shape[1]

    def _sums_of_writers(
        self, tokens: Int64[Tensor, "pair pos"], kept: Activations, final: Tensor
    ) -> Generator[tuple[str, Tensor, Tensor]]:
        """What all writers before a reader add up to, and what it reads, reader by reader."""
        total = self.embed(tokens)
        for layer, (z, mlp_out) in enumerate(zip(kept.written, kept.mlp_out, strict=True)):
            yield f"sum of writers before layer {layer}", total, kept.resid_pre[layer]
            bias = self.raw_attention_output(layer, torch.zeros_like(z)[:1, :1])
            writes = torch.einsum("pthd,hdm->ptm", z, self.output_weight(layer))
            attention = writes + bias * self.attention_gain(layer)
            read = total if self.graph.parallel else total + attention
            yield f"sum of writers before m{layer}", read, kept.mlp_in[layer]
            total = total + attention + mlp_out
        yield "sum of writers", total, final

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
        if at_least_float32(self.dtype) != self.dtype:
            return WiremapError(
                f"model {self.name}: in {self.dtype} its {what} cannot be computed closely enough "
                f"(off by {error:.1e} of the largest value, allowed {tolerance:.0e}); use float32 "
                "(--dtype float32, dtype=torch.float32)"
            )
        return WiremapError(
            f"model {self.name}: the {what} computed from its parts differ from its own by "
            f"{error:.1e} of the largest value (allowed {tolerance:.0e}), so its edges cannot be "
            f"trusted. Please report this with the model's config (architecture "
            f"{self.architecture})"
        )
