"""A model whose circuit is known because every weight was chosen: induction in two layers.

The residual stream has four rooms: which token stands here, at which position, which token stood
before, and what comes next. Head a0.h0 looks one position back and copies that token into the third
room. Head a1.h0 looks where the token before was the one here, and copies what stands there into the
fourth, which the logits read. All else is zero. Norms do nothing: their divisor is constant, and
each vector is followed by its negative, so that its mean is zero.
"""

from __future__ import annotations

import random

import tiny
import torch
import transformers
from torch import Tensor

from wiremap.edges import Model, PromptPairs

TOKENS, POSITIONS = 10, 8
SIZE = 3 * TOKENS + POSITIONS
HERE, WHERE, BEFORE, NEXT = (
    range(start, start + n)
    for start, n in ((0, TOKENS), (10, POSITIONS), (18, TOKENS), (28, TOKENS))
)
SHARP = 200.0  # so that attention is all or nothing

CIRCUIT = (
    "input->a0.h0<v>",
    "input->a1.h0<q>",
    "a0.h0->a1.h0<k>",
    "input->a1.h0<v>",
    "a1.h0->logits",
)
"""Where positions are all that is read (a0.h0<q> and <k>), prompts of one length agree."""


def rows(entries: dict[int, int], height: int, factor: float = 1.0) -> Tensor:
    """``[height, SIZE]``, ``factor`` where a row has its entry."""
    matrix = torch.zeros(height, SIZE)
    for row, column in entries.items():
        matrix[row, column] = factor
    return matrix


def model() -> Model:
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=POSITIONS, n_embd=2 * SIZE, n_layer=2, n_head=2,
        layer_norm_epsilon=1e12, tie_word_embeddings=False,
    )  # fmt: skip
    hf = transformers.GPT2LMHeadModel(config).eval()
    weights = {name: weight.detach() for name, weight in hf.named_parameters()}
    for name, weight in weights.items():
        weight.fill_(1e6 if "ln_" in name and name.endswith("weight") else 0.0)

    def doubled(matrix: Tensor) -> Tensor:
        return torch.cat([matrix, -matrix], 1)

    weights["transformer.wte.weight"][:] = doubled(rows(dict(enumerate(HERE)), TOKENS))
    weights["transformer.wpe.weight"][:] = doubled(rows(dict(enumerate(WHERE)), POSITIONS))
    weights["lm_head.weight"][:, :SIZE] = rows(dict(enumerate(NEXT)), TOKENS, 5.0)

    def head(layer: int, q: Tensor, k: Tensor, v: Tensor, output: Tensor) -> None:
        """Of head 0: what is read is ``[d_head, SIZE]``, what is written ``[d_head, SIZE]``."""
        c_attn = weights[f"transformer.h.{layer}.attn.c_attn.weight"]
        for slot, matrix in enumerate((q, k, v)):
            start = slot * 2 * SIZE
            c_attn[:SIZE, start : start + SIZE] = matrix.T
        weights[f"transformer.h.{layer}.attn.c_proj.weight"][:SIZE] = doubled(output)

    one_back = {place: WHERE[place + 1] for place in range(POSITIONS - 1)}
    copied = dict(enumerate(HERE))
    head(
        0,
        rows(one_back, SIZE, SHARP),
        rows(dict(enumerate(WHERE)), SIZE),
        rows(copied, SIZE),
        rows(dict(enumerate(BEFORE)), SIZE),
    )
    head(
        1,
        rows(copied, SIZE, SHARP),
        rows(dict(enumerate(BEFORE)), SIZE),
        rows(copied, SIZE),
        rows(dict(enumerate(NEXT)), SIZE),
    )
    return Model(tiny.bridge(hf), name="induction by hand")


def pairs(n_pairs: int = 24, seed: int = 0) -> PromptPairs:
    """``x A B y z A``, to be followed by B; corrupted, other words are repeated. A column ``kind``."""
    rng = random.Random(seed)
    clean, corrupted, answers, wrong = [], [], [], []
    for _ in range(n_pairs):
        for prompts in (clean, corrupted):
            x, a, b, y, z = rng.sample(range(TOKENS), 5)
            prompts.append([x, a, b, y, z, a])
        answers.append(clean[-1][2])
        wrong.append(clean[-1][3])
    features = tuple({"kind": "high" if row[1] >= 5 else "low"} for row in clean)
    return PromptPairs(*map(torch.tensor, (clean, corrupted, answers, wrong)), features=features)
