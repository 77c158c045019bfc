"""What takes the place of a value that is patched.

    corrupted            each pair's other run: resample ablation
    mean                 the mean over a data set, of all its tokens or position by position
    zero                 0
    noise                the run with Gaussian noise on the embedding (causal tracing, Meng et al.,
                         2022, arXiv 2202.05262), averaged over seeds

Noise is put on the tokens in which clean and corrupted prompt differ, the pair's way of saying
what matters; its scale is in standard deviations of the token embedding's entries. How values are
made of models is in ``effects.sources``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError, name_rows
from ..names.vocabulary import NOISE_SCALE, NOISE_SEEDS, OTHER_RUN
from .prompts import PromptPairs


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What there is to know of a kind of source before any model is run.

    Attributes:
        is_run: its values are those of a whole run, which can be edited: denoising needs one.
        averages: its values are means over a data set.
        by_position: at each position by itself, which therefore must be there in every prompt.
        draws: it is drawn at random, once for each seed.
    """

    is_run: bool = False
    averages: bool = False
    by_position: bool = False
    draws: bool = False


NATURES: Mapping[str, Nature] = {
    "corrupted": Nature(is_run=True),
    "mean": Nature(averages=True),
    "mean-by-position": Nature(averages=True, by_position=True),
    "zero": Nature(),
    "noise": Nature(is_run=True, draws=True),
}
"""Every kind of source; ``effects.sources.VALUES`` says how the values of each are made."""


KINDS = tuple(NATURES)


@dataclass(frozen=True, eq=False)
class Source:
    """What takes the place of a node's value.

    Args:
        kind: a name in ``KINDS``.
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
        if self.kind not in NATURES:
            raise InputError(
                f"unknown source of patched values {self.kind!r}; there are {', '.join(KINDS)}"
            )
        # Put as what it must be, so that NaN is refused, too.
        if not 0 < self.noise_scale < float("inf") or self.noise_seeds < 1:
            raise InputError(
                "expected a noise scale above 0 and at least one seed, got "
                f"{self.noise_scale} and {self.noise_seeds}"
            )

    @property
    def nature(self) -> Nature:
        """What there is to know of its kind."""
        return NATURES[self.kind]

    @property
    def n_draws(self) -> int:
        """How many draws its effects are averaged over."""
        return self.noise_seeds if self.nature.draws else 1

    def data(self, pairs: PromptPairs) -> PromptPairs:
        """What a mean is taken over when ``pairs`` are patched."""
        return self.mean_over or pairs

    def check(self, pairs: PromptPairs, direction: str) -> None:
        """Raises InputError for pairs or a direction that this source cannot serve."""
        if direction == "denoising" and not self.nature.is_run:
            raise InputError(
                f"denoising puts clean values into a corrupted run, and {self.kind} patching has no "
                "such run; use noising, or the sources corrupted or noise"
            )
        if self.nature.draws:
            same = (pairs.clean == pairs.corrupted).all(1).nonzero().flatten().tolist()
            if same:
                raise InputError(
                    "noise is put on the tokens in which clean and corrupted prompt differ; they "
                    "are the same " + name_rows(same, "say what matters by a corrupted prompt")
                )
        if self.nature.by_position:
            lengths = sorted({*pairs.lengths.tolist(), *self.data(pairs).lengths.tolist()})
            if len(lengths) > 1:
                raise InputError(
                    "a mean by position needs prompts of one length, the data set's and the pairs' "
                    f"alike; got lengths {', '.join(map(str, lengths))}: use --patch-with mean, or "
                    "pairs and data of one length"
                )

    def fingerprint(self) -> str:
        """Equal for sources that give equal values."""
        if self.nature.draws:
            return f"{self.kind} {self.noise_scale} {self.noise_seeds}"
        if not self.nature.averages:
            return self.kind
        return f"{self.kind} {self.mean_over.fingerprint() if self.mean_over else ''}"


CORRUPTED = Source()
"""Each pair's other run."""
