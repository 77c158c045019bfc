"""Directories whose weights are no whole model's: adapters, and quantized weights.

Adapters are merged, and weights dequantized, by the packages that made them; here it is said how.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError

# What tensors of a whole model are stored as; masks are bool or bytes, and called bias.
_WHOLE = ("F64", "F32", "BF16", "F16", "BOOL", "I64")
_MASKS = (".attn.bias", ".attention.bias", ".masked_bias")

DEQUANTIZED = {"fp8": "FineGrainedFP8Config"}
"""Methods whose weights are dequantized as they are loaded, and their classes in transformers.

Proved by tests/edges/model/test_stored.py."""
_BY_THE_MODEL = ("bitsandbytes", "higgs")  # those of model.dequantize()
_BY_CONFIG = {
    "compressed-tensors": "CompressedTensorsConfig",
    "mxfp4": "Mxfp4Config",
    "mxfp8": "FineGrainedFP8Config",
    "metal": "MetalConfig",
}


def refuse_adapter(directory: Path, name: str) -> None:
    """Raises InputError for a directory that holds an adapter, with how it is merged.

    It is none for a whole model that has adapters in directories below it.
    """
    below = () if (directory / "config.json").is_file() else directory.glob("*/adapter_config.json")
    for file in (directory / "adapter_config.json", *sorted(below)):
        if file.is_file():
            raise InputError(_of_adapter(file, name))


def _of_adapter(file: Path, name: str) -> str:
    """What an adapter's config says of it, and how it is merged."""
    try:
        config = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        config = {}
    kind = str(config.get("peft_type") or config.get("config_type") or "").upper().replace("_", " ")
    base = config.get("base_model_name_or_path") or config.get("model_name")
    what = f"{kind + ' ' if kind else ''}adapter of {base or 'another model'}"
    expected = f"model {name}: expected a whole model, but {file.name} in {file.parent} says"
    if "PROMPT" in kind or "PREFIX" in kind or kind in ("P TUNING", "CPT"):
        return (
            f"{expected} that it is a {what}, which cannot be merged into weights: it adds prompts "
            "or keys of its own; name the model that it belongs to"
        )
    beside = (file.parent / "config.json").is_file()
    merged = " (if the weights here are merged already, remove that file)" if beside else ""
    return (
        f"{expected} that it is a {what}{merged}. Merge it into the weights, and name the merged "
        'directory; type: python -c "from peft import AutoPeftModelForCausalLM as M; '
        f"M.from_pretrained('{file.parent}').merge_and_unload().save_pretrained('MERGED')\" "
        "(and save the tokenizer there)"
    )


def quantization_of(config: Any) -> str | None:
    """The method that a model's config says its weights were quantized by; None if by none."""
    text = config.get_text_config()
    for holder in (config, text):
        for key in ("quantization_config", "compression_config"):
            said = getattr(holder, key, None)
            if said:
                said = said if isinstance(said, dict) else said.to_dict()
                method = said.get("quant_method")
                if method is None:  # as bitsandbytes wrote it first
                    bits = said.get("load_in_4bit") or said.get("load_in_8bit")
                    method = "bitsandbytes" if bits else "an unnamed method"
                return str(getattr(method, "value", method))
    return None


def refuse_quantized(source: str | Path, method: str) -> None:
    """Raises InputError, with how they are dequantized, for weights that are not as they are read."""
    if method in DEQUANTIZED:
        return
    load, imported = f"M.from_pretrained('{source}'", "AutoModelForCausalLM as M"
    if method in _BY_THE_MODEL:
        load += ").dequantize()"
    elif method in _BY_CONFIG:
        imported += f", {_BY_CONFIG[method]} as C"
        load += ", quantization_config=C(dequantize=True))"
    remedy = "name the model that it was quantized from"
    if method in (*_BY_THE_MODEL, *_BY_CONFIG):
        remedy += (
            f', or save it dequantized and name that directory; type: python -c "from transformers '
            f"import {imported}; {load}.save_pretrained('WHOLE')\""
        )
    raise InputError(
        f"model {source}: expected whole weights (float32, bfloat16, ...), but its config says that "
        f"they are quantized by {method}, and edges are computed from whole weights; {remedy}"
    )


def refuse_packed(files: list[Path], name: str, method: str | None) -> None:
    """Raises InputError for weights stored in fewer than 16 bits that nothing makes whole again.

    Read as they are they would be other weights: what they are multiplied with is kept elsewhere.

    Args:
        method: what the config says they are quantized by, which is dequantized.
    """
    stored = {tensor: kind for file in files for tensor, kind in _stored(file).items()}
    scaled = {tensor for tensor in stored if f"{tensor}_scale_inv" in stored} if method else set()
    packed = [
        (tensor, kind)
        for tensor, kind in stored.items()
        if kind not in _WHOLE
        and tensor not in scaled
        and not tensor.endswith((*_MASKS, *(("_scale_inv",) if method else ())))
    ]
    if packed:
        tensor, kind = packed[0]
        said = (
            f"the config says by {method}, but no scale of theirs is there"
            if method
            else ("the config does not say how")
        )
        raise InputError(
            f"model {name}: expected whole weights (F32, BF16, ...), but {len(packed)} tensors are "
            f"stored in other types, such as {tensor} as {kind}: they are quantized, and {said}; "
            "name the model that they were quantized from, or save it dequantized"
        )


def _stored(file: Path) -> dict[str, str]:
    """The type of each tensor of a safetensors file, which its header says."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
