"""GGUF files of tiny random models, written as llama.cpp writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
import torch
from tokenizers import pre_tokenizers
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

Q8 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32

# What the file cannot say, or transformers does not read, is as transformers takes it to be.
_TAKEN = {"gpt2": {"n_positions": 1024}, "qwen3": {"head_dim": 128}}


def hf_model(kind: str, **changes: Any) -> Any:
    """A random model whose rows are whole blocks of 32."""
    rows = {} if kind == "gpt2" else {"intermediate_size": 64}
    return tiny.hf_model(kind, **{**rows, **_TAKEN.get(kind, {}), **changes})


def write(
    path: Path,
    hf: Any,
    kind: gguf.GGMLQuantizationType = Q8,
    *,
    words: bool = True,
    fields: Mapping[str, Any] | None = None,
    architecture: str | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    """Writes the model, its matrices as ``kind``; gives the state dict that reading it should give.

    Args:
        words: with a tokenizer: bytes of UTF-8, as GPT-2 spells them.
        fields, tensors: others to write too.
        architecture: what to call it instead.
    """
    name = hf.config.model_type
    writer = gguf.GGUFWriter(path, architecture or name)
    for key, setting in GGUF_CONFIG_MAPPING[name].items():
        value = getattr(hf.config, setting or "", None)
        if key == "rope.freq_base":
            value = hf.config.rope_parameters["rope_theta"]
        if isinstance(value, float):
            writer.add_float32(f"{name}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{name}.{key}", value)
    for key, value in (fields or {}).items():
        writer.add_string(key, value)
    if words:
        _write_words(writer)
    expected = {}
    for hf_name, stored, restored in _matrices(hf, name, kind):
        writer.add_tensor(hf_name[0], stored, raw_dtype=kind if stored.dtype == np.uint8 else F32)
        expected[hf_name[1]] = restored
    for extra, values in (tensors or {}).items():
        writer.add_tensor(extra, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _matrices(hf: Any, name: str, kind: gguf.GGMLQuantizationType) -> Any:
    """Of each weight both its names, how it is stored, and what of it can be had back."""
    (architecture,) = (key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(architecture, hf.config.num_hidden_layers)
    tied = hf.config.tie_word_embeddings
    for hf_name, weight in hf.state_dict().items():
        if tied and hf_name == "lm_head.weight":
            continue
        stem, suffix = hf_name.rsplit(".", 1)
        turned = name == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", hf_name)
        there = weight.numpy().T if turned else weight.numpy()
        heads = re.search(r"(q|k)_proj\.weight", hf_name) if name == "llama" else None
        n_heads = 0
        if heads:
            config = hf.config
            n_heads = config.num_attention_heads if heads[1] == "q" else config.num_key_value_heads
            there = _paired(there, n_heads)
        there = np.ascontiguousarray(there)
        quantized = gguf.quantize(there, kind) if there.ndim > 1 else there
        back = gguf.dequantize(quantized, kind) if there.ndim > 1 else there
        if heads:
            back = _halved(back, n_heads)
        restored = torch.from_numpy(np.ascontiguousarray(back.T if turned else back))
        yield (f"{names.get_name(stem)}.{suffix}", hf_name), quantized, restored


def _paired(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rotary dimensions as llama.cpp has them, the two of a pair side by side."""
    parts = weight.reshape(n_heads, 2, -1, weight.shape[1])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def _halved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """And as Hugging Face has them, all first ones before all second."""
    parts = weight.reshape(n_heads, -1, 2, weight.shape[1])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def _write_words(writer: gguf.GGUFWriter) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    wanted = ["Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    words = ["<unk>", "<s>", "</s>", *wanted, *(f"Ġ{letter}" for letter in "abcdef")]
    words += [letter for letter in letters if letter not in words][: tiny.VOCABULARY - len(words)]
    special = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([special] * 3 + [gguf.TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges([f"Ġ {letter}" for letter in "abcdef"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
