"""The slow, obviously right transformer: float64, a loop over heads, every reader's input explicit.

Written from the papers and the checkpoint's tensors alone; it shares no code with wiremap. Each
reader gets its input from ``read(reader, writes)``, so that path patching, circuits and the
derivative by an edge are all one line each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Writes = dict[str, Tensor]
Read = Callable[[str, Writes], Tensor]
Values = dict[str, Tensor]
See = Callable[[str, Tensor], Tensor]


def total(_: str, writes: Writes) -> Tensor:
    """What a reader reads in an ordinary run: the sum over all writers before it."""
    return torch.stack(list(writes.values())).sum(0)


@dataclass(frozen=True)
class Rules:
    """Changes of the backward pass, for oracles of relevance propagation; no value changes.

    A mixture of experts has its rules within each expert; its router keeps its gradient.
    """

    freeze_norms: bool = False
    """Every norm's divisor is a constant; the mean is still subtracted."""
    identity_activation: bool = False
    """f(x) is x times the constant f(x) / x."""
    half_gate: bool = False
    """Each factor of activation(gate) * up gets half of its gradient."""
    detach_pattern: bool = False
    softmax_temperature: float = 1.0
    """Gradients g by the attention pattern p become p_T (g - sum p_T g), with p_T = softmax(scores
    / temperature): the derivative of the softer softmax, without its factor 1 / temperature."""
    q_factor: float = 1.0
    k_factor: float = 1.0
    v_factor: float = 1.0

    def scaled(self, slot: str, x: Tensor) -> Tensor:
        """Queries, keys or values whose gradient has its factor."""
        factor: float = getattr(self, f"{slot}_factor")
        return x if factor == 1 else x * factor + (1 - factor) * x.detach()


ORDINARY = Rules()


# ---- the parts of a block


class Affine(NamedTuple):
    """``x @ weight + bias``."""

    weight: Tensor  # [in, out]
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@dataclass(frozen=True)
class Norm:
    """LayerNorm; without a bias RMS norm, which does not subtract the mean."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def divisor(self, x: Tensor, rules: Rules) -> Tensor:
        root = (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return root.detach() if rules.freeze_norms else root

    def __call__(self, x: Tensor, rules: Rules) -> Tensor:
        if self.bias is None:
            return x / self.divisor(x, rules) * self.weight
        x = x - x.mean(-1, keepdim=True)
        return x / self.divisor(x, rules) * self.weight + self.bias


def normed(norm: Norm | None, x: Tensor, rules: Rules) -> Tensor:
    return x if norm is None else norm(x, rules)


@dataclass(frozen=True)
class Slot:
    """How all heads' queries, keys or values are made of what is read."""

    weight: Tensor  # [d_model, head, d_head]
    bias: Tensor  # [head, d_head]
    norm: Norm | None  # over one head, or over all heads at once

    def of_head(self, head: int, x: Tensor, rules: Rules) -> Tensor:
        if self.norm is None or len(self.norm.weight) == self.bias.shape[1]:
            return normed(self.norm, x @ self.weight[:, head] + self.bias[head], rules)
        every = x @ self.weight.flatten(1) + self.bias.flatten()
        return self.norm(every, rules).unflatten(-1, self.bias.shape)[..., head, :]


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of the first entries of a head."""

    n_rotated: int
    theta: float
    interleaved: bool
    """Whether the two of a pair stand side by side, or half of the entries apart."""

    def __call__(self, x: Tensor) -> Tensor:
        """Of ``[pair pos d_head]``."""
        half = self.n_rotated // 2
        frequency = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        turned, rest = x[..., : self.n_rotated], x[..., self.n_rotated :]
        if self.interleaved:
            one, two = turned[..., ::2], turned[..., 1::2]
        else:
            one, two = turned[..., :half], turned[..., half:]
        pairs = torch.stack([one * cos - two * sin, two * cos + one * sin])
        turned = pairs.movedim(0, -1 if self.interleaved else -2).flatten(-2)
        return torch.cat([turned, rest], -1)


_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": lambda x: (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()) / 2,
}
_SLOPES["gelu_pytorch_tanh"] = _SLOPES["gelu_new"]


@dataclass(frozen=True)
class Mlp:
    """One MLP, or one expert."""

    activation: str
    gate: Affine | None
    up: Affine
    down: Affine

    def activated(self, x: Tensor, rules: Rules) -> Tensor:
        slope = _SLOPES[self.activation](x)
        return x * (slope.detach() if rules.identity_activation else slope)

    def neurons(self, x: Tensor, rules: Rules) -> Tensor:
        """After the activation and the gate."""
        if self.gate is None:
            return self.activated(self.up(x), rules)
        product = self.activated(self.gate(x), rules) * self.up(x)
        return product / 2 + product.detach() / 2 if rules.half_gate else product

    def __call__(self, x: Tensor, rules: Rules) -> Tensor:
        return self.down(self.neurons(x, rules))


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: one writer, whose router reads what the experts read."""

    router: Tensor  # [d_model, expert]
    experts: list[Mlp]
    n_chosen: int
    sum_to_one: bool
    """Whether the weights of the chosen experts are made to."""
    shared: Mlp | None
    shared_gate: Tensor | None  # [d_model, 1]

    def weights(self, x: Tensor) -> Tensor:
        """Of each expert at each position; 0 where it is not chosen. ``[pair pos expert]``"""
        probabilities = (x @ self.router).softmax(-1)
        lowest = probabilities.topk(self.n_chosen, -1).values[..., -1:]
        weights = probabilities.where(probabilities >= lowest, 0.0)
        return weights / weights.sum(-1, keepdim=True) if self.sum_to_one else weights

    def __call__(self, x: Tensor, rules: Rules) -> Tensor:
        weights = self.weights(x)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            output = output + weights[..., index, None] * expert(x, rules)
        if self.shared is not None and self.shared_gate is not None:
            output = output + (x @ self.shared_gate).sigmoid() * self.shared(x, rules)
        return output


@dataclass(frozen=True)
class Block:
    """One layer; norms that a kind does not have are None."""

    attention_norm: Norm | None
    mlp_norm: Norm | None
    post_attention: Norm | None
    post_mlp: Norm | None
    slots: dict[str, Slot]
    output: Tensor  # [head, d_head, d_model]
    output_bias: Tensor
    mlp: Mlp | Experts
    rotary: Rotary | None
    window: int | None
    """How many positions a query sees, its own included."""


# ---- checkpoints


@dataclass(frozen=True)
class Names:
    """Where a checkpoint keeps its tensors; as they stand, Llama's."""

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    block: str = "model.layers"
    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    post_attention: str | None = None
    post_mlp: str | None = None
    attention: str = "self_attn"
    output: str = "o_proj"
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


_GEMMA = Names(
    mlp_norm="pre_feedforward_layernorm",
    post_attention="post_attention_layernorm",
    post_mlp="post_feedforward_layernorm",
)
_GPT_J = Names(
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    block="transformer.h",
    attention_norm="ln_1",
    mlp_norm="ln_1",
    attention="attn",
    output="out_proj",
    gate=None,
    up="mlp.fc_in",
    down="mlp.fc_out",
)
_NEOX = Names(
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    block="gpt_neox.layers",
    attention="attention",
    output="dense",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)
_FALCON = replace(
    _NEOX,
    embedding="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    block="transformer.h",
    attention="self_attention",
)
_NAMES = {
    "gpt2": replace(_GPT_J, mlp_norm="ln_2", output="c_proj", up="mlp.c_fc", down="mlp.c_proj"),
    "gptj": _GPT_J,
    "gpt_neox": _NEOX,
    "phi": Names(
        final_norm="model.final_layernorm",
        mlp_norm="input_layernorm",
        output="dense",
        gate=None,
        up="mlp.fc1",
        down="mlp.fc2",
    ),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": replace(_GEMMA, attention_norm=None, mlp_norm=None),
}


def names_of(config: Any) -> Names:
    if config.model_type != "falcon":
        return _NAMES.get(config.model_type, Names())
    if config.new_decoder_architecture:
        return replace(_FALCON, attention_norm="ln_attn", mlp_norm="ln_mlp")
    return replace(_FALCON, mlp_norm="input_layernorm") if config.parallel_attn else _FALCON


def is_parallel(config: Any) -> bool:
    """Whether an MLP reads what the attention of its layer reads."""
    if config.model_type == "gpt_neox":
        return config.use_parallel_residual
    if config.model_type == "falcon":
        return config.new_decoder_architecture or config.parallel_attn
    return config.model_type in ("gptj", "phi")


def n_kv_heads_of(config: Any) -> int:
    if config.model_type == "falcon":
        if config.multi_query and not config.new_decoder_architecture:
            return 1
        return config.num_kv_heads
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def setting(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these settings that the configuration has."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), default)


class Checkpoint:
    """A Hugging Face model's tensors as blocks."""

    def __init__(self, config: Any, weights: dict[str, Tensor]) -> None:
        self.config, self.weights = config, weights
        self.kind: str = config.model_type
        self.names = names_of(config)
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads = n_kv_heads_of(config)
        self.d_head: int = setting(config, "head_dim", default=config.hidden_size // self.n_heads)
        self.activation: str = setting(
            config, "hidden_activation", "activation_function", "activation", "hidden_act"
        )

    def affine(self, prefix: str) -> Affine:
        weight = self.weights[f"{prefix}.weight"]
        if not (self.kind == "gpt2" and ".c_" in prefix):  # GPT-2's alone is [in, out]
            weight = weight.T
        bias = self.weights.get(f"{prefix}.bias")
        return Affine(weight, weight.new_zeros(weight.shape[1]) if bias is None else bias)

    def norm(self, prefix: str) -> Norm:
        weight = self.weights[f"{prefix}.weight"]
        if self.kind in ("gemma2", "gemma3_text"):
            weight = 1 + weight
        eps = setting(self.config, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
        return Norm(weight, self.weights.get(f"{prefix}.bias"), eps)

    def slots(self, prefix: str) -> dict[str, Slot]:
        """By queries, keys and values."""
        weights, biases = self._by_slot(prefix)
        norms = {
            slot: self.norm(f"{prefix}.{slot}_norm")
            for slot in "qk"
            if f"{prefix}.{slot}_norm.weight" in self.weights
        }
        return {slot: Slot(weights[slot], biases[slot], norms.get(slot)) for slot in "qkv"}

    def _by_slot(self, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights ``[d_model, head, d_head]`` and biases ``[head, d_head]``."""
        for fused, cut in (("c_attn", self._thirds), ("query_key_value", self._groups)):
            if f"{prefix}.{fused}.weight" in self.weights:
                weight, bias = self.affine(f"{prefix}.{fused}")
                return cut(weight), cut(bias)
        parts = {slot: self.affine(f"{prefix}.{slot}_proj") for slot in "qkv"}
        return (
            {slot: self._heads(part.weight) for slot, part in parts.items()},
            {slot: self._heads(part.bias) for slot, part in parts.items()},
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head))

    def _thirds(self, x: Tensor) -> dict[str, Tensor]:
        """GPT-2: all queries, all keys, all values."""
        return dict(zip("qkv", map(self._heads, x.chunk(3, -1)), strict=True))

    def _groups(self, x: Tensor) -> dict[str, Tensor]:
        """NeoX and Falcon: for each key-value head its queries, its key, its value."""
        x = self._heads(x).unflatten(-2, (self.n_kv_heads, -1))
        return {"q": x[..., :-2, :].flatten(-3, -2), "k": x[..., -2, :], "v": x[..., -1, :]}

    def mlp(self, block: str) -> Mlp | Experts:
        if f"{block}.mlp.experts.down_proj" in self.weights:
            return self.experts(f"{block}.mlp")
        gate = self.names.gate
        return Mlp(
            self.activation,
            None if gate is None else self.affine(f"{block}.{gate}"),
            self.affine(f"{block}.{self.names.up}"),
            self.affine(f"{block}.{self.names.down}"),
        )

    def experts(self, prefix: str) -> Experts:
        shared = None
        if f"{prefix}.shared_expert_gate.weight" in self.weights:
            parts = [f"{prefix}.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
            shared = Mlp(self.activation, *map(self.affine, parts))
        return Experts(
            router=self.affine(f"{prefix}.gate").weight,
            experts=[
                self.expert(gate_up, down)
                for gate_up, down in zip(
                    self.weights[f"{prefix}.experts.gate_up_proj"],
                    self.weights[f"{prefix}.experts.down_proj"],
                    strict=True,
                )
            ],
            n_chosen=self.config.num_experts_per_tok,
            sum_to_one=self.kind == "mixtral" or self.config.norm_topk_prob,
            shared=shared,
            shared_gate=shared and self.affine(f"{prefix}.shared_expert_gate").weight,
        )

    def expert(self, gate_up: Tensor, down: Tensor) -> Mlp:
        """From ``[gates then ups, d_model]`` and ``[d_model, neuron]``."""
        matrices = (*gate_up.chunk(2), down)
        gate, up, down_ = (Affine(w.T, w.new_zeros(len(w))) for w in matrices)
        return Mlp(self.activation, gate, up, down_)

    def rotary(self, layer: int) -> Rotary | None:
        if self.kind == "gpt2":
            return None
        if self.kind == "gptj":
            return Rotary(self.config.rotary_dim, 10000.0, interleaved=True)
        rope = self.config.rope_parameters
        if self.kind == "gemma3_text":
            rope = rope[self.config.layer_types[layer]]
        n_rotated = int(self.d_head * rope.get("partial_rotary_factor", 1.0))
        return Rotary(n_rotated, rope["rope_theta"], interleaved=False)

    def window(self, layer: int) -> int | None:
        types = getattr(self.config, "layer_types", None)
        if types is not None and types[layer] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def block(self, layer: int) -> Block:
        names, prefix = self.names, f"{self.names.block}.{layer}"

        def norm(name: str | None) -> Norm | None:
            return None if name is None else self.norm(f"{prefix}.{name}")

        output = self.affine(f"{prefix}.{names.attention}.{names.output}")
        return Block(
            attention_norm=norm(names.attention_norm),
            mlp_norm=norm(names.mlp_norm),
            post_attention=norm(names.post_attention),
            post_mlp=norm(names.post_mlp),
            slots=self.slots(f"{prefix}.{names.attention}"),
            output=output.weight.unflatten(0, (self.n_heads, self.d_head)),
            output_bias=output.bias,
            mlp=self.mlp(prefix),
            rotary=self.rotary(layer),
            window=self.window(layer),
        )


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * (x / cap).tanh()


class SlowModel:
    """A transformer in float64, from a Hugging Face model.

    Args:
        hf_model: The model, before or after a bridge has wrapped it.
        per_query: Whether each query head has a key and a value reader of its own: what reaches
            it changes the key of its group as that query head sees it, and for no other.

    """

    def __init__(self, hf_model: Any, per_query: bool = False) -> None:
        self.config = hf_model.config
        self.kind: str = self.config.model_type
        self.weights = {
            name.replace("._original_component", ""): tensor.detach().double()
            for name, tensor in hf_model.state_dict().items()
        }
        self.checkpoint = Checkpoint(self.config, self.weights)
        self.n_layers: int = self.config.num_hidden_layers
        self.n_heads = self.checkpoint.n_heads
        self.n_kv_heads = self.checkpoint.n_kv_heads
        self.n_kv_readers = self.n_heads if per_query else self.n_kv_heads
        self.d_head = self.checkpoint.d_head
        self.parallel = is_parallel(self.config)
        self.blocks = [self.checkpoint.block(layer) for layer in range(self.n_layers)]
        self.final_norm = self.checkpoint.norm(self.checkpoint.names.final_norm)
        named = "embed_out" if "embed_out.weight" in self.weights else "lm_head"
        self.unembedding = self.checkpoint.affine(named)
        self.residual_multiplier: float = getattr(self.config, "residual_multiplier", 1.0)
        # Gemma 3 has the setting, but its attention does not apply it.
        self.score_cap: float | None = (
            self.config.attn_logit_softcapping if self.kind == "gemma2" else None
        )

    # ---- names, in EAP-IG's order

    def kv_name(self, layer: int, reader: int) -> str:
        return f"a{layer}.{'h' if self.n_kv_readers == self.n_heads else 'kv'}{reader}"

    def n_readers(self, slot: str) -> int:
        return self.n_heads if slot == "q" else self.n_kv_readers

    @property
    def writers(self) -> list[str]:
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)] + [f"m{layer}"]
        return names

    @property
    def readers(self) -> list[str]:
        names: list[str] = []
        for layer in range(self.n_layers):
            for slot in "qkv":
                names += [self.slot_name(layer, slot, at) for at in range(self.n_readers(slot))]
            names.append(f"m{layer}")
        return [*names, "logits"]

    def reads(self, reader: str) -> list[str]:
        """The writers a reader reads."""
        if reader == "logits":
            return self.writers
        layer = int(reader[1:].split(".")[0])
        before = [name for name in self.writers if name == "input" or self.layer_of(name) < layer]
        if reader.startswith("m") and not self.parallel:
            before += [f"a{layer}.h{head}" for head in range(self.n_heads)]
        return before

    @staticmethod
    def layer_of(name: str) -> int:
        return int(name[1:].split(".")[0])

    @property
    def edges(self) -> list[tuple[str, str]]:
        return [(writer, reader) for reader in self.readers for writer in self.reads(reader)]

    # ---- the parts

    def project(
        self, layer: int, slot: str, reader: int, x: Tensor, rules: Rules = ORDINARY
    ) -> Tensor:
        """What a query, key or value reader makes of its normed input, before any rotation."""
        head = reader if slot == "q" else reader * self.n_kv_heads // self.n_kv_readers
        return rules.scaled(slot, self.blocks[layer].slots[slot].of_head(head, x, rules))

    def pattern(
        self, queries: Tensor, keys: Tensor, layer: int = 0, rules: Rules = ORDINARY
    ) -> Tensor:
        """Attention weights of one head, from its queries and keys before any rotation.

        Layers of Gemma differ in their windows, and those of Gemma 3 in their rotations too.
        """
        rotary, window = self.blocks[layer].rotary, self.blocks[layer].window
        if rotary is not None:
            queries, keys = rotary(queries), rotary(keys)
        scores = capped(queries @ keys.transpose(1, 2) * self.score_scale, self.score_cap)
        position = torch.arange(queries.shape[1])
        back = position[:, None] - position
        unseen = back < 0 if window is None else (back < 0) | (back >= window)
        return self._softmax(scores.masked_fill(unseen, -math.inf), rules)

    @property
    def score_scale(self) -> float:
        if self.kind == "granite":
            return self.config.attention_multiplier
        return getattr(self.config, "query_pre_attn_scalar", self.d_head) ** -0.5

    @staticmethod
    def _softmax(scores: Tensor, rules: Rules) -> Tensor:
        pattern = scores.softmax(-1)
        temperature = rules.softmax_temperature
        if temperature != 1:
            softer = (scores / temperature).softmax(-1)
            pattern = pattern.detach() + temperature * (softer - softer.detach())
        return pattern.detach() if rules.detach_pattern else pattern

    def head_output(self, layer: int, head: int) -> Tensor:
        """W_O of one head, ``[d_head, d_model]``."""
        return self.blocks[layer].output[head]

    def written(self, parts: Writes, norm: Norm | None, rules: Rules = ORDINARY) -> Writes:
        """What reaches the residual stream, by parts that sum to an attention's or MLP's output.

        A norm after it divides each part by the root mean square of them all.
        """
        if norm is not None:
            divisor = norm.divisor(torch.stack(list(parts.values())).sum(0), rules)
            parts = {name: part / divisor * norm.weight for name, part in parts.items()}
        return {name: part * self.residual_multiplier for name, part in parts.items()}

    @property
    def embedding(self) -> Tensor:
        """What tokens write, ``[d_vocab, d_model]``."""
        scale = getattr(self.config, "embedding_multiplier", 1.0)
        if self.kind in ("gemma2", "gemma3_text"):
            scale = math.sqrt(self.config.hidden_size)
        return self.weights[f"{self.checkpoint.names.embedding}.weight"] * scale

    def embed(self, tokens: Tensor) -> Tensor:
        written = self.embedding[tokens]
        if self.kind == "gpt2":
            written = written + self.weights["transformer.wpe.weight"][: tokens.shape[1]]
        return written

    def unembed(self, x: Tensor, rules: Rules = ORDINARY) -> Tensor:
        logits = self.unembedding(self.final_norm(x, rules))
        if self.kind == "granite":
            logits = logits / self.config.logits_scaling
        return capped(logits, getattr(self.config, "final_logit_softcapping", None))

    # ---- runs

    def run(
        self, tokens: Tensor, read: Read = total, rules: Rules = ORDINARY
    ) -> tuple[Tensor, Writes]:
        """Logits at the last position, and what every writer wrote (biases as ``bias{layer}``)."""
        return self.run_from(self.embed(tokens), read, rules)

    def run_from(
        self, resid: Tensor, read: Read = total, rules: Rules = ORDINARY
    ) -> tuple[Tensor, Writes]:
        """The same, from what the input writes."""
        writes: Writes = {"input": resid}
        for layer, block in enumerate(self.blocks):
            found: Values = {}
            for slot in "qkv":
                for reader in range(self.n_readers(slot)):
                    name = self.slot_name(layer, slot, reader)
                    x = normed(block.attention_norm, read(name, writes), rules)
                    found[name] = self.project(layer, slot, reader, x, rules)
            outputs: Writes = {}
            for head in range(self.n_heads):
                query, key, value = (found[name] for name in self.slot_names(layer, head))
                pattern = self.pattern(query, key, layer, rules)
                outputs[f"a{layer}.h{head}"] = pattern @ value @ self.head_output(layer, head)
            outputs[f"bias{layer}"] = block.output_bias.expand_as(writes["input"])
            new = self.written(outputs, block.post_attention, rules)
            seen_by_mlp = writes if self.parallel else {**writes, **new}
            x = normed(block.mlp_norm, read(f"m{layer}", seen_by_mlp), rules)
            new |= self.written({f"m{layer}": block.mlp(x, rules)}, block.post_mlp, rules)
            writes |= new
        return self.unembed(read("logits", writes)[:, -1:], rules)[:, 0], writes

    def edited(
        self, base: Tensor, other: Tensor, amount: Tensor, rules: Rules = ORDINARY
    ) -> Tensor:
        """Logits of run ``base`` when edges carry values of run ``other``.

        ``amount [row, writer, reader]`` says how much of the difference each edge gets, in each row
        of the batch: 1 patches the edge, 0 leaves it alone, and the derivative at 0 is its score.
        """
        base_writes, other_writes = self.run(base)[1], self.run(other)[1]

        def read(reader: str, writes: Writes) -> Tensor:
            column = amount[:, :, self.readers.index(reader), None, None]
            change = [
                column[:, self.writers.index(writer)] * (other_writes[writer] - base_writes[writer])
                for writer in self.reads(reader)
            ]
            return total(reader, writes) + torch.stack(change).sum(0)

        return self.run(base, read, rules)[0]

    def reduced(self, clean: Tensor, corrupted: Tensor, kept: set[tuple[str, str]]) -> Tensor:
        """Logits of the circuit: kept edges carry its own values, all others the corrupted run's."""
        corrupted_writes = self.run(corrupted)[1]

        def read(reader: str, writes: Writes) -> Tensor:
            known = {
                name: write if (name, reader) in kept else corrupted_writes[name]
                for name, write in writes.items()
            }
            return total(reader, known)

        return self.run(clean, read)[0]

    # ---- nodes: values of activations, edited, or constant in the backward pass

    def run_nodes(
        self, resid: Tensor, see: See, dropped: int | None = None, rules: Rules = ORDINARY
    ) -> Tensor:
        """Logits at the last position of an ordinary run, from what the input writes.

        ``see`` is shown every activation by name, and what it returns goes on. Names are those of
        nodes without positions; ``m2.n`` are all neurons of an MLP (a mixture of experts has none),
        ``a1.h2<pattern>`` a head's attention weights. Queries and keys are those after their norm,
        a head is its values before any norm of the attention's output, and an MLP is what it
        writes. What layer ``dropped`` writes is constant in the backward pass.
        """
        resid = see("input", resid)
        for layer, block in enumerate(self.blocks):
            resid = see(f"r{layer}", resid)
            x = normed(block.attention_norm, resid, rules)
            read: Values = {}
            for slot in "qkv":
                for reader in range(self.n_readers(slot)):
                    name = self.slot_name(layer, slot, reader)
                    read[name] = see(name, self.project(layer, slot, reader, x, rules))
            output = block.output_bias
            for head in range(self.n_heads):
                query, key, value = (read[name] for name in self.slot_names(layer, head))
                pattern = self.pattern(query, key, layer, rules)
                pattern = see(f"a{layer}.h{head}<pattern>", pattern)
                z = see(f"a{layer}.h{head}", pattern @ value)
                output = output + z @ self.head_output(layer, head)
            write = self.written({"": output}, block.post_attention, rules)[""]
            x = normed(block.mlp_norm, resid if self.parallel else resid + write, rules)
            if isinstance(block.mlp, Experts):
                output = block.mlp(x, rules)
            else:
                output = block.mlp.down(see(f"m{layer}.n", block.mlp.neurons(x, rules)))
            write = write + see(f"m{layer}", self.written({"": output}, block.post_mlp, rules)[""])
            resid = resid + (write.detach() if layer == dropped else write)
        return self.unembed(resid[:, -1:], rules)[:, 0]

    def slot_name(self, layer: int, slot: str, reader: int) -> str:
        node = f"a{layer}.h{reader}" if slot == "q" else self.kv_name(layer, reader)
        return f"{node}<{slot}>"

    def slot_names(self, layer: int, head: int) -> tuple[str, str, str]:
        """The query, key and value readers of a query head."""
        of_group = head * self.n_kv_readers // self.n_heads
        return (
            self.slot_name(layer, "q", head),
            self.slot_name(layer, "k", of_group),
            self.slot_name(layer, "v", of_group),
        )

    def values(self, resid: Tensor) -> Values:
        """Every activation of a run, by name."""
        found: Values = {}

        def see(name: str, value: Tensor) -> Tensor:
            found[name] = value
            return value

        self.run_nodes(resid, see)
        return found

    def patched(self, resid: Tensor, new: Values, items: Sequence[Sequence[str]]) -> Tensor:
        """Logits ``[item pair vocab]`` when the nodes of each item have the values ``new``."""
        n_pairs = len(resid)
        edits: dict[str, list[tuple[int, int | slice, int | slice]]] = {}
        for item, nodes in enumerate(items):
            for node in nodes:
                name, _, position = node.partition("@")
                name, of_neuron, neuron = name.partition(".n")
                edits.setdefault(name + of_neuron, []).append(
                    (
                        item,
                        int(position) if position else slice(None),
                        int(neuron) if neuron else slice(None),
                    )
                )

        def see(name: str, value: Tensor) -> Tensor:
            rows = value.clone().unflatten(0, (len(items), n_pairs))
            for item, position, entry in edits.get(name, ()):
                rows[item, :, position, entry] = new[name][:, position, entry]
            return rows.flatten(0, 1)

        logits = self.run_nodes(resid.repeat(len(items), 1, 1), see)
        return logits.unflatten(0, (len(items), n_pairs))
