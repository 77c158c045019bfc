"""Percentile bootstrap intervals of mean effects over pairs."""

from __future__ import annotations

import numpy
import torch
from jaxtyping import Float64
from torch import Tensor

from ...edges.names.vocabulary import INTERVAL, SEED

LEAST_RESAMPLES = 100


def resampled_means(
    effects: Float64[Tensor, "edge pair"], n_resamples: int, seed: int = SEED
) -> Float64[Tensor, "resample edge"]:
    """Mean effects over resamples of the pairs: as many pairs as there are, with replacement."""
    n_pairs = effects.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_pairs, (n_resamples, n_pairs), generator=generator)
    # How often each pair was drawn: all means are then one product,
    # [resample pair] @ [pair edge], and no [resample pair edge] is ever made.
    times = torch.zeros(n_resamples, n_pairs, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return times @ effects.T / n_pairs


def percentile_intervals(
    resampled: Float64[Tensor, "resample edge"], confidence: float = INTERVAL
) -> Float64[Tensor, "2 edge"]:
    """Lower and upper ends of each edge's percentile bootstrap interval."""
    tail = (1 - confidence) / 2
    # NumPy's, of resamples that lie side by side: many times as fast as torch's, which sorts.
    rows = resampled.T.contiguous().numpy()
    return torch.from_numpy(numpy.quantile(rows, [tail, 1 - tail], axis=1))
