"""The slow model against Hugging Face's, in float64; and what its oracles rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import tiny
import torch
from slow import ORDINARY, Experts, Rules, SlowModel, normed
from torch import Tensor
from torch.overrides import TorchFunctionMode

KINDS = (*tiny.EVERY_KIND, *tiny.UNBRIDGED)
EACH_RULE = (
    Rules(freeze_norms=True),
    Rules(identity_activation=True),
    Rules(half_gate=True),
    Rules(detach_pattern=True),
    Rules(softmax_temperature=2.0),
    Rules(q_factor=0.5),
    Rules(k_factor=0.25),
    Rules(v_factor=0.5),
)
ALL_RULES = Rules(True, True, True, False, 2.0, 0.5, 0.25, 0.5)
EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe")
UNGATED = ("gpt2", "neox", "neox-sequential", "gptj", "phi", "falcon", "falcon-new")


class Double(TorchFunctionMode):
    """Casts to float32, of which Hugging Face's models have many, become casts to float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        def wider(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = Tensor.double if func is Tensor.float else func
        named = {name: wider(value) for name, value in (kwargs or {}).items()}
        return func(*map(wider, args), **named)


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything in float64: constants such as Gemma's embedding scale, and what is cast."""
    torch.set_default_dtype(torch.float64)
    try:
        with Double():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def tokens(n_pos: int) -> Tensor:
    return torch.randint(1, tiny.VOCABULARY, (3, n_pos), generator=torch.Generator().manual_seed(1))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def hf_logits(hf: Any, prompts: Tensor) -> Tensor:
    hf.set_attn_implementation("eager")
    hf.config._experts_implementation = "eager"  # the other one refuses float64
    with torch.no_grad():
        return hf(prompts, use_cache=False).logits[:, -1]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n_pos", [7, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_hugging_face(kind: str, n_pos: int) -> None:
    hf = tiny.hf_model(kind).double()
    slow, prompts = SlowModel(hf), tokens(n_pos)
    expected = hf_logits(hf, prompts)
    assert expected.dtype == torch.float64
    assert relative_error(slow.run(prompts)[0], expected) < 1e-8
    assert relative_error(slow.run_nodes(slow.embed(prompts), lambda _, x: x), expected) < 1e-8
    assert 1 < float(expected.abs().max()) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_writes_and_nothing_else_sum_to_what_logits_reads(kind: str) -> None:
    slow, prompts = SlowModel(tiny.hf_model(kind)), tokens(7)
    logits, writes = slow.run(prompts)
    biases = [f"bias{layer}" for layer in range(slow.n_layers)]
    assert sorted(writes) == sorted([*slow.writers, *biases])
    resid = torch.stack(list(writes.values())).sum(0)[:, -1:]
    assert relative_error(slow.unembed(resid)[:, 0], logits) < 1e-12
    if slow.blocks[0].post_attention is not None:  # a bias would be scaled by what the heads write
        assert not any(bool(writes[bias].any()) for bias in biases)


@pytest.mark.parametrize("kind", KINDS)
def test_one_input_for_all_readers_gives_the_ordinary_run(kind: str) -> None:
    """Whether keys and values are read by group or by query head."""
    hf, prompts = tiny.hf_model(kind), tokens(7)
    slow, per_query = SlowModel(hf), SlowModel(hf, per_query=True)
    logits = slow.run(prompts)[0]
    assert relative_error(per_query.run(prompts)[0], logits) < 1e-12
    n_readers = slow.n_layers * (3 * slow.n_heads + 1) + 1
    assert len(per_query.readers) == len(set(per_query.readers)) == n_readers
    assert per_query.readers[slow.n_heads] == "a0.h0<k>"
    assert (per_query.readers == slow.readers) == (slow.n_kv_heads == slow.n_heads)


@pytest.mark.parametrize("kind", ["llama-gqa", "falcon", "olmo2", "qwen3", "gemma2"])
def test_readers_of_a_group_add_up_to_the_group(kind: str) -> None:
    """The same change at the key readers of all query heads of a group is one of the group."""
    hf, prompts = tiny.hf_model(kind), tokens(7)
    slow, per_query = SlowModel(hf), SlowModel(hf, per_query=True)
    group = slow.n_heads // slow.n_kv_heads

    def patched(model: SlowModel, readers: list[str]) -> Tensor:
        amount = torch.zeros(len(prompts), len(model.writers), len(model.readers)).double()
        for reader in readers:
            amount[:, 1, model.readers.index(reader)] = 1
        return model.edited(prompts, prompts.flip(0), amount)

    for slot in "kv":
        together = patched(slow, [f"a1.kv0<{slot}>"])
        each = [f"a1.h{head}<{slot}>" for head in range(group)]
        assert relative_error(patched(per_query, each), together) < 1e-12
        assert relative_error(patched(per_query, each[:1]), together) > 1e-4


# ---- rules


def gradient(slow: SlowModel, rules: Rules) -> Tensor:
    """Of a logit by every edge, towards another run."""
    prompts = tokens(7)
    shape = (len(prompts), len(slow.writers), len(slow.readers))
    amount = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    logits = slow.edited(prompts, prompts.flip(0), amount, rules)
    (found,) = torch.autograd.grad(logits[:, 3].sum(), amount)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_rules_change_no_value(kind: str) -> None:
    slow, prompts = SlowModel(tiny.hf_model(kind)), tokens(7)
    logits, writes = slow.run(prompts)
    off, off_writes = slow.run(prompts, rules=Rules())
    assert torch.equal(off, logits)
    assert all(torch.equal(off_writes[name], write) for name, write in writes.items())
    for rules in (*EACH_RULE, ALL_RULES):
        found, found_writes = slow.run(prompts, rules=rules)
        assert relative_error(found, logits) < 1e-10
        for name, write in writes.items():
            assert float((found_writes[name] - write).abs().max()) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_each_rule_changes_the_gradient_unless_there_is_nothing_to_change(kind: str) -> None:
    slow = SlowModel(tiny.hf_model(kind))
    ordinary = gradient(slow, ORDINARY)
    assert torch.equal(gradient(slow, Rules()), ordinary)
    for rules in EACH_RULE:
        changed = relative_error(gradient(slow, rules), ordinary)
        assert (changed > 1e-3) == (not rules.half_gate or kind not in UNGATED), rules


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_pattern_gives_queries_and_keys_no_gradient(kind: str) -> None:
    slow = SlowModel(tiny.hf_model(kind))
    by_reader = gradient(slow, Rules(detach_pattern=True)).unbind(2)
    for reader, column in zip(slow.readers, by_reader, strict=True):
        assert bool(column.any()) != reader.endswith(("<q>", "<k>"))


@pytest.mark.parametrize("slot", ["q", "k", "v"])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_scale_the_gradients_of_the_last_layer(kind: str, slot: str) -> None:
    """No other layer comes after it."""
    slow = SlowModel(tiny.hf_model(kind))
    ordinary = gradient(slow, ORDINARY)
    changed = gradient(slow, replace(ORDINARY, **{f"{slot}_factor": 0.25}))
    prefix = f"a{slow.n_layers - 1}."
    for index, reader in enumerate(slow.readers):
        if reader.startswith(prefix):
            factor = 0.25 if reader.endswith(f"<{slot}>") else 1.0
            assert torch.allclose(changed[..., index], factor * ordinary[..., index], atol=1e-12)


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3", "gemma2", "olmo2", "granite"])
def test_relevance_of_a_gated_mlp_is_what_it_adds(kind: str) -> None:
    """With half gates its gradient times its input is its output, as of a linear function."""
    changes: dict[str, Any] = {"final_logit_softcapping": None} if kind == "gemma2" else {}
    slow, prompts = SlowModel(tiny.hf_model(kind, **changes)), tokens(7)
    rules = Rules(freeze_norms=True, identity_activation=True, half_gate=True)
    last = f"m{slow.n_layers - 1}"
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def read(reader: str, writes: dict[str, Tensor]) -> Tensor:
        resid = torch.stack(list(writes.values())).sum(0)
        return resid * scale if reader == last else resid

    logits, writes = slow.run(prompts, read, rules)
    writes = {name: write.detach() for name, write in writes.items()}
    (by_scale,) = torch.autograd.grad(logits[:, 3].sum(), scale)
    resid = torch.stack(list(writes.values())).sum(0)
    divisor = slow.final_norm.divisor(resid, ORDINARY)
    added = writes[last] / divisor * slow.final_norm.weight @ slow.unembedding.weight[:, 3]
    if kind == "granite":
        added = added / slow.config.logits_scaling
    assert relative_error(by_scale, added[:, -1].sum()) < 1e-10


def test_softmax_temperature_is_that_of_a_softer_pattern() -> None:
    slow = SlowModel(tiny.hf_model("gpt2"))
    queries = torch.randn(1, 5, 8, dtype=torch.float64)
    keys = torch.randn(1, 5, 8, dtype=torch.float64)
    weights = torch.randn(1, 5, 5, dtype=torch.float64)

    def by_queries(factor: float, rules: Rules) -> Tensor:
        leaf = queries.clone().requires_grad_()
        pattern = slow.pattern(leaf * factor, keys, rules=rules)
        return torch.autograd.grad((pattern * weights).sum(), leaf)[0]

    softer = 3 * by_queries(1 / 3, ORDINARY)  # without the factor 1 / 3 of its derivative
    assert torch.allclose(by_queries(1, Rules(softmax_temperature=3.0)), softer, atol=1e-14)


def test_every_rule_is_tested() -> None:
    tested = {
        field.name
        for rules in EACH_RULE
        for field in fields(Rules)
        if getattr(rules, field.name) != field.default
    }
    assert tested == {field.name for field in fields(Rules)}


# ---- what the tiny models are there to show


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_far_from_uniform(kind: str) -> None:
    slow = SlowModel(tiny.hf_model(kind))
    values = slow.values(slow.embed(tokens(7)))
    largest = [
        float(values[f"a{layer}.h{head}<pattern>"][:, 2:].max(-1).values.mean())
        for layer in range(slow.n_layers)
        for head in range(slow.n_heads)
    ]
    assert sum(largest) / len(largest) > 0.55  # uniform: 0.22


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3"])
def test_windows_matter(kind: str) -> None:
    narrow, wide = (SlowModel(tiny.hf_model(kind, sliding_window=width)) for width in (4, 32))
    assert relative_error(narrow.run(tokens(7))[0], wide.run(tokens(7))[0]) > 1e-2
    assert narrow.blocks[0].window == 4
    assert (narrow.blocks[1].window is None) == (kind != "mistral")


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_soft_caps_matter(name: str) -> None:
    changes: dict[str, Any] = {name: None}
    capped = SlowModel(tiny.hf_model("gemma2")).run(tokens(7))[0]
    free = SlowModel(tiny.hf_model("gemma2", **changes)).run(tokens(7))[0]
    assert relative_error(capped, free) > 2e-2


def test_rotations_of_gemma_3_differ_by_layer() -> None:
    slow = SlowModel(tiny.hf_model("gemma3"))
    thetas = [block.rotary.theta for block in slow.blocks if block.rotary is not None]
    assert thetas == [10_000.0, 1_000_000.0, 10_000.0]


@pytest.mark.parametrize("kind", EXPERTS)
def test_tokens_go_to_different_experts(kind: str) -> None:
    slow = SlowModel(tiny.hf_model(kind))
    seen: dict[str, Tensor] = slow.values(slow.embed(tokens(12)))
    assert not any(name.endswith(".n") for name in seen)
    for layer, block in enumerate(slow.blocks):
        assert isinstance(block.mlp, Experts)
        chosen = block.mlp.weights(normed(block.mlp_norm, seen[f"r{layer}"], ORDINARY)) > 0
        assert torch.equal(chosen.sum(-1), torch.full(chosen.shape[:2], 2))
        assert float(chosen.double().mean((0, 1)).min()) > 0.05
