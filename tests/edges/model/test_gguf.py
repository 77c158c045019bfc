"""GGUF files: read as the same weights in a directory are, and refused in words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import gguf_for_tests as files
import numpy as np
import pytest
import tiny
import torch
import transformers

from wiremap.circuits.describe import describe_model
from wiremap.edges import InputError, Model, WiremapWarning

KINDS = ("llama-gqa", "qwen2", "qwen3", "gpt2")


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.run(model.embed(tiny.pairs().clean)))


def loaded(path: Path, **options: Any) -> Model:
    with pytest.warns(WiremapWarning, match="dequantized and run in float") as said:
        model = Model.load(str(path), "cpu", **options)
    assert len(said) == 1
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [files.Q8, files.F32], ids=["Q8_0", "F32"])
def test_a_file_is_read_as_its_weights_in_a_directory(
    tmp_path: Path, kind: str, stored: gguf.GGMLQuantizationType
) -> None:
    hf = files.hf_model(kind)
    path = tmp_path / "tiny.gguf"
    dequantized = files.write(path, hf, stored)
    hf.load_state_dict(dequantized, strict=False)
    hf.save_pretrained(tmp_path / "directory")
    found, expected = loaded(path), Model.load(str(tmp_path / "directory"), "cpu")
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-5, atol=1e-5)
    assert found.quantization == stored.name
    assert describe_model(found)["quantization"] == stored.name
    assert "quantization" not in describe_model(expected)


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2"])
def test_one_read_by_transformers_is_taken_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.gguf"
    files.write(path, files.hf_model(kind))
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert Model(hf).fingerprint() == loaded(path).fingerprint()


def test_its_tokenizer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    files.write(path, files.hf_model("llama-gqa"))
    tokenizer = loaded(path).require_tokenizer()
    assert [tokenizer.decode(token) for token in tokenizer.encode(["ab a"])[0]] == [
        "<s>", "a", "b", " a",
    ]  # fmt: skip
    assert tokenizer.encode(["<s>ab a"]) == tokenizer.encode(["ab a"])


def test_types_are_told_most_weights_first_and_other_precisions_run(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    extra = {"blk.0.unused.weight": np.ones((2, 32), np.float32)}
    files.write(path, files.hf_model("llama-gqa"), tensors=extra, words=False)
    model = loaded(path, dtype=torch.float64)
    assert model.quantization == "Q8_0, F32"
    assert model.dtype == torch.float64
    assert model.tokenizer is None


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    files.write(path, files.hf_model("llama-gqa"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'not installed; type: pip install "wiremap\[gguf\]"'):
        Model.load(str(path))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "expected a GGUF file, got an empty file"),
        (b"PK\x03\x04 and so on", r"got one that begins with b'PK\\x03\\x04'"),
        (b"GGUF\x03\x00\x00\x00\x05", "cut off or damaged"),
        (0.5, "cut off or damaged"),
        (0.9, "cut off or damaged"),
    ],
    ids=["empty", "another file", "a beginning", "half of it", "most of it"],
)
def test_damaged_files_are_refused(tmp_path: Path, damaged: bytes | float, message: str) -> None:
    path = tmp_path / "tiny.gguf"
    files.write(path, files.hf_model("llama-gqa"))
    whole = path.read_bytes()
    path.write_bytes(damaged if isinstance(damaged, bytes) else whole[: int(len(whole) * damaged)])
    with pytest.raises(InputError, match=message):
        Model.load(str(path))


def test_what_is_not_read_rightly_is_refused(tmp_path: Path) -> None:
    hf, path = files.hf_model("llama-gqa"), tmp_path / "tiny.gguf"
    files.write(path, hf, architecture="mamba")
    with pytest.raises(InputError, match=r"architecture mamba is not read, but those of llama"):
        Model.load(str(path))
    files.write(path, hf, tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    with pytest.raises(InputError, match=r"rotary embeddings are scaled \(rope_freqs\.weight\)"):
        Model.load(str(path))
    files.write(path, hf, fields={"llama.rope.scaling.type": "yarn"})
    with pytest.raises(InputError, match=r"scaled \(rope\.scaling\.type yarn\)"):
        Model.load(str(path))
    files.write(path, hf, tensors={"counts.weight": np.ones((2, 2), np.int32)})
    with pytest.raises(InputError, match=r"quantized as I32 \(such as counts\.weight\) cannot"):
        Model.load(str(path))


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    hf, path = files.hf_model("llama-gqa", num_hidden_layers=2), tmp_path / "tiny.gguf"
    hf.config.num_hidden_layers = 3
    files.write(path, hf)
    with pytest.raises(InputError, match=r"the weights lack \d+ tensors"):
        Model.load(str(path))
    hf = files.hf_model("llama-gqa")
    hf.config.intermediate_size = 32
    files.write(path, hf)
    with pytest.raises(InputError, match=r"other shapes.* \(\[32, 64\] instead of \[32, 32\]\)"):
        Model.load(str(path))


def test_a_directory_of_a_file_points_at_it(tmp_path: Path) -> None:
    files.write(tmp_path / "tiny.gguf", files.hf_model("llama-gqa"))
    with pytest.raises(InputError, match=r"no config\.json; it holds tiny\.gguf: name the file"):
        Model.load(str(tmp_path))
    with pytest.raises(InputError, match=r"\.gguf file, got a path that does not exist"):
        Model.load("nowhere.gguf")
