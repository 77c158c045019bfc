"""Files that are no text: what they are, by their first bytes, and how their content becomes text."""

from __future__ import annotations

import re
from pathlib import Path

from ..edges.errors import InputError

_TORCH = (".pt", ".pth", ".bin", ".ckpt")


_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # which protocols 2 to 5 begin with


_LARGEST_HEADER = 100_000_000  # of safetensors: its size, 8 bytes, and then JSON


def refuse_binary(path: Path) -> None:
    """Raises InputError for a file of PyTorch, numpy, safetensors and other binary kinds.

    None of them is read here, and a pickle never: it can run any code.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.read(64)
    if kind := _pickled(first, path.suffix.lower()):
        raise InputError(
            f"expected a circuit as text, got {kind}, which is a pickle: it can run any code when "
            "it is loaded, so wiremap never reads one. Where you trust it, write it as JSON with the "
            f"program that made it, such as EAP-IG's Graph: {_advice(path)}; a matrix of your own "
            "becomes a table (.csv) with the columns source, target, slot, score"
        )
    if first.startswith(b"\x93NUMPY"):
        raise InputError(
            "expected a circuit as text, got an array of numpy, which does not name its edges; "
            "write a table (.csv) with the columns source, target, slot, score"
        )
    if first.startswith(b"\x1f\x8b"):
        raise InputError("expected a circuit as text, got a gzip archive; unpack it (gunzip)")
    if _begins_safetensors(first):
        raise InputError(
            "expected a circuit, got a file of safetensors: scores of all edges, if it is "
            "wiremap's, are for discover --scores, evaluate --curve and export --top N"
        )


def is_safetensors(path: Path) -> bool:
    """Whether it is a file of safetensors, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _begins_safetensors(file.read(9))


def _begins_safetensors(first: bytes) -> bool:
    return first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= _LARGEST_HEADER


def _pickled(first: bytes, suffix: str) -> str | None:
    """What kind of pickle a file is, in words."""
    if first.startswith(b"PK\x03\x04"):
        # A zip archive: its first entry of PyTorch's is NAME/data.pkl, or NAME/.format_version.
        of_torch = suffix in _TORCH or re.search(rb"/(data\.pkl|\.format_version|byteorder)", first)
        return "a PyTorch file" if of_torch else "a zip archive, as PyTorch writes"
    if _PICKLE.match(first):
        return "a PyTorch file of the older kind" if suffix in _TORCH else "a Python pickle"
    return None


def _advice(path: Path) -> str:
    return (
        f'python -c "from eap.graph import Graph; '
        f"Graph.from_pt('{path.name}').to_json('{path.stem}.json')\""
    )
