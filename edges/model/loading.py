"""Loading models: bundled, from a local Hugging Face directory, or from the hub; their identity."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .architectures import refuse_unsupported

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


def load_bridge(name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The bridge and the tokenizer (None if there is none) of a model; see ``Model.load``."""
    on = choose_device(device)
    with _quiet():
        if (_ZOO / name / "config.json").is_file():
            return _load_directory(_ZOO / name, on, dtype)
        path = Path(name).expanduser()
        if path.is_dir():
            return _load_directory(path, on, dtype)
        if path.exists() or name.startswith((".", "/", "~")):
            raise InputError(
                f"model {name!r}: expected a Hugging Face model directory, got "
                + ("a file" if path.exists() else "a path that does not exist")
            )
        return _load_from_hub(name, on, dtype)


def _load_directory(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Reads a local directory without touching the network."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if not (path / "config.json").is_file():
        raise InputError(f"model {path}: expected a Hugging Face directory, but has no config.json")
    if not list(path.glob("*.safetensors")):
        raise InputError(
            f"model {path}: expected weights in safetensors files, found none (pickled weights are "
            "not read); save the model again with save_pretrained(..., safe_serialization=True)"
        )
    try:
        weights, tokenizer = _load_parts(path, dtype, local_files_only=True)
        bridge = build_bridge_from_module(
            weights.to(device),
            type(weights).__name__,
            hf_config=weights.config,
            model_name=path.name,
        )
    except InputError:
        raise
    except Exception as error:  # transformers raises nearly anything on damaged files
        raise InputError(f"model {path}: cannot be loaded: {error!r:.300}") from error
    return bridge, tokenizer


def _load_from_hub(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Fetches a model of the hub, or takes it from the hub's local cache."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        weights, tokenizer = _load_parts(name, dtype, local_files_only=False)
        bridge: Any = TransformerBridge.boot_transformers(
            name, hf_model=weights.to(device), tokenizer=tokenizer, device=device, dtype=dtype
        )
    except InputError:
        raise
    except Exception as error:  # the hub, the network and transformers raise nearly anything
        near = difflib.get_close_matches(name, bundled_models(), n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = " ".join(str(error).split())
        raise InputError(
            f"model {name!r} is not bundled ({', '.join(bundled_models())}), not a local directory, "
            f"and could not be loaded from the hub{offline}{hint} The hub says: {reason:.300}"
        ) from error
    return bridge, tokenizer


def _load_parts(source: str | Path, dtype: torch.dtype, local_files_only: bool) -> tuple[Any, Any]:
    """The Hugging Face model, from safetensors only, and its tokenizer (None if it has none).

    Raises:
        InputError: an unsupported architecture, or weights that lack what the config asks for.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, local_files_only=local_files_only)
    refuse_unsupported(_architecture(config))
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        local_files_only=local_files_only,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
    )
    weights, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"model {source}: the weights lack {len(missing)} tensors the config asks for, such as "
            f"{', '.join(missing[:3])}; config.json and the safetensors files do not belong together"
        )
    has_tokenizer = not isinstance(source, Path) or any(
        (source / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")
    )
    tokenizer = None  # rather than the placeholder transformers would make up
    if has_tokenizer:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, local_files_only=local_files_only
        )
    if dtype == torch.float64:
        weights.config._experts_implementation = "eager"  # grouped products have no float64
    return weights.eval(), tokenizer


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
