"""The slow, obviously right transformer: float64, a loop over heads, every reader's input explicit.

Written from the papers and the checkpoint's tensors alone; it shares no code with wiremap. Each
reader gets its input from ``read(reader, writes)``, so that path patching, circuits and the
derivative by an edge are all one line each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Writes = dict[str, Tensor]
Read = Callable[[str, Writes], Tensor]
Values = dict[str, Tensor]
See = Callable[[str, Tensor], Tensor]


def total(_: str, writes: Writes) -> Tensor:
    """What a reader reads in an ordinary run: the sum over all writers before it."""
    return torch.stack(list(writes.values())).sum(0)


class SlowModel:
    """GPT-2, Llama or NeoX in float64, from a Hugging Face model."""

    def __init__(self, hf_model: Any) -> None:
        self.config = hf_model.config
        self.kind = self.config.model_type
        self.weights = {
            name.replace("._original_component", ""): tensor.detach().double()
            for name, tensor in hf_model.state_dict().items()
        }
        self.n_layers = self.config.num_hidden_layers
        self.n_heads = self.config.num_attention_heads
        self.n_kv_heads = getattr(self.config, "num_key_value_heads", self.n_heads)
        self.d_head = self.config.hidden_size // self.n_heads
        self.parallel = self.kind == "gpt_neox" and self.config.use_parallel_residual

    # ---- names, in EAP-IG's order

    def kv_name(self, layer: int, head: int) -> str:
        return f"a{layer}.h{head}" if self.n_kv_heads == self.n_heads else f"a{layer}.kv{head}"

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
            names += [f"a{layer}.h{head}<q>" for head in range(self.n_heads)]
            names += [f"{self.kv_name(layer, head)}<k>" for head in range(self.n_kv_heads)]
            names += [f"{self.kv_name(layer, head)}<v>" for head in range(self.n_kv_heads)]
            names.append(f"m{layer}")
        return [*names, "logits"]

    def reads(self, reader: str) -> list[str]:
        """The writers a reader reads."""
        if reader == "logits":
            return self.writers
        layer = int(reader[1:].split(".")[0])
        before = [name for name in self.writers if name == "input" or self._layer(name) < layer]
        if reader.startswith("m") and not self.parallel:
            before += [f"a{layer}.h{head}" for head in range(self.n_heads)]
        return before

    @staticmethod
    def _layer(name: str) -> int:
        return int(name[1:].split(".")[0])

    @property
    def edges(self) -> list[tuple[str, str]]:
        return [(writer, reader) for reader in self.readers for writer in self.reads(reader)]

    # ---- the parts

    def norm(self, x: Tensor, prefix: str) -> Tensor:
        weight = self.weights[f"{prefix}.weight"]
        if self.kind == "llama":
            return x / (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * weight
        eps = (
            self.config.layer_norm_eps
            if self.kind == "gpt_neox"
            else self.config.layer_norm_epsilon
        )
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return x * weight + self.weights[f"{prefix}.bias"]

    def head_weight(self, layer: int, slot: str, head: int) -> tuple[Tensor, Tensor]:
        """``[d_model, d_head]`` and ``[d_head]`` of one head's queries, keys or values."""
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        if self.kind == "gpt2":
            prefix = f"transformer.h.{layer}.attn.c_attn"
            offset = "qkv".index(slot) * self.config.hidden_size
            columns = slice(offset + columns.start, offset + columns.stop)
            return self.weights[f"{prefix}.weight"][:, columns], self.weights[f"{prefix}.bias"][
                columns
            ]
        if self.kind == "gpt_neox":  # rows: head, then q k v, then d_head
            prefix = f"gpt_neox.layers.{layer}.attention.query_key_value"
            start = (3 * head + "qkv".index(slot)) * self.d_head
            rows = slice(start, start + self.d_head)
            return self.weights[f"{prefix}.weight"][rows].T, self.weights[f"{prefix}.bias"][rows]
        weight = self.weights[f"model.layers.{layer}.self_attn.{slot}_proj.weight"][columns]
        return weight.T, torch.zeros(self.d_head, dtype=torch.float64)

    def head_output(self, layer: int, head: int) -> Tensor:
        """W_O of one head, ``[d_head, d_model]``."""
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        if self.kind == "gpt2":
            return self.weights[f"transformer.h.{layer}.attn.c_proj.weight"][columns]
        name = "attention.dense" if self.kind == "gpt_neox" else "self_attn.o_proj"
        prefix = "gpt_neox.layers" if self.kind == "gpt_neox" else "model.layers"
        return self.weights[f"{prefix}.{layer}.{name}.weight"][:, columns].T

    def output_bias(self, layer: int) -> Tensor:
        if self.kind == "gpt2":
            return self.weights[f"transformer.h.{layer}.attn.c_proj.bias"]
        if self.kind == "gpt_neox":
            return self.weights[f"gpt_neox.layers.{layer}.attention.dense.bias"]
        return torch.zeros(self.config.hidden_size, dtype=torch.float64)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary position embedding of ``[pair pos d_head]``."""
        if self.kind == "gpt2":
            return x
        rope = self.config.rope_parameters
        n_rotated = int(self.d_head * rope.get("partial_rotary_factor", 1.0))
        half = n_rotated // 2
        frequency = rope["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
        one, two = x[..., :half], x[..., half:n_rotated]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin, x[..., n_rotated:]], -1)

    def pattern(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention weights of one head, from its queries and keys before any rotation."""
        n_pos = queries.shape[1]
        future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
        scores = self.rotate(queries) @ self.rotate(keys).transpose(1, 2) / math.sqrt(self.d_head)
        return scores.masked_fill(future, -math.inf).softmax(-1)

    def neurons(self, layer: int, x: Tensor) -> Tensor:
        """An MLP's neurons, after the activation and the gate."""
        if self.kind == "llama":
            prefix = f"model.layers.{layer}.mlp"
            gate, up = (self.weights[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up"))
            gated = x @ gate.T
            return gated * gated.sigmoid() * (x @ up.T)
        if self.kind == "gpt2":
            prefix = f"transformer.h.{layer}.mlp.c_fc"
            hidden = x @ self.weights[f"{prefix}.weight"] + self.weights[f"{prefix}.bias"]
            cubic = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
            return hidden / 2 * (1 + cubic.tanh())
        prefix = f"gpt_neox.layers.{layer}.mlp.dense_h_to_4h"
        hidden = x @ self.weights[f"{prefix}.weight"].T + self.weights[f"{prefix}.bias"]
        return hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))

    def mlp_output(self, layer: int, neurons: Tensor) -> Tensor:
        if self.kind == "llama":
            return neurons @ self.weights[f"model.layers.{layer}.mlp.down_proj.weight"].T
        if self.kind == "gpt2":
            prefix = f"transformer.h.{layer}.mlp.c_proj"
            return neurons @ self.weights[f"{prefix}.weight"] + self.weights[f"{prefix}.bias"]
        prefix = f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h"
        return neurons @ self.weights[f"{prefix}.weight"].T + self.weights[f"{prefix}.bias"]

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        return self.mlp_output(layer, self.neurons(layer, x))

    @property
    def embedding(self) -> Tensor:
        """The token embedding, ``[d_vocab, d_model]``."""
        name = {
            "gpt2": "transformer.wte",
            "llama": "model.embed_tokens",
            "gpt_neox": "gpt_neox.embed_in",
        }
        return self.weights[f"{name[self.kind]}.weight"]

    def embed(self, tokens: Tensor) -> Tensor:
        written = self.embedding[tokens]
        if self.kind == "gpt2":
            written = written + self.weights["transformer.wpe.weight"][: tokens.shape[1]]
        return written

    def norm_names(self, layer: int) -> tuple[str, str]:
        if self.kind == "gpt2":
            return f"transformer.h.{layer}.ln_1", f"transformer.h.{layer}.ln_2"
        prefix = "gpt_neox.layers" if self.kind == "gpt_neox" else "model.layers"
        return f"{prefix}.{layer}.input_layernorm", f"{prefix}.{layer}.post_attention_layernorm"

    def unembed(self, x: Tensor) -> Tensor:
        final = {
            "gpt2": "transformer.ln_f",
            "llama": "model.norm",
            "gpt_neox": "gpt_neox.final_layer_norm",
        }
        head = "embed_out" if "embed_out.weight" in self.weights else "lm_head"
        return self.norm(x, final[self.kind]) @ self.weights[f"{head}.weight"].T

    # ---- runs

    def run(self, tokens: Tensor, read: Read = total) -> tuple[Tensor, Writes]:
        """Logits at the last position, and what every writer wrote (biases as ``bias{layer}``)."""
        writes: Writes = {"input": self.embed(tokens)}
        for layer in range(self.n_layers):
            first_norm, second_norm = self.norm_names(layer)
            new: Writes = {}
            keys_values: list[tuple[Tensor, Tensor]] = []
            for head in range(self.n_kv_heads):
                both: list[Tensor] = []
                for slot in "kv":
                    x = self.norm(read(f"{self.kv_name(layer, head)}<{slot}>", writes), first_norm)
                    weight, bias = self.head_weight(layer, slot, head)
                    both.append(x @ weight + bias)
                keys_values.append((both[0], both[1]))
            for head in range(self.n_heads):
                x = self.norm(read(f"a{layer}.h{head}<q>", writes), first_norm)
                weight, bias = self.head_weight(layer, "q", head)
                key, value = keys_values[head * self.n_kv_heads // self.n_heads]
                pattern = self.pattern(x @ weight + bias, key)
                new[f"a{layer}.h{head}"] = pattern @ value @ self.head_output(layer, head)
            new[f"bias{layer}"] = self.output_bias(layer).expand_as(writes["input"])
            seen_by_mlp = writes if self.parallel else {**writes, **new}
            x = self.norm(read(f"m{layer}", seen_by_mlp), second_norm)
            new[f"m{layer}"] = self.mlp(layer, x)
            writes |= new
        return self.unembed(read("logits", writes)[:, -1:])[:, 0], writes

    def edited(self, base: Tensor, other: Tensor, amount: Tensor) -> Tensor:
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

        return self.run(base, read)[0]

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

    def run_nodes(self, resid: Tensor, see: See, dropped: int | None = None) -> Tensor:
        """Logits at the last position of an ordinary run, from what the input writes.

        ``see`` is shown every activation by name, and what it returns goes on. Names are those of
        nodes without positions; ``m2.n`` are all neurons of an MLP, ``a1.h2<pattern>`` a head's
        attention weights. What layer ``dropped`` writes is constant in the backward pass.
        """
        resid = see("input", resid)
        for layer in range(self.n_layers):
            resid = see(f"r{layer}", resid)
            first_norm, second_norm = self.norm_names(layer)
            normed = self.norm(resid, first_norm)
            read: Values = {}
            for slot, n_heads in (
                ("q", self.n_heads),
                ("k", self.n_kv_heads),
                ("v", self.n_kv_heads),
            ):
                for head in range(n_heads):
                    weight, bias = self.head_weight(layer, slot, head)
                    name = self.slot_name(layer, slot, head)
                    read[name] = see(name, normed @ weight + bias)
            write = self.output_bias(layer)
            for head in range(self.n_heads):
                of_group = head * self.n_kv_heads // self.n_heads
                key = read[self.slot_name(layer, "k", of_group)]
                value = read[self.slot_name(layer, "v", of_group)]
                pattern = self.pattern(read[self.slot_name(layer, "q", head)], key)
                pattern = see(f"a{layer}.h{head}<pattern>", pattern)
                output = see(f"a{layer}.h{head}", pattern @ value)
                write = write + output @ self.head_output(layer, head)
            seen_by_mlp = resid if self.parallel else resid + write
            neurons = self.neurons(layer, self.norm(seen_by_mlp, second_norm))
            neurons = see(f"m{layer}.n", neurons)
            write = write + see(f"m{layer}", self.mlp_output(layer, neurons))
            resid = resid + (write.detach() if layer == dropped else write)
        return self.unembed(resid[:, -1:])[:, 0]

    def slot_name(self, layer: int, slot: str, head: int) -> str:
        node = f"a{layer}.h{head}" if slot == "q" else self.kv_name(layer, head)
        return f"{node}<{slot}>"

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
