"""Loading models: bundled, from a local directory or GGUF file, or from the hub; their identity."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, WiremapWarning
from .architectures import refuse_unsupported
from .gguf_file import read_header
from .stored import (
    DEQUANTIZED,
    quantization_of,
    refuse_adapter,
    refuse_adapter_tensors,
    refuse_packed,
    refuse_quantized,
)

# Data files of the floor above; nothing of it is imported.
_ZOO = Path(__file__).parents[2] / "circuits" / "zoo"

# Entries of a config that say where it came from and how it is run, not what the model computes.
_NOT_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")


def bundled_models() -> list[str]:
    """Names of the models that come with wiremap."""
    return sorted(path.parent.name for path in _ZOO.glob("*/config.json"))


def bundled_path(name: str) -> Path:
    """The directory of a bundled model."""
    return _ZOO / name


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU. Raises InputError for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {device!r} cannot be used: {reason}; use auto, cpu, cuda or mps"
        ) from None
    return chosen


@dataclass(frozen=True)
class Loaded:
    """What a model's name stands for.

    Attributes:
        bridge: the ``TransformerBridge``.
        tokenizer: a ``transformers`` tokenizer; None if there is none.
        quantization: how the weights are stored that were dequantized; None for all others.
        stored: the precision that the config says the weights were saved in, if it says.
    """

    bridge: Any
    tokenizer: Any
    quantization: str | None = None
    stored: torch.dtype | None = None


def load_bridge(name: str, device: str, dtype: torch.dtype) -> Loaded:
    """The bridge and the tokenizer of a model; see ``Model.load``."""
    with _quiet():
        loaded = _load_named(name, choose_device(device), dtype)
    run_as = str(dtype).removeprefix("torch.")
    if loaded.quantization is not None:
        warnings.warn(
            f"model {name}: weights stored as {loaded.quantization} are dequantized and run in "
            f"{run_as}; results are those of the quantized model",
            WiremapWarning,
            stacklevel=3,
        )
    elif loaded.stored in (torch.bfloat16, torch.float16) and loaded.stored != dtype:
        stored = str(loaded.stored).removeprefix("torch.")
        warnings.warn(
            f"model {name}: weights stored in {stored} are run in {run_as} (--dtype {stored} runs "
            "them as they are stored)",
            WiremapWarning,
            stacklevel=3,
        )
    return loaded


def _load_named(name: str, device: torch.device, dtype: torch.dtype) -> Loaded:
    if (_ZOO / name / "config.json").is_file():
        return _load_directory(_ZOO / name, device, dtype)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_directory(path, device, dtype)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _load_gguf(path, device, dtype)
    if path.exists() or name.startswith((".", "/", "~")) or path.suffix.lower() == ".gguf":
        raise InputError(
            f"model {name!r}: expected a Hugging Face model directory or a .gguf file, got "
            + ("another file" if path.exists() else "a path that does not exist")
        )
    return _load_from_hub(name, device, dtype)


def _load_directory(path: Path, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Reads a local directory without touching the network."""
    refuse_adapter(path, str(path))
    inside = ", ".join(sorted(file.name for file in path.glob("*.gguf")))
    hint = f"; it holds {inside}: name the file itself" if inside else ""
    if not (path / "config.json").is_file():
        raise InputError(
            f"model {path}: expected a Hugging Face directory, but has no config.json{hint}"
        )
    if not list(path.glob("*.safetensors")):
        raise InputError(
            f"model {path}: expected weights in safetensors files, found none (pickled weights are "
            "not read); save the model again with save_pretrained(..., safe_serialization=True)"
            + hint
        )
    return _load_local(path, _Parts(path, dtype), device)


def _load_gguf(path: Path, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Reads a GGUF file, dequantized."""
    header = read_header(path)
    parts = _Parts(path.parent, dtype, gguf_file=path.name, has_tokenizer=header.has_tokenizer)
    # Its reader draws a bar of its own, which cannot be turned off.
    with redirect_stderr(io.StringIO()):
        loaded = _load_local(path, parts, device)
    return replace(loaded, quantization=header.quantization)


def _load_local(path: Path, parts: _Parts, device: torch.device) -> Loaded:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    try:
        weights = parts.weights()
        bridge = build_bridge_from_module(
            weights.to(device),
            type(weights).__name__,
            hf_config=weights.config,
            model_name=path.name,
        )
        return Loaded(bridge, parts.tokenizer(), parts.quantization, parts.stored)
    except InputError:
        raise
    except Exception as error:  # transformers raises nearly anything on damaged files
        raise InputError(f"model {path}: cannot be loaded: {error!r:.300}") from error


def _load_from_hub(name: str, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Fetches a model of the hub, or takes it from the hub's local cache."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        parts = _Parts(name, dtype)
        weights, tokenizer = parts.weights(), parts.tokenizer()
        bridge: Any = TransformerBridge.boot_transformers(
            name, hf_model=weights.to(device), tokenizer=tokenizer, device=device, dtype=dtype
        )
    except InputError:
        raise
    except Exception as error:  # the hub, the network and transformers raise nearly anything
        refuse_adapter(_snapshot(name, "adapter_config.json"), name)
        near = difflib.get_close_matches(name, bundled_models(), n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = " ".join(str(error).split())
        raise InputError(
            f"model {name!r} is not bundled ({', '.join(bundled_models())}), not a local directory, "
            f"and could not be loaded from the hub{offline}{hint} The hub says: {reason:.300}"
        ) from error
    return Loaded(bridge, tokenizer, parts.quantization, parts.stored)


@dataclass(frozen=True)
class _Parts:
    """Where the parts of a Hugging Face model lie: a directory, a GGUF file in it, or the hub.

    Attributes:
        source: the directory, or the hub's name.
        gguf_file: the name of a GGUF file in the directory, which holds all of it.
        has_tokenizer: whether that file has a tokenizer.
    """

    source: str | Path
    dtype: torch.dtype
    gguf_file: str | None = None
    has_tokenizer: bool = True

    @property
    def _where(self) -> dict[str, Any]:
        where: dict[str, Any] = {"local_files_only": isinstance(self.source, Path)}
        if self.gguf_file is not None:
            where["gguf_file"] = self.gguf_file
        return where

    @cached_property
    def _config(self) -> Any:
        import transformers

        return transformers.AutoConfig.from_pretrained(self.source, **self._where)

    @cached_property
    def quantization(self) -> str | None:
        """The method that the config says its weights were quantized by; None if by none."""
        return None if self.gguf_file is not None else quantization_of(self._config)

    @property
    def stored(self) -> torch.dtype | None:
        """The precision that the config says the weights were saved in."""
        return getattr(self._config, "dtype", None)

    def weights(self) -> Any:
        """The Hugging Face model, from safetensors or GGUF only.

        Raises:
            InputError: an unsupported architecture, or weights that lack what the config asks for.
        """
        import transformers

        refuse_unsupported(_architecture(self._config))
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.source,
            config=self._config,
            use_safetensors=True,
            dtype=self.dtype,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **self._where,
            **self._dequantizing(),
        )
        weights, report = loaded
        self._refuse_other_weights(report)
        # What was dequantized is a model like any other: it has the fingerprint of its weights.
        vars(weights.config).pop("quantization_config", None)
        if self.dtype == torch.float64:
            weights.config._experts_implementation = "eager"  # grouped products have no float64
        return weights.eval()

    def _dequantizing(self) -> dict[str, Any]:
        """What makes transformers dequantize the weights. Raises InputError where it cannot."""
        import transformers

        if self.gguf_file is not None:
            # Newer versions would leave weights quantized where they have a kernel for it.
            newer = hasattr(transformers, "GgufConfig")
            options = transformers.GgufConfig(dequantize=True) if newer else None
        elif self.quantization is not None:
            refuse_quantized(self.source, self.quantization)
            options = getattr(transformers, DEQUANTIZED[self.quantization])(dequantize=True)
        else:
            options = None
        return {} if options is None else {"quantization_config": options}

    def _refuse_other_weights(self, report: Any) -> None:
        """Raises InputError for weights that are not those the config asks for."""
        if self.gguf_file is None:
            files = sorted(
                _snapshot(self.source, "config.json", fetched=True).glob("*.safetensors")
            )
            refuse_packed(files, str(self.source), self.quantization)
        refuse_adapter_tensors(report["unexpected_keys"], str(self.source))
        missing = sorted(report["missing_keys"])
        if missing:
            raise InputError(
                f"model {self.source}: the weights lack {len(missing)} tensors the config asks "
                f"for, such as {', '.join(missing[:3])}; config and weights do not belong together"
            )
        if report["mismatched_keys"]:
            name, there, wanted = min(report["mismatched_keys"])
            raise InputError(
                f"model {self.source}: {len(report['mismatched_keys'])} tensors have other shapes "
                f"than the config asks for, such as {name} ({list(there)} instead of "
                f"{list(wanted)}); config and weights do not belong together"
            )

    def tokenizer(self) -> Any:
        """The tokenizer; None if there is none, not the placeholder transformers would make up."""
        import transformers

        files = ("tokenizer.json", "tokenizer.model", "vocab.json")
        if self.gguf_file is not None:
            has_tokenizer = self.has_tokenizer
        else:
            has_tokenizer = not isinstance(self.source, Path) or any(
                (self.source / file).is_file() for file in files
            )
        if not has_tokenizer:
            return None
        return transformers.AutoTokenizer.from_pretrained(self.source, **self._where)


def _snapshot(source: str | Path, file: str, fetched: bool = False) -> Path:
    """Where a model's files lie: its directory, or that of the hub's cache with this file.

    Args:
        fetched: the file was fetched before, so that the hub need not be asked.
    """
    from transformers.utils.hub import cached_file

    if isinstance(source, Path):
        return source
    try:
        found = cached_file(source, file, local_files_only=fetched)
    except (OSError, ValueError):  # no such model, no such file in it, or no network
        found = None
    return Path(found).parent if found else Path("(none)")


def _architecture(config: Any) -> str:
    """The class that runs models of this config as language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    return str(CLASSES.get(config.model_type) or (config.architectures or [config.model_type])[0])


def fingerprint(bridge: Any) -> str:
    """SHA-256 of the config and of all weights, by name, dtype, shape and value."""
    config = bridge.original_model.config.to_dict()
    computing = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(computing, sort_keys=True, default=str).encode())
    for name, weight in bridge.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        raw = weight.detach().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.cpu().numpy().tobytes())
    return digest.hexdigest()


def refuse_nonfinite_weights(bridge: Any, name: str) -> None:
    """Raises InputError, with the tensor's name, for weights that are NaN or infinite."""
    for weight_name, weight in bridge.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            n_bad = int((~torch.isfinite(weight)).sum())
            raise InputError(
                f"expected finite weights, got {n_bad} NaN or infinite values in "
                f"{weight_name.replace('._original_component', '')} of model {name}; "
                "the file may be damaged: load it again"
            )


@contextmanager
def _quiet() -> Generator[None]:
    """Keeps loading's progress bars and advice off the terminal; errors still come through."""
    import transformers

    bars = transformers.utils.logging.is_progress_bar_enabled()
    level = logging.root.manager.disable
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
