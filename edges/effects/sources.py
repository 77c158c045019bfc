"""Where the values come from that patching puts in.

    corrupted            each pair's other run: resample ablation
    mean                 the mean over a data set, of all its tokens or position by position
    zero                 0
    noise                the run with Gaussian noise on the embedding (causal tracing, Meng et al.,
                         2022, arXiv 2202.05262), averaged over seeds

Noise is put on the tokens in which clean and corrupted prompt differ, the pair's way of saying
what matters; its scale is in standard deviations of the token embedding's entries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, name_rows
from ..model.activations import Activations
from ..model.transformer import Model
from ..names.vocabulary import NOISE_SCALE, NOISE_SEEDS, OTHER_RUN, PATCH_KINDS
from ..question.prompts import PairBatch, PromptPairs
from ..runs.memory import BatchSize
from ..runs.trace import Run, answer_logits, run


@dataclass(frozen=True, eq=False)
class Source:
    """What takes the place of a node's value.

    Args:
        kind: a name in ``PATCH_KINDS``.
        mean_over: the data set of a mean: its corrupted prompts are averaged over. None takes the
            pairs that are patched.
        noise_scale: in standard deviations of the token embedding's entries.
        noise_seeds: how many draws effects are averaged over.

    Raises:
        InputError: an unknown kind, a scale or number of seeds that is not positive.
    """

    kind: str = OTHER_RUN  # checked below, in words
    mean_over: PromptPairs | None = None
    noise_scale: float = NOISE_SCALE
    noise_seeds: int = NOISE_SEEDS

    def __post_init__(self) -> None:
        if self.kind not in PATCH_KINDS:
            raise InputError(
                f"unknown source of patched values {self.kind!r}; there are {', '.join(PATCH_KINDS)}"
            )
        if not 0 < self.noise_scale < float("inf") or self.noise_seeds < 1:
            raise InputError(
                "expected a noise scale above 0 and at least one seed, got "
                f"{self.noise_scale} and {self.noise_seeds}"
            )

    def check(self, pairs: PromptPairs, direction: str) -> None:
        """Raises InputError for pairs or a direction that this source cannot serve."""
        if self.kind in ("mean", "mean-by-position", "zero") and direction == "denoising":
            raise InputError(
                f"denoising puts clean values into a corrupted run, and {self.kind} patching has no "
                "such run; use noising, or the sources corrupted or noise"
            )
        if self.kind == "noise":
            same = (pairs.clean == pairs.corrupted).all(1).nonzero().flatten().tolist()
            if same:
                raise InputError(
                    "noise is put on the tokens in which clean and corrupted prompt differ; they "
                    "are the same " + name_rows(same, "say what matters by a corrupted prompt")
                )
        if self.kind == "mean-by-position":
            data = self.mean_over or pairs
            lengths = sorted({*pairs.lengths.tolist(), *data.lengths.tolist()})
            if len(lengths) > 1:
                raise InputError(
                    "a mean by position needs prompts of one length, the data set's and the pairs' "
                    f"alike; got lengths {', '.join(map(str, lengths))}: use --patch-with mean "
                    '(Source("mean")), or '
                    "pairs and data of one length"
                )

    def fingerprint(self) -> str:
        """Equal for sources that give equal values."""
        if self.kind == "noise":
            return f"noise {self.noise_scale} {self.noise_seeds}"
        data = self.mean_over.fingerprint() if self.mean_over else ""
        return f"{self.kind} {data}" if self.kind.startswith("mean") else self.kind

    @property
    def n_draws(self) -> int:
        """How many draws its effects are averaged over."""
        return self.noise_seeds if self.kind == "noise" else 1

    def others(
        self,
        model: Model,
        batch: PairBatch,
        keep: Collection[str],
        means: Callable[[], Activations],
    ) -> Iterator[Run | Activations]:
        """For each draw, the run (or, where it is none, the activations) values come from.

        Args:
            means: gives the ``means`` of the same names, where they are needed.
        """
        if self.kind == "corrupted":
            yield run(model, batch.corrupted, keep)
        elif self.kind == "noise":
            for seed in range(self.noise_seeds):
                yield self._noised(model, batch, keep, seed)
        else:
            yield self._constants(model, batch, keep, means)

    def _noised(self, model: Model, batch: PairBatch, keep: Collection[str], seed: int) -> Run:
        resid = model.embed(batch.clean.to(model.device))
        draws: list[Tensor] = []
        for row in batch.rows.tolist():  # so that no draw depends on how pairs are batched
            generator = torch.Generator().manual_seed(1_000_003 * seed + row)
            draws.append(torch.randn(resid.shape[1:], generator=generator))
        differs = (batch.clean != batch.corrupted)[:, :, None].to(resid.device)
        noise = torch.stack(draws).to(resid) * self.noise_scale * model.embedding_deviation()
        resid = resid + noise * differs
        kept = Activations()
        final = model.run(resid, kept.noting(keep))
        return Run(resid, kept, final, answer_logits(model, final))

    def _constants(
        self,
        model: Model,
        batch: PairBatch,
        keep: Collection[str],
        means: Callable[[], Activations],
    ) -> Activations:
        """Zeros or means in the shape of the batch's activations."""
        like = run(model, batch.clean[:1], keep).kept
        found = Activations()
        for name in keep:
            for layer, tensor in enumerate(getattr(like, name)):
                shape = (len(batch), *tensor.shape[1:])
                value = (
                    tensor.new_zeros(())
                    if self.kind == "zero"
                    else getattr(means(), name)[layer].to(tensor)
                )
                getattr(found, name).append(value.expand(shape))
        return found

    def means(self, model: Model, pairs: PromptPairs, keep: Collection[str]) -> Activations:
        """Means over the data set: of all its tokens, or at each position. ``[1 pos ...]``"""
        data = self.mean_over or pairs
        over = (0,) if self.kind == "mean-by-position" else (0, 1)
        sums: dict[tuple[str, int], Tensor] = {}
        count = 0

        def totals(batch: PairBatch) -> dict[tuple[str, int], Tensor]:
            kept = run(model, batch.corrupted, keep).kept
            return {
                (name, layer): tensor.cpu().double().sum(over, keepdim=True)
                for name in keep
                for layer, tensor in enumerate(getattr(kept, name))
            }

        for bucket in data.batches():
            n_pos = bucket.clean.shape[1]
            numbers = model.graph.n_layers * n_pos * (20 * model.d_model + 4 * model.d_mlp)
            size = BatchSize.fitting(4 * numbers, model.device)
            for part, found in size.map(bucket, totals):
                sums = {key: sums.get(key, 0) + total for key, total in found.items()}
                count += len(part) * (1 if self.kind == "mean-by-position" else n_pos)
        means = Activations()
        for (name, _), total in sums.items():  # layers of a name come in order
            getattr(means, name).append((total / count).float())
        return means
