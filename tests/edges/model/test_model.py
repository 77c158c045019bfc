"""Loading, refusing, borrowing and giving back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from tokens_for_tests import letters_core

from wiremap.edges import (
    InputError,
    Model,
    PromptPairs,
    WiremapError,
    WiremapWarning,
    patch_edges,
    score_edges,
)
from wiremap.edges.model.checks import check_parts
from wiremap.edges.model.loading import bundled_models, choose_device
from wiremap.edges.model.parts import Norm, Scores


def state(bridge: Any) -> dict[str, Any]:
    """All of a bridge that wiremap promises to leave as it was."""
    modules = dict(bridge.named_modules()) | dict(bridge.original_model.named_modules())
    return {
        "training": {name: module.training for name, module in modules.items()},
        "requires_grad": {n: weight.requires_grad for n, weight in bridge.named_parameters()},
        "hooks": {
            name: [handle.user_hook for handle in hook.fwd_hooks + hook.bwd_hooks]
            for name, hook in bridge.hook_dict.items()
        },
        "flags": {n: value for n, value in vars(bridge.cfg).items() if n.startswith("use_")},
        "grads": {n: weight.grad for n, weight in bridge.named_parameters()},
    }


def watched_bridge(seen: list[torch.Tensor]) -> Any:
    """A bridge in an unusual state: training in parts, half frozen, flags set, a hook that looks."""
    bridge = tiny.bridge(tiny.hf_model("gpt2"))
    bridge.set_use_split_qkv_input(True)
    bridge.train()
    bridge.blocks[1].eval()
    bridge.embed.weight.requires_grad_(False)
    bridge.add_hook("blocks.0.mlp.hook_out", lambda tensor, hook: seen.append(tensor))
    return bridge


def test_a_bridge_comes_back_as_it_was() -> None:
    seen: list[torch.Tensor] = []
    bridge = watched_bridge(seen)
    before = state(bridge)
    model, pairs = Model(bridge), tiny.pairs()
    score_edges(model, pairs)
    patch_edges(model, pairs, ["m0->logits"])
    assert state(bridge) == before
    seen.clear()
    bridge(pairs.clean)
    assert len(seen) == 1, "the caller's hook still works"


def test_a_bridge_comes_back_as_it_was_after_an_error() -> None:
    seen: list[torch.Tensor] = []
    bridge = watched_bridge(seen)
    before = state(bridge)

    def broken(logits: torch.Tensor, targets: object) -> torch.Tensor:
        raise ZeroDivisionError

    model, pairs = Model(bridge), tiny.pairs()
    for run in (
        score_edges,
        lambda *given: patch_edges(given[0], given[1], ["m0->logits"], metric=broken),
    ):
        with pytest.raises(ZeroDivisionError):
            run(model, pairs, broken)
    assert state(bridge) == before


def test_hooks_that_only_look_are_not_called_by_our_runs() -> None:
    seen: list[torch.Tensor] = []
    model = Model(watched_bridge(seen))
    pairs = tiny.pairs()
    score_edges(model, pairs)
    seen.clear()
    score_edges(model, pairs)
    assert not seen


def test_hooks_that_change_the_model_are_refused_and_named() -> None:
    bridge = tiny.bridge(tiny.hf_model("gpt2"))
    model, pairs = Model(bridge), tiny.pairs()
    score_edges(model, pairs)
    bridge.add_hook("blocks.1.attn.hook_pattern", lambda tensor, hook: tensor * 0)
    with pytest.raises(InputError, match=r"hooks on the bridge change its logits.*hook_pattern"):
        score_edges(model, pairs)
    bridge.reset_hooks()
    score_edges(model, pairs)


def test_parts_that_do_not_make_the_whole_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt2")
    monkeypatch.setattr(Scores, "__call__", lambda self, products: products.softmax(-1))
    with pytest.raises(
        WiremapError, match=r"the logits computed from its parts differ.*GPT2LMHead"
    ):
        score_edges(model, tiny.pairs())


def test_hooks_on_attention_are_seen_although_the_first_prompt_is_a_single_token() -> None:
    model = tiny.model("gpt2")
    clean = torch.tensor([[1] + [-1] * 7, list(range(1, 9))])
    pairs = PromptPairs(clean, clean.roll(0), torch.tensor([1, 2]), torch.tensor([3, 4]))

    def flatten(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.ones_like(pattern) / pattern.shape[-1]

    with (
        model.bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", flatten)]),
        pytest.raises(InputError, match="hooks on the bridge change its logits"),
    ):
        score_edges(model, pairs)


def test_a_longer_prompt_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt2")
    check_parts(model, torch.tensor([[1]]))
    monkeypatch.setattr(Scores, "__call__", lambda self, products: products.cumsum(-1))
    with pytest.raises(WiremapError, match="computed from its parts differ"):
        check_parts(model, torch.tensor([[1, 2, 3, 4]]))


def test_attention_without_scaling_is_refused() -> None:
    with pytest.raises(InputError, match="scale_attn_weights=False"):
        tiny.model("gpt2", scale_attn_weights=False)


def test_a_norm_other_than_the_formula_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Norm, "weight", torch.ones(32))
    with pytest.raises(WiremapError, match="the logits computed from its parts"):
        score_edges(tiny.model("gpt2"), tiny.pairs())


@pytest.mark.parametrize("kind", tiny.EVERY_KIND)
def test_logits_are_hugging_faces(kind: str) -> None:
    hf = tiny.hf_model(kind)
    tokens = tiny.pairs().clean
    with torch.no_grad():
        expected = hf(tokens).logits
        model = Model(tiny.bridge(hf))
        found = model.logits(model.run(model.embed(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gpt2_options_are_heeded() -> None:
    hf = tiny.hf_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    tokens = tiny.pairs().clean
    with torch.no_grad():
        expected = hf(tokens).logits
        model = Model(tiny.bridge(hf))
        torch.testing.assert_close(
            model.logits(model.run(model.embed(tokens))), expected, rtol=1e-4, atol=1e-4
        )


def test_other_architectures_are_refused_by_name_with_what_is_missing(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"BloomForCausalLM is not supported: .*ALiBi"):
        Model.load(str(tmp_path))


def test_variants_that_are_taken_apart_wrongly_are_refused() -> None:
    with pytest.raises(InputError, match="not supported is ALiBi position biases"):
        tiny.model("falcon", alibi=True)
    with pytest.raises(InputError, match="not supported is attention before the MLP"):
        tiny.model("falcon", parallel_attn=False)
    with pytest.raises(InputError, match="biases behind attention that a norm scales"):
        tiny.model("gemma2", attention_bias=True)
    with pytest.raises(InputError, match="unknown kv 'each'; there are grouped, per-query"):
        Model(tiny.model("llama-gqa").bridge, kv="each")


def test_readers_of_keys_by_query_head_leave_the_weights_grouped() -> None:
    grouped = tiny.model("llama-gqa")
    split = Model(grouped.bridge, kv="per-query")
    assert split.graph.n_kv_heads == split.graph.n_heads == 2 * grouped.graph.n_kv_heads
    assert (
        split.blocks[0].attention.projection("k")[0].data_ptr()
        == grouped.blocks[0].attention.projection("k")[0].data_ptr()
    )
    pairs = tiny.pairs()
    by_head, by_group = (score_edges(model, pairs).scores for model in (split, grouped))
    for slot in ("k", "v"):
        for head in range(2):
            (one,) = by_group[:, [split_reader(grouped, f"a1.kv{head}<{slot}>")]].T
            two = by_head[:, [split_reader(split, f"a1.h{2 * head + i}<{slot}>") for i in (0, 1)]]
            torch.testing.assert_close(two.sum(1), one, equal_nan=True, rtol=1e-4, atol=1e-5)


def split_reader(model: Model, name: str) -> int:
    return [reader.name for reader in model.graph.readers].index(name)


def test_weights_that_are_not_finite_name_the_tensor() -> None:
    hf = tiny.hf_model("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"got 1 NaN or infinite values in .*mlp.*"):
        Model(tiny.bridge(hf))


def test_fingerprints_know_weights_and_config() -> None:
    one, same, other = tiny.model("neox"), tiny.model("neox"), tiny.model("neox", seed=1)
    wired_otherwise = tiny.model("neox", use_parallel_residual=False)
    assert one.fingerprint() == same.fingerprint()
    assert len({m.fingerprint() for m in (one, other, wired_otherwise)}) == 3


# ---- loading


def test_a_directory_is_loaded_without_the_network(tmp_path: Path) -> None:
    hf = tiny.hf_model("llama-gqa")
    tokens = tiny.pairs().clean
    with torch.no_grad():
        expected = hf(tokens).logits
    hf.save_pretrained(tmp_path)
    model = Model.load(str(tmp_path), device="cpu")
    with torch.no_grad():
        found = model.logits(model.run(model.embed(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.tokenizer is None
    with pytest.raises(InputError, match="has no tokenizer"):
        model.require_tokenizer()


def test_a_model_of_the_hub_is_loaded_from_its_cache(tmp_path: Path) -> None:
    """The hub's own cache layout, offline: the code is that of a download, less the download."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--someone--tiny"
    snapshot = cache / "snapshots" / commit
    tiny.hf_model("neox").save_pretrained(snapshot)
    letters_core().save_pretrained(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    program = (
        "from wiremap.edges import Model\n"
        "model = Model.load('someone/tiny', device='cpu')\n"
        "print(model.name, model.graph.n_edges, model.fingerprint())\n"
        "print(model.require_tokenizer().encode(['a b']))\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    expected = tiny.model("neox")
    assert found[0] == f"someone/tiny {expected.graph.n_edges} {expected.fingerprint()}"
    assert found[1] == "[[3, 4]]", "NeoX models were trained without a BOS token"


def test_precision_is_chosen(tmp_path: Path) -> None:
    tiny.hf_model("gpt2").save_pretrained(tmp_path)
    model = Model.load(str(tmp_path), device="cpu", dtype=torch.float64)
    assert model.dtype == torch.float64
    assert score_edges(model, tiny.pairs()).scores.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_scores_in_float32(dtype: torch.dtype) -> None:
    half, whole = tiny.model("llama-gqa", dtype=dtype), tiny.model("llama-gqa")
    pairs = tiny.pairs()
    found, expected = score_edges(half, pairs).scores, score_edges(whole, pairs).scores
    assert found.dtype == torch.float32
    error = (found - expected).nan_to_num().abs().max() / expected.nan_to_num().abs().max()
    assert float(error) < 0.2


def test_a_directory_in_shards_is_loaded(tmp_path: Path) -> None:
    hf = tiny.hf_model("llama-gqa")
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    whole = Model(tiny.bridge(hf))
    assert Model.load(str(tmp_path), "cpu").fingerprint() == whole.fingerprint()
    shards[1].unlink()
    with pytest.raises(InputError, match=f"cannot be loaded: .*{shards[1].name}"):
        Model.load(str(tmp_path), "cpu")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_is_run_in_float32_and_said(tmp_path: Path, stored: torch.dtype) -> None:
    hf = tiny.hf_model("llama-gqa")
    tokens = tiny.pairs().clean
    with torch.no_grad():
        for weight in hf.parameters():
            weight.copy_(weight.to(stored))
        expected = hf(tokens).logits
    hf.to(stored).save_pretrained(tmp_path)
    name = str(stored).removeprefix("torch.")
    with pytest.warns(WiremapWarning, match=f"stored in {name} are run in float32 .--dtype {name}"):
        model = Model.load(str(tmp_path), "cpu")
    assert model.dtype == torch.float32
    with torch.no_grad():
        found = model.logits(model.run(model.embed(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # As it is stored, nothing is to be said.
    assert Model.load(str(tmp_path), "cpu", stored).dtype == stored


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2"])
def test_a_tied_head_is_loaded(tmp_path: Path, kind: str) -> None:
    hf = tiny.hf_model(kind, tie_word_embeddings=True)
    hf.save_pretrained(tmp_path)
    model = Model.load(str(tmp_path), "cpu")
    tokens = tiny.pairs().clean
    with torch.no_grad():
        expected = hf(tokens).logits
        found = model.logits(model.run(model.embed(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert score_edges(model, tiny.pairs()).scores.isfinite().any()


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        Model.load(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    hf = tiny.hf_model("gpt2")
    hf.config.save_pretrained(tmp_path)
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"expected weights in safetensors files.*pickled"):
        Model.load(str(tmp_path))


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    tiny.hf_model("gpt2").save_pretrained(tmp_path)
    tiny.hf_model("gpt2", n_layer=4).config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not belong together"):
        Model.load(str(tmp_path))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    tiny.hf_model("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        Model.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"model directory or a \.gguf file, got a path that does not exist"),
        (__file__, r"model directory or a \.gguf file, got another file"),
        ("ioi-mino", r"not bundled.*could not be loaded from the hub.*did you mean ioi-mini"),
    ],
)
def test_unknown_models_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model.load(name)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match="device 'tpu9' cannot be used"):
        choose_device("tpu9")


def test_bundled_models_are_found() -> None:
    assert {"ioi-mini", "tasks-mini"} <= set(bundled_models())


# ---- pairs a model cannot run


def test_prompts_beyond_the_context_are_refused() -> None:
    long = tiny.pairs(2, n_pos=40)
    with pytest.raises(InputError, match=r"at most 32 tokens.*longer in 2 rows: 1, 2"):
        score_edges(tiny.model("gpt2"), long)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    pairs = tiny.pairs(3)
    pairs.clean[1, 0] = 50
    with pytest.raises(InputError, match="expected tokens below 50.*in row 2"):
        score_edges(tiny.model("gpt2"), pairs)


def test_a_cuda_model_gives_what_a_cpu_model_gives(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pairs: PromptPairs = tiny.pairs()
    hf = tiny.hf_model(kind)
    expected = score_edges(Model(tiny.bridge(hf)), pairs).scores
    model = Model(tiny.bridge(tiny.hf_model(kind).cuda()))
    found = score_edges(model, pairs).scores
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    effects = patch_edges(model, pairs, names).effects
    slow = patch_edges(Model(tiny.bridge(tiny.hf_model(kind))), pairs, names).effects
    torch.testing.assert_close(effects, slow, rtol=1e-3, atol=1e-3)
