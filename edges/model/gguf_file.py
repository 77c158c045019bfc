"""What a GGUF file says of itself, and whether it can be read: ``transformers`` reads the weights.

llama.cpp's files hold config, tokenizer and weights, mostly quantized. They are read dequantized.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

# Proved by tests/edges/model/test_gguf.py against the same weights in a directory.
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")


@dataclass(frozen=True)
class GgufHeader:
    """What stands in a file besides weights.

    Attributes:
        quantization: the types of its matrices, that of most weights first: ``Q4_1, Q8_0``.
        has_tokenizer: whether it holds one.
    """

    quantization: str
    has_tokenizer: bool


def read_header(path: Path) -> GgufHeader:
    """The header of a file that can be loaded.

    Raises:
        InputError: no package ``gguf``; a file that is empty, cut off or no GGUF; an architecture
            or a quantization that is not read, or rotary embeddings the reader would get wrong.
    """
    reader = _reader(path)
    _refuse_config(path, reader)
    matrices: Counter[str] = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:  # norms and biases are never quantized
            matrices[tensor.tensor_type.name] += int(tensor.n_elements)
    _refuse_quantization(path, reader)
    return GgufHeader(
        quantization=", ".join(name for name, _ in matrices.most_common()),
        has_tokenizer="tokenizer.ggml.tokens" in reader.fields,
    )


def _reader(path: Path) -> Any:
    """The file's header, read whole. Weights are mapped into memory, and none is read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(
            f"model {path}: GGUF files need the package gguf, which is not installed; type: "
            'pip install "wiremap[gguf]"'
        ) from None
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"model {path}: cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        came = "an empty file" if size == 0 else f"one that begins with {magic!r}"
        raise InputError(f"model {path}: expected a GGUF file, got {came}; fetch it again")
    try:
        return GGUFReader(path)
    except Exception as error:  # the package raises nearly anything on damaged files
        raise InputError(
            f"model {path}: cannot be read as GGUF: it is cut off or damaged ({size:,} bytes are "
            f"there), or newer than the package gguf; fetch it again, or update the package. "
            f"The reader says: {error!r:.200}"
        ) from error


def _refuse_config(path: Path, reader: Any) -> None:
    field = reader.fields.get("general.architecture")
    architecture = str(field.contents()) if field else "(not named)"
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"model {path}: a GGUF file of architecture {architecture} is not read, but those of "
            f"{', '.join(_ARCHITECTURES)}; give the model's Hugging Face directory, which may be "
            "supported (see: wiremap models)"
        )
    # transformers' reader keeps the base frequency of rotary embeddings alone, and says nothing.
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    scaled = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    if scaled or (scaling is not None and scaling.contents() != "none"):
        what = scaled[0] if scaled else f"rope.scaling.type {scaling.contents()}"
        raise InputError(
            f"model {path}: its rotary embeddings are scaled ({what}), which is lost when "
            "transformers reads a GGUF file; give the model's Hugging Face directory"
        )


def _refuse_quantization(path: Path, reader: Any) -> None:
    """Raises InputError for types that the package cannot dequantize, after trying a row of each."""
    from gguf import dequantize

    by_type = {tensor.tensor_type: tensor for tensor in reader.tensors}
    unread: list[str] = []
    for kind, tensor in by_type.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError:
            unread.append(f"{kind.name} (such as {tensor.name})")
    if unread:
        raise InputError(
            f"model {path}: weights quantized as {', '.join(unread)} cannot be dequantized; "
            "take the file in another quantization, such as Q8_0"
        )
