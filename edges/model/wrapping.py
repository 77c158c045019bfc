"""What ``Model`` is given: a ``TransformerBridge``, or a Hugging Face model that is put into one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .architectures import SUPPORTED, refuse_unsupported
from .borrowing import HOOK_KINDS
from .plain import inner_modules, refuse_altered, remedy_for

# Where a pipeline, a trainer, trl, nnsight, torch.compile and data parallelism keep the model.
_INSIDE = ("model", "pretrained_model", "_model", "_orig_mod", "module")


def as_bridge(model: Any, name: str | None) -> Any:
    """A bridge as it is; a Hugging Face model, as it is now, in a bridge of its own.

    The model stays untouched: the bridge is put around copies of its modules that share its weights
    (queries, keys and values that are one matrix are split, which copies them).

    Raises:
        InputError: anything else, a model of an architecture that is not known, or one that is not
            made of its architecture's own modules (``plain``).
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if isinstance(model, TransformerBridge):
        return model
    architecture = _architecture(model)
    name = name or str(getattr(model.config, "name_or_path", "") or architecture)
    refuse_altered(model, architecture, name)
    if any(name.endswith("_original_component") for name, _ in model.named_modules()):
        raise InputError(
            f"model {name}: it has been put into a TransformerBridge already, which changed its "
            "modules; give Model that bridge, or load the model again"
        )
    twin = _sharing_weights(model, name)
    try:
        return build_bridge_from_module(twin, architecture, hf_config=twin.config, model_name=name)
    except Exception as error:  # TransformerLens raises nearly anything
        raise InputError(
            f"model {name}: TransformerLens cannot put it into a bridge: {error!r:.300}"
        ) from error


def _architecture(model: Any) -> str:
    """The supported class that a Hugging Face model is of. Raises InputError for anything else."""
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        raise InputError(
            "expected a TransformerBridge or a transformers model with a language model's head, got "
            f"a {type(model).__module__}.{type(model).__qualname__}; {_instead(model)}"
        )
    classes = [kind.__name__ for kind in type(model).__mro__]
    known = next((name for name in classes if name in SUPPORTED), None)
    if known is None and model.config.model_type in _model_types():
        raise InputError(
            f"expected a model with a language model's head, got a {classes[0]}; load it with "
            "transformers.AutoModelForCausalLM.from_pretrained(...)"
        )
    refuse_unsupported(known or classes[0])
    return known or classes[0]


def _instead(given: Any) -> str:
    """What to give instead of something that is no transformers model."""
    import transformers

    if isinstance(given, str | Path):
        return f"load it by name or path: Model.load({str(given)!r})"
    if isinstance(given, nn.Module) and (remedy := remedy_for(given)) is not None:
        return remedy
    for name in _INSIDE:
        if isinstance(getattr(given, name, None), transformers.PreTrainedModel):
            return f"give what is inside it: .{name}"
    if type(given).__name__ == "HookedTransformer":
        return "its weights are processed; load TransformerBridge.boot_transformers(NAME)"
    return "load one: transformers.AutoModelForCausalLM.from_pretrained(...)"


def _model_types() -> set[str]:
    """The ``model_type`` of configs whose language models are supported."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    return {model_type for model_type, name in CLASSES.items() if name in SUPPORTED}


def _sharing_weights(model: nn.Module, name: str) -> Any:
    """A copy of the modules, with the same weights, buffers and hooks in them, to be run as models
    are that wiremap loads.
    """
    shared: list[object] = [*model.parameters(), *model.buffers()]
    for _, module in inner_modules(model):
        for kind in HOOK_KINDS:
            shared += vars(module)[kind].values()
    try:
        twin: Any = copy.deepcopy(model, {id(kept): kept for kept in shared})
    except Exception as error:  # whatever people keep on their models
        raise InputError(
            f"model {name}: something on it cannot be copied ({error!r:.200}); put it into a "
            "bridge yourself: Model(TransformerBridge.boot_transformers(NAME, hf_model=model))"
        ) from error
    # Whole by now: they have the fingerprint of any other weights.
    vars(twin.config).pop("quantization_config", None)
    twin.config._attn_implementation = "eager"
    if twin.dtype == torch.float64:
        twin.config._experts_implementation = "eager"  # grouped products have no float64
    return twin
