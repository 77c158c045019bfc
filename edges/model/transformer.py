"""A TransformerBridge seen as writers and readers of a residual stream.

``Model`` takes the bridge apart into the functions between two residual streams: embedding, blocks
(``block``, ``attention``, ``mlp``) and unembedding. Everything else in wiremap is made of them, so
that a run can be resumed anywhere, and a reader recomputed alone, without a copy of the residual
stream per head. The bridge's own forward pass is used once per model, to check that the parts add
up to the whole (``checks``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError
from ..names.graph import ModelGraph
from ..names.vocabulary import DEVICE, GROUPED, KV
from .activations import Past
from .architectures import refuse_unsupported, refuse_variants
from .block import Block
from .borrowing import borrowed
from .loading import fingerprint, load_bridge, refuse_nonfinite_weights
from .parts import Norm, See
from .plain import refuse_altered
from .tokens import Tokenizer
from .wrapping import as_bridge


class Model:
    """A transformer as wiremap sees it.

    Args:
        bridge: a ``TransformerBridge``. It is run frozen, in evaluation mode and without hooks,
            and left as it was: flags, requires_grad, training mode and hooks. Or a Hugging Face
            model, which is put into one as it is now: it stays as it is, and shares its weights.
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
        InputError: an architecture wiremap does not know, weights that are not finite, or a model
            that is not made of its architecture's own modules with whole weights on one device,
            such as one with an adapter that was not merged, quantized, or offloaded.
    """

    def __init__(
        self,
        bridge: Any,
        name: str | None = None,
        tokenizer: Any = None,
        *,
        bos: bool | None = None,
        kv: str = GROUPED,
        tf32: bool = False,
    ) -> None:
        bridge = as_bridge(bridge, name)
        architecture = str(bridge.cfg.architecture)
        refuse_unsupported(architecture)
        self.bridge = bridge
        self.name = name or str(bridge.cfg.model_name)
        refuse_altered(bridge.original_model, architecture, self.name, bridge)
        self.architecture = architecture
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
        self.quantization: str | None = None
        """How the weights it was loaded from are stored, where they were dequantized: the types of a
        GGUF file, or the method of a quantized directory; None for all other models."""
        self.checked: tuple[frozenset[int], int] | None = None
        """What ``check_parts`` was passed with: hooks on the bridge, and length of the prompt."""
        refuse_variants(bridge, self.name)
        self.blocks = tuple(
            Block(bridge, layer, self.kv_group, self.graph.parallel)
            for layer in range(self.graph.n_layers)
        )
        self.d_mlp = self.blocks[0].mlp.d_mlp
        self._final_norm = Norm(bridge.ln_final)
        # What Hugging Face's models do with embedding and logits outside of any module.
        config = bridge.original_model.config
        self._embedding_factor = float(getattr(config, "embedding_multiplier", 1.0))
        self._logits_divisor = float(getattr(config, "logits_scaling", 1.0))
        self._logits_cap: float | None = getattr(config, "final_logit_softcapping", None)
        refuse_nonfinite_weights(bridge, self.name)
        self.tokenizer = _tokenizer(bridge, tokenizer, bos)

    @classmethod
    def load(
        cls,
        name: str,
        device: str = DEVICE,
        dtype: torch.dtype = torch.float32,
        *,
        bos: bool | None = None,
        kv: str = GROUPED,
        tf32: bool = False,
    ) -> Model:
        """Loads a bundled model, a local Hugging Face directory or GGUF file, or a model of the hub.

        What is local is read without touching the network; only safetensors and GGUF are read,
        never a pickle. A name is first looked for among the bundled models. Weights run in
        ``dtype`` whatever they are stored in; a ``WiremapWarning`` says so of quantized ones, which
        are dequantized, and of those stored in half precision.

        Args:
            device: ``auto`` (CUDA, else MPS, else CPU) or a torch device.
            bos, kv, tf32: see ``Model``.

        Raises:
            InputError: no such model, files missing or damaged, an unsupported architecture or
                quantization, no package ``gguf``.
        """
        loaded = load_bridge(name, device, dtype)
        model = cls(loaded.bridge, name, loaded.tokenizer, bos=bos, kv=kv, tf32=tf32)
        model.quantization = loaded.quantization
        return model

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
        return fingerprint(self.bridge)

    def borrowed(self, with_hooks: bool = False) -> AbstractContextManager[None]:
        """The bridge frozen, in evaluation mode, without hooks, and float32 multiplied as ``tf32``
        says; then all as it was, come what may.
        """
        return borrowed(self.bridge, self.tf32, with_hooks)

    @property
    def has_neurons(self) -> bool:
        """Whether every MLP is one layer of neurons, and no mixture of experts."""
        return all(block.mlp.has_neurons for block in self.blocks)

    @property
    def heads_share_scale(self) -> bool:
        """Whether a norm behind attention scales what a head writes by what the others of its
        layer write."""
        return any(block.attention.shares_scale for block in self.blocks)

    def unruled_modules(self) -> str | None:
        """The first MLP whose inside cannot be shown, in words; None if there is none."""
        unruled = (block.mlp.unruled() for block in self.blocks)
        return next((where for where in unruled if where is not None), None)

    # ---- runs

    def embed(self, tokens: Int64[Tensor, "pair pos"]) -> Float[Tensor, "pair pos d_model"]:
        """What the ``input`` writes: token embedding, and position embedding where there is one."""
        resid = self.bridge.embed(tokens) * self._embedding_factor
        if hasattr(self.bridge, "pos_embed"):
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            resid = resid + self.bridge.pos_embed(positions[None])
        return resid

    def embedding_deviation(self) -> float:
        """The standard deviation of the token embedding's entries."""
        module = self.bridge.embed.original_component
        factor = self._embedding_factor * float(getattr(module, "scalar_embed_scale", 1.0))
        return float(module.weight.float().std()) * factor

    def run(
        self,
        resid: Float[Tensor, "row pos d_model"],
        see: See | None = None,
        start: int = 0,
        past: Past | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "row query d_model"]:
        """The last residual stream, from the one before block ``start``; see ``Block``.

        Args:
            last_only: compute it at the last position alone, which spares most of the last block.
        """
        if see is not None and start == 0:
            resid = see("input", 0, resid)
        last = self.graph.n_layers - 1
        for layer in range(start, self.graph.n_layers):
            resid = self.blocks[layer](resid, see, past, last_only and layer == last)
        return resid

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


def _tokenizer(bridge: Any, tokenizer: Any, bos: bool | None) -> Tokenizer | None:
    """The given tokenizer or the bridge's own; its BOS token as the model was trained, if None."""
    tokenizer = tokenizer or getattr(bridge, "tokenizer", None)
    if tokenizer is None:
        return None
    if bos is None:
        trained_with_bos = bool(getattr(bridge.cfg, "default_prepend_bos", True))
        bos = trained_with_bos and tokenizer.bos_token_id is not None
    return Tokenizer(tokenizer, bos)
