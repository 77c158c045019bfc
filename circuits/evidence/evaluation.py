"""All that can be told of a circuit by running it, as one document: ``wiremap evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...edges.effects.edge_effects import patch_edges
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import METRIC, SEED
from ...edges.question.prompts import PromptPairs
from ...edges.runs.sweep import Report, silent
from ..record.effects_file import EFFECTS_FILE, read_effects
from ..record.scores_file import SCORES_FILE, read_scores
from ..result.circuit import Circuit, Faithfulness
from ..result.document import faithfulness_document
from .claims import run_tests
from .faithfulness import BESIDE, check_gap, localize, read_metrics
from .gather import resample
from .knockouts import completeness, minimality

SIGNS_CHECKED = 10
"""How many edges, of the largest scores, are measured to see whether their signs are right."""


SECTIONS = ("curve", "completeness", "minimality", "stability", "tests")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a circuit is to be evaluated on. Each section is plain JSON data.

    Attributes:
        run: the run directory it was found in, whose scores are ranked and whose effects resampled.
        seed: of all draws.
        report: called with (stage, steps finished since the last call, steps in all).
    """

    circuit: Circuit
    model: Model
    pairs: PromptPairs
    metric: str = METRIC
    run: Path | None = None
    seed: int = SEED
    batch_size: int | None = None
    report: Report = silent

    def document(
        self, sections: Sequence[str] = (), required: Collection[str] = SECTIONS
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """What the circuit carries, and each of the sections; and why some could not be made.

        Args:
            sections: names in ``SECTIONS``.
            required: those without which there is no document.

        Raises:
            InputError: a required section cannot be made, or the circuit cannot be run.
        """
        document, missing = self.carried(), dict[str, str]()
        for name in sections:
            try:
                # Each section is the method of its name.
                document[name] = getattr(self, name)()
            except InputError as error:
                if name in required:
                    raise
                missing[name] = str(error)
        return document, missing

    def carried(self) -> dict[str, Any]:
        """Faithfulness, and other metrics beside the circuit's own."""
        # The circuit's own metric first, and once only if it is among those beside.
        metrics = (self.metric, *(name for name in BESIDE if name != self.metric))
        own, *beside = read_metrics(
            self.model,
            self.pairs,
            self._edges,
            metrics=metrics,
            batch_size=self.batch_size,
            progress=self._progress("evaluate the circuit"),
        )
        # Before the ratio, which would divide by 0.
        check_gap(own.full, own.empty)
        result = Faithfulness(own.full, own.empty, own.circuit, len(self.pairs))
        return {
            "metric": self.metric,
            "edges": len(self._edges),
            "edges_in_model": self.circuit.shape.n_edges,
            **faithfulness_document(result),
            "standard_errors": own.standard_errors and list(own.standard_errors),
            "beside": [asdict(reading) for reading in beside],
        }

    def curve(self) -> dict[str, Any]:
        """Faithfulness by size, of the run's scores, or else of the circuit's own edges."""
        ranked_by = "the circuit's edges, by verified effect, or score where there is none"
        # Without the run's scores, the circuit's own edges are all there is to rank.
        scores = [(edge.name, edge.worth or 0.0) for edge in self.circuit.edges]
        if self.run is not None and (self.run / SCORES_FILE).is_file():
            _, table, _ = read_scores(self.run / SCORES_FILE)
            if table is not None:
                if table.graph != self.circuit.shape:
                    raise InputError(
                        f"{self.run / SCORES_FILE}: expected scores of the circuit's model"
                    )
                ranked_by, scores = "scores of all edges", table.top()
        if ranked_by.startswith("the circuit's") and self.circuit.unscored:
            raise InputError(
                "expected scores to rank edges by, and the circuit's edges have none; score all edges "
                "(wiremap score edges), or name the run directory"
            )
        return {"ranked_by": ranked_by, **self.curve_of(scores)}

    def curve_of(self, scores: Sequence[tuple[str, float]]) -> dict[str, Any]:
        """Faithfulness by size of these scores of edges, CPR and CMD; see ``localize``."""
        result = localize(
            self.model,
            self.pairs,
            scores,
            metric=self.metric,
            batch_size=self.batch_size,
            progress=self._progress("curve"),
        )
        return result.as_document()

    def signs(self) -> dict[str, Any]:
        """Whether the signs of the largest scores are those of the edges' measured effects.

        ``agree`` is False if, of these effects, those of the other sign sum to more than half.
        """
        scored = [edge for edge in self.circuit.edges if edge.score]
        largest = sorted(scored, key=lambda edge: -abs(edge.score or 0.0))[:SIGNS_CHECKED]
        effects = patch_edges(
            self.model,
            self.pairs,
            [edge.name for edge in largest],
            metric=self.metric,
            batch_size=self.batch_size,
            progress=self._progress("signs"),
        ).effects
        measured = [
            (edge.name, edge.score or 0.0, float(effect))
            for edge, effect in zip(largest, effects.double().mean(1).tolist(), strict=True)
        ]
        opposite = [row for row in measured if row[1] * row[2] < 0]
        against, whole = (sum(abs(row[2]) for row in part) for part in (opposite, measured))
        rows = [{"edge": row[0], "score": row[1], "effect": row[2]} for row in measured]
        return {"edges": rows, "opposite": len(opposite), "agree": not 2 * against > whole}

    def completeness(self) -> dict[str, Any]:
        """See ``completeness``."""
        return {"seed": self.seed, **self._drawn(completeness, "completeness").as_document()}

    def minimality(self) -> dict[str, Any]:
        """See ``minimality``."""
        return {"seed": self.seed, **self._drawn(minimality, "minimality").as_document()}

    def tests(self) -> dict[str, Any]:
        """See ``run_tests``."""
        tests = self._drawn(run_tests, "tests")
        return {"seed": self.seed, "tests": [test.as_document() for test in tests]}

    def stability(self) -> dict[str, Any]:
        """Of the effects that the run measured, on its own pairs; see ``bootstrap``."""
        if self.run is None or not (self.run / EFFECTS_FILE).is_file():
            raise InputError(
                f"expected a run directory with verified effects ({EFFECTS_FILE}) to resample; name "
                "the directory in place of the circuit's file"
            )
        if not self.circuit.edges:
            raise InputError("expected a circuit with edges, whose choice may be stable, got none")
        verified = read_effects(self.run / EFFECTS_FILE)
        threshold = self.circuit.method.get("threshold")
        resampled = resample(verified, self._edges, threshold, seed=self.seed)
        if resampled is None:
            raise InputError(
                "expected verified edges in the circuit and at least 2 pairs to resample; verify "
                "more"
            )
        result, described = resampled
        return {"rule": described, **result.as_document()}

    @property
    def _edges(self) -> list[str]:
        return [edge.name for edge in self.circuit.edges]

    def _drawn(self, measure: Callable[..., Any], stage: str) -> Any:
        """A measurement that draws subsets of the circuit's edges, or of others."""
        return measure(
            self.model,
            self.pairs,
            self._edges,
            metric=self.metric,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=self._progress(stage),
        )

    def _progress(self, stage: str) -> Report:
        # Measurements name their stages themselves; one section is one stage here.
        return lambda _, done, total: self.report(stage, done, total)
