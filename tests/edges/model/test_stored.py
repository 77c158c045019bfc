"""Directories of adapters and of quantized weights: dequantized, or refused with what to type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import pytest
import tiny
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from wiremap.circuits.describe import describe_model
from wiremap.edges import InputError, Model, WiremapWarning


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        return model.logits(model.run(model.embed(tiny.pairs().clean)))


# ---- adapters


def adapter(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {"base_model.model.lora_A.weight": torch.ones(2, 2)},
        directory / "adapter_model.safetensors",
    )
    return directory


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_a_directory_of_an_adapter_says_so_and_how_it_is_merged(tmp_path: Path, kind: str) -> None:
    path = adapter(tmp_path / "it", peft_type=kind, base_model_name_or_path="someone/base")
    said = (
        rf"adapter_config.json in {path} is that of an? {kind} adapter of someone/base\. Merge it"
        rf".*AutoPeftModelForCausalLM.*'{path}'.*merge_and_unload\(\).save_pretrained\('MERGED'\)"
    )
    with pytest.raises(InputError, match=said):
        Model.load(str(path))
    told = command.refused("score", "edges", "--model", path, "--task", "ioi")
    assert f"{kind} adapter of someone/base" in told
    assert "merge_and_unload()" in told


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_prompts_that_were_learned_cannot_be_merged(tmp_path: Path, kind: str) -> None:
    path = adapter(tmp_path, peft_type=kind, base_model_name_or_path="someone/base")
    with pytest.raises(InputError, match=r"TUNING adapter of someone/base, which cannot be merged"):
        Model.load(str(path))


def test_adapters_below_a_directory_are_named(tmp_path: Path) -> None:
    adapter(tmp_path / "checkpoint-10", peft_type="LORA")
    with pytest.raises(
        InputError, match=r"in .*checkpoint-10 is that of a LORA adapter of another"
    ):
        Model.load(str(tmp_path))
    tiny.hf_model("gpt2").save_pretrained(tmp_path)  # a whole model, trained on beside
    assert Model.load(str(tmp_path), "cpu").d_model == 32


def test_an_adapter_beside_whole_weights_is_asked_about(tmp_path: Path) -> None:
    tiny.hf_model("gpt2").save_pretrained(tmp_path)
    for said in ("{}", "no json"):
        (tmp_path / "adapter_config.json").write_text(said)
        with pytest.raises(
            InputError, match=r"if the weights here are merged already, remove that"
        ):
            Model.load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "said"),
    [("adapter_model.bin", "another model"), ("adapters.safetensors", "another model")],
)
def test_weights_of_an_adapter_alone_are_known(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match=rf"{file} in .* adapter of {said}.* package that made it"):
        Model.load(str(tmp_path))


def test_adapters_of_other_packages_are_named(tmp_path: Path) -> None:
    for key in ("model", "model_name"):
        path = adapter(tmp_path / key, fine_tune_type="lora", **{key: "someone/base"})
        with pytest.raises(
            InputError, match=r"an? adapter of someone/base\. .*package that made it"
        ):
            Model.load(str(path))


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("ia3_l.default",), ("adapter.down",)])
def test_tensors_of_an_adapter_are_not_left_out(
    tmp_path: Path, kind: str, names: tuple[str, ...]
) -> None:
    """As loralib saves them: beside the weight, which alone would be another model."""
    hf = tiny.hf_model(kind)
    hf.save_pretrained(tmp_path)
    weights = {name: weight.clone() for name, weight in hf.state_dict().items()}
    beside = (
        "model.layers.0.self_attn.v_proj" if kind == "llama-gqa" else "transformer.h.0.attn.c_attn"
    )
    for name in names:
        weights[f"{beside}.{name}"] = torch.ones(2, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = rf"{len(names)} tensors are an adapter's, such as {beside}.{names[0]}, and would be left"
    with pytest.raises(InputError, match=said):
        Model.load(str(tmp_path), "cpu")


# ---- quantized by a method that the config names


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            r"by bitsandbytes.*from_pretrained\('{path}'\)\.dequantize\(\)\.save_pretrained",
        ),
        ({"load_in_8bit": True}, r"by bitsandbytes.*\.dequantize\(\)"),
        (
            {"quant_method": "gptq", "bits": 4},
            r"by gptq.*name the model that it was quantized from .*config.json\)$",
        ),
        ({"quant_method": "awq", "bits": 4}, r"by awq.*config.json\)$"),
        (
            {"quant_method": "compressed-tensors", "format": "int-quantized"},
            r"by compressed-tensors.*CompressedTensorsConfig as C;.*C\(dequantize=True\)\)\.save",
        ),
        ({"quant_method": "torchao", "quant_type": "int8"}, r"by torchao.*config.json\)$"),
        ({"quant_method": "someones-own"}, r"by someones-own.*config.json\)$"),
        ({"bits": 3}, r"by an unnamed method"),
    ],
)
def test_quantized_weights_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    hf = tiny.hf_model("llama-gqa")
    hf.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "quantization_config": config}))
    with pytest.raises(InputError, match=said.replace("{path}", str(tmp_path))):
        Model.load(str(tmp_path), "cpu")


# ---- fp8, which is dequantized


def in_blocks(weight: Tensor, function: Callable[[Tensor], Tensor], block: int = 8) -> Tensor:
    """A function of a weight's blocks, one row and column for each."""
    rows, columns = weight.shape
    return function(weight.view(rows // block, block, columns // block, block))


def write_fp8(directory: Path, kind: str, leave_out: str = "") -> Any:
    """A directory as of the hub's fp8 models, and the model of its weights by hand."""
    hf = tiny.hf_model(kind)
    stored: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for name, weight in hf.state_dict().items():
        stored[name] = whole[name] = weight.contiguous()
        if "_proj" in name and name.endswith("weight"):
            scale = in_blocks(weight, lambda blocks: blocks.abs().amax((1, 3)) / 448)
            every = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
            stored[name] = (weight / every).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            whole[name] = stored[name].float() * every
    stored.pop(leave_out, None)
    hf.config.quantization_config = {
        "quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic",
    }  # fmt: skip
    hf.config.save_pretrained(directory)
    del hf.config.quantization_config
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    hf.load_state_dict(whole)
    return hf


@pytest.mark.parametrize("kind", ["qwen3", "llama-gqa"])
def test_fp8_is_dequantized_and_said(tmp_path: Path, kind: str) -> None:
    hf = write_fp8(tmp_path, kind)
    with pytest.warns(WiremapWarning, match=r"stored as fp8 are dequantized and run in float32"):
        model = Model.load(str(tmp_path), "cpu")
    with torch.no_grad():
        expected = hf(tiny.pairs().clean).logits
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert model.quantization == describe_model(model)["quantization"] == "fp8"
    assert model.dtype == torch.float32
    hf.save_pretrained(tmp_path / "whole")
    whole = Model.load(str(tmp_path / "whole"), "cpu")
    assert whole.quantization is None
    assert whole.fingerprint() == model.fingerprint()


def test_fp8_without_its_scales_is_refused(tmp_path: Path) -> None:
    for slot in ("q", "k"):
        name = f"model.layers.1.self_attn.{slot}_proj.weight"
        write_fp8(tmp_path / slot, "llama-gqa", leave_out=f"{name}_scale_inv")
        with pytest.raises(
            InputError, match=rf"{name} as F8_E4M3: .*by fp8, but no scale of theirs"
        ):
            Model.load(str(tmp_path / slot), "cpu")


# ---- quantized, and the config does not say so


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2"])
def test_weights_of_fewer_bits_are_refused_by_name(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    hf = tiny.hf_model(kind)
    weights = {name: weight.contiguous() for name, weight in hf.state_dict().items()}
    name = next(
        name for name in weights if "layers.1.mlp.up_proj" in name or "h.1.mlp.c_fc" in name
    )
    weights[name] = weights[name].mul(100).to(dtype)
    if kind == "gpt2":
        del weights["lm_head.weight"]
    hf.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=rf"1 tensors are stored in other types, such as {name} as "
    ):
        Model.load(str(tmp_path), "cpu")


def test_masks_in_bytes_are_no_weights(tmp_path: Path) -> None:
    for kind, name in (
        ("gpt2", "transformer.h.0.attn.bias"),
        ("neox", "gpt_neox.layers.0.attention.bias"),
    ):
        hf = tiny.hf_model(kind)
        weights = {key: weight.clone() for key, weight in hf.state_dict().items()}
        weights[name] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        hf.config.save_pretrained(tmp_path / kind)
        save_file(weights, tmp_path / kind / "model.safetensors", metadata={"format": "pt"})
        assert (
            Model.load(str(tmp_path / kind), "cpu").fingerprint() == tiny.model(kind).fingerprint()
        )


def test_an_adapter_of_the_hub_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = adapter(tmp_path, peft_type="LORA", base_model_name_or_path="someone/base")

    def cached_file(source: str, file: str, **options: bool) -> str:
        return str(found / file)

    monkeypatch.setattr(transformers.utils.hub, "cached_file", cached_file)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"model someone/lora: .*LORA adapter of someone/base"):
        Model.load("someone/lora", "cpu")
