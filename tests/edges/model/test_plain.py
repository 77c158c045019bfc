"""Models that are more than their weights: refused by the module's name, with what to type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import adapters_for_tests as layers
import pytest
import tiny
import torch
import transformers
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrizations, prune

from wiremap.edges import InputError, Model, score_edges
from wiremap.edges.model.checks import check_parts

MERGE = r"merge the adapter into the weights first: .*merge_and_unload\(\)"
DEQUANTIZE = r"load the model without quantization_config, or dequantize it"

Change = Callable[[Any], Any]

# kind, module, what is put in its place, what is said
REPLACED: list[tuple[str, str, Change, str]] = [
    ("llama-gqa", "model.layers.1.self_attn.q_proj", layers.Lora, MERGE),
    ("qwen3", "model.layers.0.self_attn.v_proj", layers.Lora, MERGE),
    ("gemma2", "model.layers.0.self_attn.o_proj", layers.Lora, MERGE),
    ("gpt2", "transformer.h.0.attn.c_attn", layers.Lora, MERGE),
    ("gpt2", "transformer.h.2.attn.c_proj", layers.Lora, MERGE),
    ("neox", "gpt_neox.layers.1.attention.query_key_value", layers.Lora, MERGE),
    ("phi", "model.layers.1.mlp.fc1", layers.Lora, MERGE),
    ("falcon", "transformer.h.1.self_attention.dense", layers.Lora, MERGE),
    ("gptj", "transformer.h.0.attn.k_proj", layers.Dora, MERGE),
    ("llama-gqa", "model.layers.2.mlp.up_proj", layers.Dora, MERGE),
    ("llama-gqa", "model.layers.2.self_attn.k_proj", layers.Ia3, MERGE),
    ("mistral", "model.layers.0.mlp.down_proj", lambda own: layers.Ia3(own, True), MERGE),
    ("qwen2-moe", "model.layers.0.mlp.shared_expert.up_proj", layers.Lora, MERGE),
    ("mixtral", "model.layers.1.mlp.gate", layers.ModulesToSaveWrapper, MERGE),
    ("qwen3-moe", "model.layers.1.mlp.experts", layers.ModulesToSaveWrapper, MERGE),
    ("llama-gqa", "lm_head", layers.Lora, MERGE),
    ("neox", "lm_head", layers.ModulesToSaveWrapper, MERGE),
    ("llama-gqa", "model.embed_tokens", layers.LoraEmbedding, MERGE),
    ("gpt2", "transformer.wte", layers.ModulesToSaveWrapper, MERGE),
    ("olmo2", "model.norm", layers.ModulesToSaveWrapper, MERGE),
    ("llama-gqa", "model.layers.0.input_layernorm", layers.ModulesToSaveWrapper, MERGE),
    ("llama-gqa", "model.layers.0.self_attn.q_proj", layers.Scaled, r"the weight of a plain Linear"),
    (
        "granite", "model.layers.0.self_attn.k_proj",
        lambda own: nn.Sequential(own, nn.Linear(own.out_features, own.out_features)),
        r"Sequential, where a Linear is expected; .*weight of a plain Linear",
    ),
    ("llama-gqa", "model.layers.1.self_attn.q_proj", layers.Linear8bitLt, DEQUANTIZE),
    ("mistral", "model.layers.1.mlp.gate_proj", layers.QuantLinear, DEQUANTIZE),
    ("gemma3", "model.layers.1.self_attn.v_proj", layers.QuantLinear, DEQUANTIZE),
]  # fmt: skip


def replace(model: Any, name: str, change: Change) -> None:
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], change(model.get_submodule(name)))


@pytest.mark.parametrize(
    ("kind", "name", "change", "said"), REPLACED, ids=[f"{row[0]}-{row[1]}" for row in REPLACED]
)
def test_modules_of_others_are_refused_by_name(
    kind: str, name: str, change: Change, said: str
) -> None:
    hf = tiny.hf_model(kind)
    replace(hf, name, change)
    with pytest.raises(InputError, match=rf"plain modules of \w+, but {name} is a .*{said}"):
        Model(hf)


@pytest.mark.parametrize(
    ("kind", "slots"), [("llama-gqa", ("q_proj", "v_proj")), ("qwen2", ("o_proj",))]
)
def test_adapters_are_refused_in_a_bridge_and_all_right_when_merged(
    kind: str, slots: tuple[str, ...]
) -> None:
    hf, merged = tiny.hf_model(kind), tiny.hf_model(kind)
    names = [f"model.layers.{layer}.self_attn.{slot}" for layer in range(3) for slot in slots]
    for name in names:
        replace(hf, name, layers.Lora)
        with torch.no_grad():
            merged.get_submodule(name).weight += hf.get_submodule(name).delta()
    tokens = tiny.pairs().clean
    with torch.no_grad():
        expected = hf(tokens).logits
        model = Model(merged)
        found = model.logits(model.run(model.embed(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    score_edges(model, tiny.pairs())
    others = rf"like {len(names) - 1} more, such as {names[1]}"
    with pytest.raises(InputError, match=rf"{names[0]} is a .*Lora, .*{others}.*{MERGE}"):
        Model(tiny.bridge(hf))


def test_an_adapter_put_on_what_a_bridge_split_off_is_refused() -> None:
    for kind, slot in (("gpt2", "k"), ("neox", "v")):
        bridge = tiny.bridge(tiny.hf_model(kind))
        part = getattr(bridge.blocks[1].attn, slot)
        part._modules["_original_component"] = layers.Lora(part.original_component)
        with pytest.raises(InputError, match=rf"blocks.1.attn.{slot} is a .*Lora.*{MERGE}"):
            Model(bridge)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (parametrizations.weight_norm, r"is a .*ParametrizedLinear.*remove_parametrizations"),
        (parametrizations.orthogonal, r"is a .*ParametrizedLinear.*remove_parametrizations"),
        (nn.utils.weight_norm, r"has no parameter weight; .*remove_weight_norm\(NAME\)"),
        (nn.utils.spectral_norm, r"has no parameter weight; .*remove_spectral_norm\(NAME\)"),
        (
            lambda own: prune.l1_unstructured(own, "weight", amount=0.3),
            r'has no parameter weight; .*prune.remove\(NAME, "weight"\)',
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weights_that_are_made_before_each_run_are_refused(change: Change, said: str) -> None:
    for kind, name in (
        ("llama-gqa", "model.layers.0.self_attn.o_proj"),
        ("neox", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    ):
        hf = tiny.hf_model(kind)
        change(hf.get_submodule(name))
        with pytest.raises(InputError, match=f"but {name} {said.replace('NAME', name)}"):
            Model(hf)
    if change is nn.utils.weight_norm:
        nn.utils.remove_weight_norm(hf.get_submodule(name))
        check_parts(Model(hf), tiny.pairs().clean)


def test_a_forward_of_its_own_is_refused() -> None:
    for kind, name in (
        ("llama-gqa", "model.layers.1.mlp"),
        ("gpt2", "transformer.h.0.attn.c_attn"),
    ):
        hf = tiny.hf_model(kind)
        module = hf.get_submodule(name)
        own = module.forward
        module.forward = lambda x, own=own: 2 * own(x)
        with pytest.raises(InputError, match=rf"{name} has a forward of its own .*del {name}.for"):
            Model(hf)
        del module.forward
        Model(hf)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_weights_of_fewer_bits_are_refused(dtype: torch.dtype) -> None:
    for kind, name in (
        ("llama-gqa", "model.layers.1.self_attn.k_proj"),
        ("gpt2", "transformer.h.1.mlp.c_fc"),
    ):
        hf = tiny.hf_model(kind)
        module = hf.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(InputError, match=rf"{name} has its weight in {dtype}; .*{DEQUANTIZE}"):
            Model(hf)


def test_weights_in_tensors_of_another_kind_are_refused() -> None:
    for kind, name in (("llama-gqa", "lm_head"), ("phi", "model.layers.0.self_attn.dense")):
        hf = tiny.hf_model(kind)
        module = hf.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().as_subclass(layers.Quantized))
        with pytest.raises(
            InputError, match=rf"{name} has its weight in a .*Quantized; .*dequanti"
        ):
            Model(hf)


def test_what_has_no_weights_may_be_anything() -> None:
    """It is run as it is: an activation by another, a dropout left out."""
    tokens = tiny.pairs().clean
    for kind, name in (("gpt2", "transformer.h.1.mlp.act"), ("neox", "gpt_neox.layers.0.mlp.act")):
        hf = tiny.hf_model(kind)
        replace(hf, name, lambda own: nn.Softplus())
        if kind == "gpt2":
            replace(hf, "transformer.drop", lambda own: nn.Identity())
        with torch.no_grad():
            expected = hf(tokens).logits
        model = Model(hf)
        check_parts(model, tokens)
        with torch.no_grad():
            found = model.logits(model.run(model.embed(tokens)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_put_in_the_place_of_a_dropout_is_refused() -> None:
    """Dropouts are not run, so that a vector added there would be left out."""

    class Steering(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    for kind, name in (("gpt2", "transformer.drop"), ("neox", "gpt_neox.emb_dropout")):
        hf = tiny.hf_model(kind)
        replace(hf, name, lambda own: Steering())
        with pytest.raises(
            InputError, match=rf"{name} is a .*Steering, where a Dropout is expected"
        ):
            Model(hf)


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "qwen2-moe"])
def test_a_bridge_with_processed_weights_is_plain(kind: str) -> None:
    bridge = tiny.bridge(tiny.hf_model(kind))
    bridge.enable_compatibility_mode(disable_warnings=True)
    check_parts(Model(bridge), tiny.pairs().clean)


def test_a_layer_too_few_is_refused() -> None:
    hf = tiny.hf_model("llama-gqa")
    del hf.model.layers[2]
    with pytest.raises(
        InputError, match=r"model.layers.2 is missing; the config is that of another"
    ):
        Model(hf)
    hf.config.num_hidden_layers = 2
    hf.config.layer_types = None
    assert Model(hf).graph.n_layers == 2


# ---- weights that are elsewhere


def test_offloaded_weights_are_named(tmp_path: Any) -> None:
    hf = cpu_offload(tiny.hf_model("llama-gqa"), execution_device=torch.device("cpu"))
    with pytest.raises(
        InputError, match=r"model.embed_tokens has its weight offloaded by accelerat"
    ):
        Model(hf)
    tiny.hf_model("qwen2").save_pretrained(tmp_path)
    parts = ("embed_tokens", "rotary_emb", "norm", "layers.0", "layers.1", "layers.2")
    devices = {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}}
    devices["model.layers.1"] = "disk"
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=devices, offload_folder=tmp_path / "offloaded"
    )
    with pytest.raises(InputError, match=r"model.layers.1.* offloaded .* without device_map"):
        Model(hf)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    Model(whole)


def test_hooks_that_move_weights_are_named() -> None:
    for kind, name in (("gpt2", "transformer.h.1.mlp"), ("llama-gqa", "lm_head")):
        hf = tiny.hf_model(kind)
        add_hook_to_module(hf.get_submodule(name), AlignDevicesHook(execution_device="cpu"))
        with pytest.raises(
            InputError, match=rf"{name} is run through accelerate's AlignDevicesHook"
        ):
            Model(hf)


def test_weights_without_values_are_named() -> None:
    with torch.device("meta"):
        hf: Any = tiny.hf_model("llama-gqa")
    with pytest.raises(InputError, match=r"model.embed_tokens has no values in its weight .*meta"):
        Model(hf)
    hf = tiny.hf_model("gpt2")
    hf.transformer.h[1].ln_1.to("meta")
    for given in (hf, tiny.bridge(hf)):
        with pytest.raises(InputError, match=r"transformer.h.1.ln_1 has no values in its weight"):
            Model(given)


# ---- what was changed since


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("llama-gqa", lambda block: block.attn.v, "v_proj"),
        ("gptj", lambda block: block.attn.q, "q_proj"),
        ("gpt2", lambda block: block.mlp.submodules["in"], "c_fc"),  # run as it is; neurons are not
    ],
)
def test_adapters_put_on_later_are_refused(kind: str, part: Change, name: str) -> None:
    model, pairs = Model(tiny.hf_model(kind)), tiny.pairs()
    component = part(model.bridge.blocks[1])
    component._modules["_original_component"] = layers.Lora(component.original_component)
    with pytest.raises(InputError, match=rf"{name} is a .*Lora.*{MERGE}"):
        score_edges(model, pairs)


class _Doubled(torch.autograd.Function):
    """The identity, with a gradient twice as large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 2 * gradients[0]


@pytest.mark.parametrize(("kind", "slot"), [("llama-gqa", "q"), ("qwen3", "k")])
def test_gradients_that_are_not_those_of_the_weights_are_refused(
    kind: str, slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and sums of writers are right all the same."""
    model = Model(tiny.hf_model(kind))
    plain = nn.Linear.forward
    linear = getattr(model.bridge.blocks[1].attn, slot).original_component

    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return plain(self, _Doubled.apply(x) if self is linear else x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    with pytest.raises(Exception, match=rf"the gradient through {slot} of layer 1 computed from"):
        check_parts(model, tiny.pairs().clean)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpt2", "transformer.h.1.mlp"), ("llama-gqa", "model.layers.0.self_attn.o_proj")],
)
def test_hooks_of_torch_that_change_a_module_are_named(kind: str, name: str) -> None:
    hf = tiny.hf_model(kind)
    handle = hf.get_submodule(name).register_forward_hook(lambda module, given, out: out * 0)
    with pytest.raises(
        InputError, match=rf"hooks .* change its logits .*: {name}\. .*handle.remove"
    ):
        score_edges(Model(hf), tiny.pairs())
    handle.remove()
    score_edges(Model(hf), tiny.pairs())
    bridge = tiny.bridge(hf)
    bridge.original_model.register_forward_pre_hook(
        lambda module, given, named: (
            (given, {**named, "input_ids": named["input_ids"] * 0})
            if "input_ids" in named
            else ((given[0] * 0, *given[1:]), named)
        ),
        with_kwargs=True,
    )
    with pytest.raises(InputError, match=r"hooks .* change its logits .*: the model itself\."):
        score_edges(Model(bridge), tiny.pairs())
