"""Directories whose weights are no whole model's: adapters, and quantized weights.

Adapters are merged, and weights dequantized, by the packages that made them; here it is said how.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError

_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")

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
    if (directory / "config.json").is_file():
        files = [directory / _ADAPTER]
    else:
        files = [directory / file for file in (_ADAPTER, *_ADAPTER_WEIGHTS)]
        files += sorted(directory.glob(f"*/{_ADAPTER}"))
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        raise InputError(f"model {name}: expected a whole model, but {_of_adapter(file)}")


def _of_adapter(file: Path) -> str:
    """What an adapter's config says of it, and how it is merged."""
    try:
        config = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        config = {}
    kind = str(config.get("peft_type") or "").upper().replace("_", " ")
    bases = (config.get(key) for key in ("base_model_name_or_path", "model_name", "model"))
    base = next((base for base in bases if base), "another model")
    what = f"{file.name} in {file.parent} is that of {'an' if kind[:1] in 'AEIO' else 'a'} {kind} adapter"
    what = f"{what.replace('  ', ' ')} of {base}"
    if "PROMPT" in kind or "PREFIX" in kind or kind in ("P TUNING", "CPT"):
        return (
            f"{what}, which cannot be merged into weights: it adds prompts or keys of its own; name "
            "the model that it belongs to"
        )
    if (file.parent / "config.json").is_file():
        what += " (if the weights here are merged already, remove that file)"
    type_this = (
        'python -c "from peft import AutoPeftModelForCausalLM as M; '
        f"M.from_pretrained('{file.parent}').merge_and_unload().save_pretrained('MERGED')\" (and "
        "save the tokenizer there)"
    )
    how = f"; type: {type_this}" if kind else ", with the package that made it"
    return f"{what}. Merge it into the weights, and name the merged directory{how}"


def refuse_adapter_tensors(tensors: Iterable[str], name: str) -> None:
    """Raises InputError for weights, among those that no module of the model takes, of an adapter."""
    words = ("lora", "ia3", "adapter", "base_layer", "modules_to_save")
    adapted = sorted(
        tensor for tensor in tensors if any(part.startswith(words) for part in tensor.split("."))
    )
    if adapted:
        raise InputError(
            f"model {name}: expected the weights of a plain model, but {len(adapted)} tensors are an "
            f"adapter's, such as {adapted[0]}, and would be left out; merge the adapter into the "
            "weights (merge_and_unload(), where it was made with peft) and save the model again"
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
    remedy = (
        "name the model that it was quantized from (or, if the weights are whole in fact, take "
        "quantization_config out of config.json)"
    )
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
