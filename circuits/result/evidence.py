"""What was measured of a circuit beside its faithfulness: data of a file, typed. No torch.

Every part may be missing, and in it every figure that has a default. What a newer file, or somebody
else's, holds beside that is kept in ``rest`` and written back.

Today's keys are the names of the fields. Three shapes are read as well, the first two being those
of ``wiremap evaluate``'s document: stability under ``mean_pairwise_jaccard`` and ``n_resamples``;
tests as an object, what stands in it beside the list being said of each; a curve whose points are
not parted by ranking, which is that by score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from ...edges.errors import InputError
from .values import finite, object_of

_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the evidence.

    Attributes:
        rest: what the file says beside, as plain JSON data.
    """

    rest: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_document(self) -> dict[str, Any]:
        """The part as plain JSON data: what is known, in the order of the fields, and the rest."""
        known = {
            each.name: _plain(value)
            for each in fields(self)
            if each.name != "rest" and (value := getattr(self, each.name)) is not None
        }
        return {**known, **self.rest}


@dataclass(frozen=True, kw_only=True)
class SizePoint(Part):
    """The faithfulness of the best edges of a ranking, at one size.

    Attributes:
        fraction: of the model's edges, above 0 and at most 1.
        asked, kept: edges taken, and those of them on a path from ``input`` to ``logits``.
    """

    fraction: float
    asked: int | None = None
    kept: int | None = None
    faithfulness: float


@dataclass(frozen=True, kw_only=True)
class RankingCurve(Part):
    """Faithfulness by size, for one ranking of edges; see ``circuits.evidence.faithfulness.Curve``.

    Attributes:
        full, empty: the metric of the model and of the corrupted run, means over pairs.
        points: at growing fractions.

    Raises:
        InputError: fractions that do not grow, or lie outside of (0, 1].
    """

    full: float | None = None
    empty: float | None = None
    n_pairs: int | None = None
    edges_in_model: int | None = None
    area_under_the_faithfulness_curve: float | None = None
    area_between_the_faithfulness_curve_and_1: float | None = None
    average_faithfulness: float | None = None
    points: tuple[SizePoint, ...]

    def __post_init__(self) -> None:
        before = 0.0
        for index, point in enumerate(self.points):
            if not before < point.fraction <= 1:
                raise InputError(
                    f"points[{index}].fraction: expected growing fractions, above 0 and at most 1, "
                    f"got {point.fraction} after {before}"
                )
            before = point.fraction


@dataclass(frozen=True, kw_only=True)
class CurveEvidence(Part):
    """Faithfulness of the best edges alone, by size.

    Attributes:
        ranked_by: what the edges are ranked by, in words.
        cpr, cmd: MIB's figures: area under the signed curve, area between the absolute one and 1.
        signed, absolute: the curves of edges ranked by score, and by |score|.
    """

    ranked_by: str | None = None
    cpr: float | None = None
    cmd: float | None = None
    signed: RankingCurve | None = None
    absolute: RankingCurve | None = None


@dataclass(frozen=True, kw_only=True)
class MetricMeans(Part):
    """A metric of the model, of the corrupted run and of the circuit alone, means over pairs."""

    full: float
    empty: float
    circuit: float


@dataclass(frozen=True, kw_only=True)
class KnockoutEvidence(Part):
    """The metrics of the circuit and of the model without the edges ``removed``, and how far apart."""

    removed: tuple[str, ...] | None = None
    circuit: float | None = None
    model: float | None = None
    incompleteness: float | None = None


@dataclass(frozen=True, kw_only=True)
class CompletenessEvidence(Part):
    """How far circuit and model are apart when the same of the circuit's edges are taken from both.

    Attributes:
        largest, mean: of |F(circuit without K) - F(model without K)|, in units of the metric.
        largest_without: the K of the largest.
    """

    seed: int | None = None
    full: float | None = None
    empty: float | None = None
    n_pairs: int | None = None
    largest: float | None = None
    largest_without: tuple[str, ...] | None = None
    mean: float | None = None
    knockouts: tuple[KnockoutEvidence, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class NeedEvidence(Part):
    """How much an edge is needed; see ``circuits.evidence.knockouts.EdgeNeed``."""

    edge: str | None = None
    alone: float | None = None
    score: float | None = None
    removed: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MinimalityEvidence(Part):
    """What each edge adds to the others, in units of the metric: the least, and whose it is."""

    seed: int | None = None
    full: float | None = None
    empty: float | None = None
    n_pairs: int | None = None
    least: float | None = None
    least_needed: str | None = None
    edges: tuple[NeedEvidence, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimTest(Part):
    """The outcome of a test; see ``circuits.evidence.claims.HypothesisTest``."""

    seed: int | None = None
    name: str
    statistic: float | None = None
    p_value: float
    n: int | None = None
    null: str | None = None
    small_p: str | None = None
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class BoundEvidence(Part):
    """A bound on the effects of edges that were not verified.

    Attributes:
        largest: no |average marginal effect| is above it, in units of the metric.
        samples, probability: random subsets of the edges, and how likely an edge is in one.
        n_edges: that were not verified.
        statement: all of this in words.
    """

    largest: float | None = None
    confidence: float | None = None
    samples: int | None = None
    probability: float | None = None
    n_edges: int | None = None
    n_pairs: int | None = None
    statement: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShareEvidence(Part):
    """How many of the edges that were not verified are above a threshold.

    Attributes:
        above: the threshold of |effect|, in units of the metric.
        found: so many of those drawn are.
        share: at most this share of all that were not verified is.
    """

    above: float
    found: int | None = None
    share: float


@dataclass(frozen=True, kw_only=True)
class StratumEvidence(Part):
    """A part of the ranking: edges in it that were not verified, and how many of them were drawn."""

    n_edges: int
    drawn: int


@dataclass(frozen=True, kw_only=True)
class SampleEvidence(Part):
    """What a random sample says of the edges that were not verified.

    Attributes:
        n_edges: that were not verified, but for those ``drawn``.
        confidence: that all the shares hold, over the draw.
        largest, largest_edge: the effect of the largest magnitude in the sample, and whose it is.
        strata: best scores first.
        statement: all of this in words.
    """

    n_edges: int | None = None
    drawn: int | None = None
    n_pairs: int | None = None
    confidence: float | None = None
    seed: int | None = None
    largest: float | None = None
    largest_edge: str | None = None
    shares: tuple[ShareEvidence, ...] | None = None
    strata: tuple[StratumEvidence, ...] | None = None
    statement: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResampledEdge(Part):
    """An edge over resamples; see ``circuits.evidence.stability.EdgeStability``."""

    edge: str | None = None
    effect: float | None = None
    interval: tuple[float, ...] | None = None
    frequency: float | None = None


@dataclass(frozen=True, kw_only=True)
class StabilityEvidence(Part):
    """How alike the circuits of resampled pairs are.

    Attributes:
        rule: by which each was chosen, in words.
        jaccard: mean over all two of them of edges in both / edges in either.
    """

    rule: str | None = None
    resamples: int | None = None
    jaccard: float | None = None
    n_pairs: int | None = None
    confidence: float | None = None
    seed: int | None = None
    edges: tuple[ResampledEdge, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RandomEvidence(Part):
    """The faithfulness of random circuits of as many edges."""

    random_faithfulness: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOutEvidence(Part):
    """What a circuit is worth on pairs that the search never saw; see ``held_out_evidence``.

    Attributes:
        metric: what the target was about; ``full``, ``empty`` and ``circuit`` are its means.
        interval: of the faithfulness over pairs, with ``confidence``; ``kl_interval`` of the next.
        kl_share: 1 - KL(model || circuit) / KL(model || no edge).
        accuracy: share of pairs whose most likely token is an answer; ``model_accuracy`` beside.
    """

    n_pairs: int
    metric: str
    full: float
    empty: float
    circuit: float
    faithfulness: float
    interval: tuple[float, ...] | None = None
    confidence: float | None = None
    kl_share: float | None = None
    kl_interval: tuple[float, ...] | None = None
    accuracy: float | None = None
    model_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class SearchPoint(Part):
    """A circuit on the way of a search.

    Attributes:
        how: ``pruned`` or ``spared``.
        faithfulness: as the search judges it.
    """

    how: str | None = None
    edges: int
    faithfulness: float


@dataclass(frozen=True, kw_only=True)
class SearchEvidence(Part):
    """How a search went; see ``circuits.choice.search``.

    Attributes:
        least, greatest: the target: between which faithfulnesses.
        reached: whether the circuit's is, on the pairs that the search judges by.
        minimal: whether each edge left was tried alone, in vain.
        rounds, trials: circuits pruned, and groups of edges that it tried to do without.
    """

    metric: str | None = None
    least: float | None = None
    greatest: float | None = None
    reached: bool
    minimal: bool | None = None
    rounds: int | None = None
    trials: int | None = None
    path: tuple[SearchPoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence(Part):
    """All that was measured of a circuit beside its faithfulness; None for what was not.

    Attributes:
        held_out: what it is worth on pairs that the search never saw.
        metrics: other metrics, by name.
        not_done: why a part is missing that was asked for, by its name.
        removed: how many edges were left out, by rule.
    """

    held_out: HeldOutEvidence | None = None
    search: SearchEvidence | None = None
    curve: CurveEvidence | None = None
    metrics: Mapping[str, MetricMeans] | None = None
    completeness: CompletenessEvidence | None = None
    minimality: MinimalityEvidence | None = None
    tests: tuple[ClaimTest, ...] | None = None
    not_done: Mapping[str, str] | None = None
    bound: BoundEvidence | None = None
    sample: SampleEvidence | None = None
    stability: StabilityEvidence | None = None
    removed: Mapping[str, int] | None = None
    random: RandomEvidence | None = None

    @classmethod
    def from_document(cls, found: Any) -> Evidence:
        """The evidence of plain JSON data, in any shape that wiremap ever wrote.

        Raises:
            InputError: a field that is not what it should be; it is named.
        """
        return _part(cls, _in_todays_keys(object_of(found, "evidence")), "evidence")


_P = TypeVar("_P", bound=Part)


_RENAMED = {"mean_pairwise_jaccard": "jaccard", "n_resamples": "resamples"}


def _in_todays_keys(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same data, other shapes (see the module) being brought into today's."""
    todays = dict(found)
    stability, curve, tests = (_object(found.get(name)) for name in ("stability", "curve", "tests"))
    for key in _RENAMED.keys() & stability.keys():
        if _RENAMED[key] not in stability:
            stability[_RENAMED[key]] = stability.pop(key)
            todays["stability"] = stability
    if "points" in curve and "signed" not in curve:
        # Points alone are of the ranking by score; what is no part of a curve stays outside.
        own = {key: value for key, value in curve.items() if key in _kinds(RankingCurve)}
        others = {key: value for key, value in curve.items() if key not in own}
        todays["curve"] = {**others, "signed": own}
    if isinstance(tests.get("tests"), (list, tuple)):
        # What stands beside the list, such as the seed, is said of each test.
        of_all = {key: value for key, value in tests.items() if key != "tests"}
        todays["tests"] = [
            {**of_all, **test} if isinstance(test, dict) else test for test in tests["tests"]
        ]
    return todays


def _object(value: Any) -> dict[str, Any]:
    return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}


def _part(kind: type[_P], found: Mapping[str, Any], where: str) -> _P:
    """A part from plain data, by the types that its class declares; null is what is missing."""
    kinds = _kinds(kind)
    known = {
        name: _value(expected, found[name], f"{where}.{name}")
        for name, expected in kinds.items()
        if found.get(name) is not None
    }
    for each in fields(kind):
        # No default of either kind; there is no other mark of it in a dataclass.
        required = each.default is MISSING and each.default_factory is MISSING
        if required and each.name not in known:
            raise InputError(f"{where}.{each.name}: expected, but missing")
    rest = {name: value for name, value in found.items() if name not in kinds}
    try:
        return kind(**known, rest=rest)
    except InputError as error:
        # A part that refuses its own figures knows their names, not where it stands.
        raise InputError(f"{where}.{error}") from None


@cache
def _kinds(kind: type[Part]) -> dict[str, Any]:
    """The type of each field of a part, without ``| None``; all but the rest."""
    # The annotations are strings, by the import from __future__; this makes them types again.
    hints = get_type_hints(kind)
    del hints["rest"]
    return {
        # `X | None` has the arguments X and None, in this order; any other type stays.
        name: next((each for each in get_args(hint) if NoneType in get_args(hint)), hint)
        for name, hint in hints.items()
    }


def _value(kind: Any, value: Any, where: str) -> Any:
    """A value of such a type from plain data."""
    if kind is Any:
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):  # tuples in data that no file held yet
            raise InputError(f"{where}: expected a list, got {value!r:.60}")
        item = get_args(kind)[0]
        items = enumerate(cast("Sequence[Any]", value))
        return tuple(_value(item, each, f"{where}[{index}]") for index, each in items)
    if get_origin(kind) is Mapping:
        item = get_args(kind)[1]
        entries = object_of(value, where).items()
        return {name: _value(item, each, f"{where}.{name!s:.60}") for name, each in entries}
    if issubclass(kind, Part):
        return _part(kind, object_of(value, where), where)
    if kind is float:
        return finite(value, where)
    # To Python a bool is an int.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: expected {kind.__name__}, got {value!r:.60}")
    if kind is int and abs(value) > _LARGEST_INTEGER:
        raise InputError(f"{where}: expected a number below 2**63, got {value!r:.60}")
    return value


def _plain(value: Any) -> Any:
    """A field of a part as plain JSON data."""
    if isinstance(value, Part):
        return value.as_document()
    if isinstance(value, tuple):
        return [_plain(each) for each in cast("tuple[Any, ...]", value)]
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value).items()
        return {name: _plain(each) for name, each in entries}
    return value
