"""Whether a model is made of its architecture's own modules, and of whole weights that are there.

Runs go through modules, scores through weights. Of a plain linear map these are the same; an adapter,
a quantized, wrapped or parametrized layer computes more than its weight says, and would be scored
wrongly in silence. So every module is compared with the one that the model's config makes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..names.graph import SLOTS

_ROOT = "the model itself"
_WHOLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_MERGE = (
    "merge the adapter into the weights first: model = peft_model.merge_and_unload(), where "
    "peft_model = peft.PeftModel.from_pretrained(base_model, ADAPTER); then Model(model)"
)
_DEQUANTIZE = (
    "edges are computed from whole weights: load the model without quantization_config, or "
    "dequantize it (model = model.dequantize(), where transformers can) and wrap that"
)
_ONE_DEVICE = (
    "load all of it onto one device: from_pretrained(...) without device_map and offload_folder, "
    "then model.to(device); a smaller dtype needs less memory"
)
_PLAIN = "put all that it computes into the weight of a plain {own}, and that in its place"

# What layers of adapters are recognised by: their classes' names, and peft's base_layer, lora_A, ...
_ADAPTERS = ("lora", "dora", "ia3", "adapter")
_OF_ADAPTERS = (*_ADAPTERS, "base_layer", "modules_to_save", "peft")
_QUANTIZERS = (
    "bitsandbytes", "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "optimum", "torchao", "eetq",
    "aqlm", "vptq", "spqr_quant", "compressed_tensors", "transformers.integrations", "torch.ao",
)  # fmt: skip
_WEIGHT_HOOKS = {  # what puts a weight together before each run, and how it is made a weight again
    "WeightNorm": "torch.nn.utils.remove_weight_norm({where})",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm({where})",
    "BasePruningMethod": 'torch.nn.utils.prune.remove({where}, "weight")',
}


@dataclass(frozen=True)
class Alteration:
    """A module that is not what the model's config makes.

    Attributes:
        where: its name in the Hugging Face model.
        what: what it is, in words.
        remedy: what to do.
    """

    where: str
    what: str
    remedy: str


def refuse_altered(model: nn.Module, architecture: str, name: str, bridge: Any = None) -> None:
    """Raises InputError for a model that is more, or less, than its architecture's own modules with
    weights of at least 16 bits on one device.

    Activations, and other modules without weights, are run as they are, and may be anything.

    Args:
        model: a Hugging Face model, with components of a bridge around its modules or without.
        bridge: the bridge, whose queries, keys and values may be split off.
    """
    altered = list(_absent(model)) or list(_altered(model, architecture))
    if not altered and bridge is not None:
        altered = list(_split_off(bridge))
    if not altered:
        return
    first = altered[0]
    alike = [other.where for other in altered[1:] if other.remedy == first.remedy]
    more = f" (like {len(alike)} more, such as {', '.join(alike[:2])})" if alike else ""
    raise InputError(
        f"model {name}: expected the plain modules of {architecture}, but {first.where} "
        f"{first.what}{more}; {first.remedy}"
    )


def inner_modules(model: nn.Module, where: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a Hugging Face model by name, as if no bridge were wrapped around them."""
    module = _unwrapped(model)
    yield where or _ROOT, module
    for name, child in module.named_children():
        yield from inner_modules(child, f"{where}.{name}" if where else name)


# ---- weights that are elsewhere


def _absent(model: nn.Module) -> Iterator[Alteration]:
    """Modules whose weights are not there, or that move them as they run."""
    modules = list(inner_modules(model))
    moved = {where: vars(module).get("_hf_hook") for where, module in modules}
    for where, module in modules:
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        name = next((name for name, tensor in tensors if tensor.is_meta), None)
        if name is not None and any(moved.values()):
            yield Alteration(where, f"has its {name} offloaded by accelerate", _ONE_DEVICE)
        elif name is not None:
            remedy = "fill it: from_pretrained(...), or load_state_dict(..., assign=True)"
            yield Alteration(where, f"has no values in its {name} (device meta)", remedy)
    for where, hook in moved.items():
        if hook is not None:
            what = f"is run through accelerate's {type(hook).__name__}"
            yield Alteration(where, what, _ONE_DEVICE)


# ---- modules that are others


def _split_off(bridge: Any) -> Iterator[Alteration]:
    """Queries, keys and values that the bridge split off one projection, and that were changed."""
    own = nn.Linear(1, 1, bias=False)
    for layer, block in enumerate(bridge.blocks):
        for slot in SLOTS:
            yield from _compared(own, getattr(block.attn, slot), f"blocks.{layer}.attn.{slot}")


def _altered(model: nn.Module, architecture: str) -> Iterator[Alteration]:
    import transformers

    expected = getattr(transformers, architecture)
    if type(model) is not expected:
        remedy = remedy_for(model) or f"give the {architecture} inside it"
        yield Alteration(_ROOT, f"is a {_named(model)}", remedy)
        return
    yield from _compared(_made_by_config(model, expected), model, "")


def _made_by_config(model: Any, architecture: Any) -> nn.Module:
    """What the model's config makes, without weights."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # whichever it is, the modules are the same
    with torch.device("meta"):
        return architecture(config)


def _compared(own: nn.Module, module: nn.Module, where: str) -> Iterator[Alteration]:
    """What differs between a module and its own kind, down to the first of each branch."""
    module = _unwrapped(module)
    children, there = dict(own.named_children()), dict(module.named_children())
    weights = any(True for _ in own.parameters(recurse=False))
    bare = not children and not weights and not any(True for _ in module.parameters())
    # An activation is run as it is; a dropout is not run at all.
    if bare and (not isinstance(own, nn.Dropout) or type(module) in (nn.Dropout, nn.Identity)):
        return
    named = where or _ROOT
    altered = [*_of_class(own, module, named), *_of_weights(own, module, named)]
    if altered:
        yield altered[0]
        return
    for name, child in children.items():
        below = f"{where}.{name}" if where else name
        if name not in there:
            yield Alteration(below, "is missing", "the config is that of another model")
        else:
            yield from _compared(child, there[name], below)


def _of_class(own: nn.Module, module: nn.Module, where: str) -> Iterator[Alteration]:
    """Whether it is run by another class, or another function, than its own."""
    if type(module) is not type(own):
        what = f"is a {_named(module)}, where a {type(own).__name__} is expected"
        yield Alteration(where, what, _remedy(own, module))
    forward = vars(module).get("forward")
    # TransformerLens computes Falcon's layers in its own words.
    if forward is not None and not str(forward.__module__).startswith("transformer_lens."):
        what = f"has a forward of its own (of {forward.__module__})"
        remedy = f"take that off (del {where}.forward), or {_remedy(own, module)}"
        yield Alteration(where, what, remedy)


def _of_weights(own: nn.Module, module: nn.Module, where: str) -> Iterator[Alteration]:
    """Whether its weights are parameters, whole, and nothing else."""
    weights = dict(module.named_parameters(recurse=False))
    for name, _ in own.named_parameters(recurse=False):
        weight = weights.get(name)
        if weight is None:
            yield Alteration(where, f"has no parameter {name}", _made_weight(module, where))
        elif weight.dtype not in _WHOLE:
            yield Alteration(where, f"has its {name} in {weight.dtype}", _DEQUANTIZE)
        elif type(weight) is not nn.Parameter:
            what = f"has its {name} in a {_named(weight)}"
            split = type(weight).__name__ == "DTensor"
            yield Alteration(where, what, _ONE_DEVICE if split else _DEQUANTIZE)


def _made_weight(module: nn.Module, where: str) -> str:
    """How a weight that is made before each run is made a parameter again."""
    hooks: list[object] = [*vars(module)["_forward_pre_hooks"].values()]
    for hook in hooks:
        for kind in type(hook).__mro__:
            if kind.__name__ in _WEIGHT_HOOKS:
                return f"make it one: {_WEIGHT_HOOKS[kind.__name__].format(where=where)}"
    return remedy_for(module) or "make it one (torch.nn.Parameter)"


def _remedy(own: nn.Module, module: nn.Module) -> str:
    """What to do about a module of another class than its own."""
    return remedy_for(module) or _PLAIN.format(own=type(own).__name__)


def remedy_for(module: nn.Module) -> str | None:
    """How an adapter, a quantized or a parametrized module is made plain; None for any other."""
    if _is_adapter(module):
        return _MERGE
    if nn.utils.parametrize.is_parametrized(module):
        return 'torch.nn.utils.parametrize.remove_parametrizations(module, "weight") makes it plain'
    if _is_quantized(module):
        return _DEQUANTIZE
    return None


def _is_adapter(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__.partition(".")[0] in ("peft", "adapters"):
        return True
    inside = (*module.named_children(), *module.named_parameters(recurse=False))
    names = (*vars(module), *(name for name, _ in inside))
    return any(word in kind.__name__.lower() for word in _ADAPTERS) or any(
        name.lower().lstrip("_").startswith(_OF_ADAPTERS) for name in names
    )


def _is_quantized(module: nn.Module) -> bool:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return type(module).__module__.startswith(_QUANTIZERS) or any(
        tensor.dtype not in (*_WHOLE, torch.bool, torch.int64) for tensor in tensors
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    """What a bridge's component is around, or the module."""
    while (inside := vars(module)["_modules"].get("_original_component")) is not None:
        module = inside
    return module


def _named(thing: object) -> str:
    """Class and where it is from, but for torch's own."""
    kind = type(thing)
    known = kind.__module__.startswith("torch.nn.modules.")
    return kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"
