"""Hugging Face models given to ``Model`` as they are."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers
from tokens_for_tests import letters_core
from torch import nn

from wiremap.edges import InputError, Model, score_edges
from wiremap.edges.model.checks import check_parts


@pytest.mark.parametrize("kind", tiny.EVERY_KIND)
def test_a_model_is_put_into_a_bridge_and_left_as_it_was(kind: str) -> None:
    hf, tokens = tiny.hf_model(kind), tiny.pairs().clean
    before = [(name, type(module)) for name, module in hf.named_modules()]
    attention = hf.config._attn_implementation
    with torch.no_grad():
        expected = hf(tokens).logits
    model = Model(hf)
    check_parts(model, tokens)
    with torch.no_grad():
        found = model.logits(model.run(model.embed(tokens)))
        again = hf(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(again, expected)
    assert [(name, type(module)) for name, module in hf.named_modules()] == before
    assert hf.config._attn_implementation == attention
    assert model.fingerprint() == tiny.model(kind).fingerprint()


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2"])
def test_it_is_the_model_that_its_directory_is(tmp_path: Path, kind: str) -> None:
    hf = tiny.hf_model(kind)
    hf.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = letters_core()
    first, second = (Model(loaded, tokenizer=tokenizer, kv="per-query") for _ in range(2))
    assert first.name == second.name == str(tmp_path)
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() == Model.load(str(tmp_path), "cpu").fingerprint()
    assert first.require_tokenizer().bos
    assert Model(loaded, "mine").name == "mine"
    assert Model(hf).name == type(hf).__name__
    torch.testing.assert_close(
        score_edges(first, tiny.pairs()).scores,
        score_edges(Model(tiny.bridge(hf), kv="per-query"), tiny.pairs()).scores,
        equal_nan=True,
    )


@pytest.mark.parametrize("kind", ["qwen3-moe", "mixtral"])
def test_experts_in_float64_are_run_one_by_one(kind: str) -> None:
    hf, tokens = tiny.hf_model(kind).double(), tiny.pairs().clean
    model = Model(hf)
    check_parts(model, tokens)
    assert model.dtype == torch.float64
    assert hf.config._experts_implementation != "eager"


def test_what_transformer_lens_cannot_wrap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **options: Any) -> None:
        raise ZeroDivisionError(given[1])

    monkeypatch.setattr("transformer_lens.model_bridge.sources.build_bridge_from_module", broken)
    for kind, name in (("gpt2", "GPT2LMHeadModel"), ("neox", "GPTNeoXForCausalLM")):
        said = rf"cannot put it into a bridge: ZeroDivisionError\('{name}'\)"
        with pytest.raises(InputError, match=said):
            Model(tiny.hf_model(kind))


def test_weights_are_shared() -> None:
    hf = tiny.hf_model("llama-gqa")
    model = Model(hf)
    assert {weight.data_ptr() for weight in hf.parameters()} == {
        weight.data_ptr() for weight in model.bridge.parameters()
    }
    hf.train()
    assert not model.bridge.training


def test_hooks_on_it_are_shared_whatever_they_hold() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.lock = threading.Lock()  # cannot be copied
            self.n_seen = 0

        def see(self, module: nn.Module, given: Any, out: Any) -> None:
            self.n_seen += 1

    recorder, hf = Recorder(), tiny.hf_model("llama-gqa")
    hf.model.layers[0].mlp.register_forward_hook(recorder.see)
    score_edges(Model(hf), tiny.pairs())
    assert recorder.n_seen == 1, "in the check of the parts alone"


def test_what_cannot_be_copied_is_said() -> None:
    for keep in (threading.Lock(), (item for item in ())):
        hf = tiny.hf_model("gpt2")
        hf.keep = keep
        with pytest.raises(InputError, match=r"something on it cannot be copied .*bridge yourself"):
            Model(hf)


def test_a_model_already_in_a_bridge_is_refused() -> None:
    for kind in ("gpt2", "llama-gqa"):
        hf = tiny.hf_model(kind)
        Model(tiny.bridge(hf))
        with pytest.raises(InputError, match=r"put into a TransformerBridge already.*that bridge"):
            Model(hf)


def test_what_is_no_model_of_language_is_refused_with_what_to_type() -> None:
    hf = tiny.hf_model("neox")
    bert = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8
    )
    cases: list[tuple[Any, str]] = [
        ("gpt2", r"got a builtins.str; load it by name or path: Model.load\('gpt2'\)"),
        (None, r"got a builtins.NoneType; load one: .*from_pretrained"),
        (hf.gpt_neox, r"head, got a GPTNeoXModel; .*AutoModelForCausalLM"),
        (tiny.hf_model("llama-gqa").model, r"head, got a LlamaModel; .*AutoModelForCausalLM"),
        (nn.DataParallel(hf), r"got a .*DataParallel; give what is inside it: \.module"),
        (
            torch.compile(hf, backend="eager"),
            r"got a .*OptimizedModule; give what is inside it: \._orig_mod",
        ),
        (Path("some/where"), r"load it by name or path: Model.load\('some/where'\)"),
        (
            SimpleNamespace(model=hf),
            r"got a types.SimpleNamespace; give what is inside it: \.model",
        ),
        (type("HookedTransformer", (nn.Module,), {})(), r"HookedTransformer; .*boot_transformers"),
        (transformers.BertModel(bert), r"architecture BertModel is not supported"),
    ]
    for given, said in cases:
        with pytest.raises(InputError, match=said):
            Model(given)


def test_a_model_with_adapters_around_it_is_refused() -> None:
    for name in ("PeftModelForCausalLM", "LoraModel"):
        around: Any = type(name, (nn.Module,), {})()
        around.peft_config, around.base_model = {}, tiny.hf_model("gpt2")
        with pytest.raises(
            InputError, match=rf"got a .*{name}; merge the adapter into the weights"
        ):
            Model(around)


def test_a_class_of_ones_own_is_refused() -> None:
    for kind in ("llama-gqa", "gpt2"):
        hf = tiny.hf_model(kind)
        known = type(hf)
        hf.__class__ = type("Mine", (known,), {})
        said = rf"plain modules of {known.__name__}, but the model itself is a .*Mine; give the {known.__name__}"
        with pytest.raises(InputError, match=said):
            Model(hf)
