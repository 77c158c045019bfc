"""What it costs to measure effects in less than float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...edges.model.transformer import Model
from ...edges.names.vocabulary import NOTHING
from ...edges.question.question import Question
from ..record.effects_file import Verified
from .verification import PRECISION_SAMPLE, precision_error


def float32_error(
    model: Model,
    question: Question,
    verified: Sequence[Verified],
    *,
    batch_size: int | None = None,
    frozen: str = NOTHING,
) -> float | None:
    """How far edges measured in less than float32 are off, on a sample; None for float32 itself.

    Loads the same model once more, in float32. Args as for ``precision_error``.
    """
    if not verified or (model.dtype in (torch.float32, torch.float64) and not model.tf32):
        return None
    # All that shapes the computation stays as it was, but for the precision.
    bos = model.tokenizer.bos if model.tokenizer else None
    exact = Model.load(model.name, str(model.device), torch.float32, bos=bos, kv=model.kv)
    return precision_error(exact, question, verified, batch_size=batch_size, frozen=frozen)


def precision_note(model: Model, error: float, n_verified: int) -> str:
    """What to say of effects that were not measured in float32."""
    precision = "TF32" if model.tf32 else str(model.dtype).removeprefix("torch.")
    n_sampled = min(PRECISION_SAMPLE, n_verified)
    return (
        f"measured in {precision}: of the first {n_sampled} effects none is more than {error:.2g} "
        "from that in float32"
    )
