"""Models whose circuits are known because every weight was chosen: two heads behind a gate.

The prompt is ``a b end``, each of a and b on or off. At ``end``, head a0.h0 copies whether a is on,
head a0.h1 whether b is, and the MLP writes ``min(1, a + b)`` (or) or ``max(0, a + b - 1)`` (and),
which the logits read. Both are on in the clean prompt, off in the corrupted one, so that under *or*
each branch is enough, and under *and* both are needed. Norms do nothing, as in ``induction_by_hand``.
"""

from __future__ import annotations

import tiny
import torch
import transformers
from torch import Tensor

from wiremap.edges import Model, PromptPairs

OFF, ON, END, YES, NO = range(5)
BIT, A, B, OUT = range(4)
WHERE = range(4, 7)
SIZE = 7
SHARP = 200.0  # so that attention is all or nothing
LOGIT = 5.0

BRANCHES = (
    ("input->a0.h0<v>", "a0.h0->m0"),
    ("input->a0.h1<v>", "a0.h1->m0"),
)
GATE = "m0->logits"
CIRCUIT = (*BRANCHES[0], *BRANCHES[1], GATE)
"""Where positions are all that is read (queries and keys), both prompts agree."""

# The gate: what is added to a + b in each neuron, and with what sign the neuron is written.
GATES = {"or": ((0.0, 1.0), (-1.0, -1.0)), "and": ((-1.0, 1.0),)}


def at(column: int, factor: float = 1.0) -> Tensor:
    """``[SIZE]``, all 0 but one."""
    return factor * torch.eye(SIZE)[column]


def model(gate: str) -> Model:
    config = transformers.GPT2Config(
        vocab_size=5, n_positions=3, n_embd=2 * SIZE, n_layer=1, n_head=2, n_inner=2,
        activation_function="relu", layer_norm_epsilon=1e12, tie_word_embeddings=False,
    )  # fmt: skip
    hf = transformers.GPT2LMHeadModel(config).eval()
    weights = {name: weight.detach() for name, weight in hf.named_parameters()}
    for name, weight in weights.items():
        weight.fill_(1e6 if "ln_" in name and name.endswith("weight") else 0.0)

    def doubled(vector: Tensor) -> Tensor:
        return torch.cat([vector, -vector])

    weights["transformer.wte.weight"][ON] = doubled(at(BIT))
    for position, column in enumerate(WHERE):
        weights["transformer.wpe.weight"][position] = doubled(at(column))
    block = "transformer.h.0"
    for head, copied_to in enumerate((A, B)):
        # The first entry of the head is all it uses; it looks from the last position to its own.
        first = head * SIZE
        c_attn = weights[f"{block}.attn.c_attn.weight"][:SIZE]
        c_attn[:, first] = at(WHERE[2], SHARP)
        c_attn[:, 2 * SIZE + first] = at(WHERE[head])
        c_attn[:, 4 * SIZE + first] = at(BIT)
        weights[f"{block}.attn.c_proj.weight"][first] = doubled(at(copied_to))
    for neuron, (bias, sign) in enumerate(GATES[gate]):
        weights[f"{block}.mlp.c_fc.weight"][:SIZE, neuron] = at(A) + at(B)
        weights[f"{block}.mlp.c_fc.bias"][neuron] = bias
        weights[f"{block}.mlp.c_proj.weight"][neuron] = doubled(at(OUT, sign))
    weights["lm_head.weight"][YES, :SIZE] = at(OUT, LOGIT)
    return Model(tiny.bridge(hf), name=f"{gate} by hand")


def pairs() -> PromptPairs:
    """Both on, both off; twice, so that there is a standard error."""
    clean, corrupted = torch.tensor([[ON, ON, END]] * 2), torch.tensor([[OFF, OFF, END]] * 2)
    return PromptPairs(clean, corrupted, torch.tensor([YES, YES]), torch.tensor([NO, NO]))
