"""What a result says of the model, the pairs and the method it belongs to."""

from __future__ import annotations

from typing import Any

from ..edges.model.transformer import Model
from ..edges.question.prompts import PromptPairs


def describe_question(model: Model, pairs: PromptPairs, **method: Any) -> dict[str, Any]:
    """All that determines a result, as plain data: the model, the pairs and the method."""
    return {"model": describe_model(model), "task": describe_task(pairs), "method": method}


def describe_model(model: Model) -> dict[str, Any]:
    """What a result says of the model it belongs to; enough to load it again and to recognize it."""
    quantized = {} if model.quantization is None else {"quantization": model.quantization}
    return {
        "name": model.name,
        "architecture": model.architecture,
        "sha256": model.fingerprint(),
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        **quantized,
        "device": model.device.type,
        "bos": model.tokenizer.bos if model.tokenizer else None,
        "kv": model.kv,
        "tf32": model.tf32,
    }


def describe_task(pairs: PromptPairs) -> dict[str, Any]:
    """What a result says of the pairs it belongs to."""
    return {**pairs.source, "n_pairs": len(pairs), "sha256": pairs.fingerprint()}
