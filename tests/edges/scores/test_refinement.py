"""Parts of MLPs: they sum to the whole, and each is right against the slow model by itself."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from slow import Experts, SlowModel, Writes, normed, total
from slow_scores import Pass as SlowPass
from slow_scores import SlowScores, logit_diff
from torch import Tensor

from wiremap.edges import InputError, Model, PromptPairs, score_edges
from wiremap.edges.runs.trace import BothRuns
from wiremap.edges.scores.refinement import SplitScores, score_split
from wiremap.edges.scores.rules.integrated import Integrated
from wiremap.edges.scores.rules.rule import Pass

Options = dict[str, Any]

N_POS = 6
NEURONS = ("gpt2", "llama-gqa", "neox", "gemma2", "granite")
EXPERTS = ("mixtral", "qwen2-moe")
GRADIENTS: tuple[Options, ...] = (
    {"gradient": "clean"},
    {"gradient": "integrated", "steps": 2},
    {"gradient": "gim"},
    {"gradient": "relevance"},
)
CASES = [
    pytest.param(kind, options, id=f"{kind} {options['gradient']}")
    for kind in (*NEURONS, *EXPERTS)
    for options in GRADIENTS
    if not (kind in EXPERTS and options["gradient"] == "relevance")
]


@functools.cache
def twins(kind: str) -> tuple[Model, SlowModel]:
    hf = tiny.hf_model(kind)
    slow = SlowModel(hf)
    return Model(tiny.bridge(hf), name=f"tiny {kind}"), slow


def what(kind: str, layer: int) -> str:
    return f"m{layer}:{'experts' if kind in EXPERTS else 'neurons'}"


def assert_close(found: Tensor, expected: Tensor, smallest: float = 1e-3) -> None:
    """Equal to 1e-4 of the largest, which must be one to speak of."""
    scale = float(expected.abs().max())
    assert scale > smallest
    assert float((found.double() - expected).abs().max()) <= 1e-4 * scale


def assert_same(one: SplitScores, other: SplitScores) -> None:
    assert one.parts == other.parts
    for a, b in ((one.outgoing, other.outgoing), (one.incoming, other.incoming)):
        scale = float(b.nan_to_num().abs().max())
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)


# ---- parts and the whole


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_all_parts_sum_to_the_mlp(kind: str, options: Options, some_pairs: PromptPairs) -> None:
    model, _ = twins(kind)
    edges = score_edges(model, some_pairs, **options).scores
    for layer in range(model.graph.n_layers):
        parts = score_split(model, some_pairs, what(kind, layer), **options)
        assert (parts.node, parts.gradient) == (f"m{layer}", options["gradient"])
        assert not parts.outgoing.requires_grad
        assert not parts.incoming.requires_grad
        writer, reader = model.graph.mlp_writer(layer), model.graph.mlp_reader(layer)
        n_read = model.graph.readers[reader].n_writers
        # The router is the one part that does not write.
        writing = parts.outgoing[: -1 if kind in EXPERTS else None]
        assert_close(writing[:, reader + 1 :].sum(0), edges[writer, reader + 1 :])
        assert_close(parts.incoming[:n_read].sum(1), edges[:n_read, reader])
        assert bool(parts.outgoing[:, : reader + 1].isnan().all())
        assert bool(parts.incoming[n_read:].isnan().all())
        if kind in EXPERTS:
            assert parts.parts[-1] == f"m{layer}.router"
            assert bool(parts.outgoing[-1].isnan().all())
        assert not bool(writing[:, reader + 1 :].isnan().any())
        assert not bool(parts.incoming[:n_read].isnan().any())


def test_parts_have_names_in_order(some_pairs: PromptPairs) -> None:
    names = {
        kind: score_split(twins(kind)[0], some_pairs, what(kind, 0)).parts
        for kind in ("llama-gqa", *EXPERTS)
    }
    assert names["llama-gqa"] == tuple(f"m0.n{neuron}" for neuron in range(48))
    experts = tuple(f"m0.e{expert}" for expert in range(4))
    assert names["mixtral"] == (*experts, "m0.router")
    assert names["qwen2-moe"] == (*experts, "m0.shared", "m0.router")


def test_readers_per_query_have_parts_too(some_pairs: PromptPairs) -> None:
    model = Model(tiny.bridge(tiny.hf_model("llama-gqa")), name="per query", kv="per-query")
    parts = score_split(model, some_pairs, "m0:neurons")
    edges = score_edges(model, some_pairs).scores
    after = model.graph.mlp_reader(0) + 1
    assert_close(parts.outgoing[:, after:].sum(0), edges[model.graph.mlp_writer(0), after:])


def test_layers_of_a_mixture_may_be_plain(some_pairs: PromptPairs) -> None:
    """TransformerLens shows no neurons of such layers."""
    model = tiny.model("qwen2-moe", mlp_only_layers=[0])
    edges = score_edges(model, some_pairs).scores
    parts = score_split(model, some_pairs, "m1:experts")
    assert parts.gradient == "integrated"
    assert_close(parts.incoming.nansum(1), edges[:, model.graph.mlp_reader(1)].nan_to_num())
    for split in ("m0:neurons", "m0:experts"):
        with pytest.raises(InputError, match="m0 of model tiny qwen2-moe has no experts, and Tr"):
            score_split(model, some_pairs, split)


# ---- each part alone, against the slow model


@dataclass(frozen=True)
class SlowParts:
    """Scores of single parts of an MLP, in float64 and by autograd through the whole slow model."""

    slow: SlowModel
    pairs: PromptPairs
    layer: int
    scores: SlowScores

    def outgoing(self, part: str) -> Tensor:
        """Of each reader behind it: (clean - corrupted write of the part) . gradient by its input."""
        n_runs = len(self.scores.passes) * len(self.pairs)
        change = self._write("clean", part) - self._write("corrupted", part)
        found = torch.zeros(len(self.slow.readers), dtype=torch.float64)
        for one in self.scores.passes:
            for column, by_input in enumerate(self.scores.by_input(one).values()):
                found[column] += (change * by_input).sum().detach()
        return found / n_runs

    def incoming(self, part: str) -> Tensor:
        """Of each writer before it: (clean - corrupted write) . gradient by what it alone reads."""
        n_runs = len(self.scores.passes) * len(self.pairs)
        found = torch.zeros(len(self.slow.writers), dtype=torch.float64)
        for one in self.scores.passes:
            by_copy = self._by_copy(one, part)
            for writer in self.slow.reads(f"m{self.layer}"):
                change = (
                    self.scores.writes["clean"][writer] - self.scores.writes["corrupted"][writer]
                )
                found[self.slow.writers.index(writer)] += (change * by_copy).sum()
        return found / n_runs

    def _write(self, run: str, part: str) -> Tensor:
        """What the part adds to the residual stream in a run."""
        tokens = self.pairs.clean if run == "clean" else self.pairs.corrupted
        mlp, resid = self.slow.blocks[self.layer].mlp, self.slow.embed(tokens)
        if isinstance(mlp, Experts):
            return self._of_part(part, self._mlp_in(resid), self._mlp_in(resid))
        neuron = int(part[1:])
        neurons = self.slow.values(resid)[f"m{self.layer}.n"]
        written = neurons[..., neuron : neuron + 1] * mlp.down.weight[neuron]
        others = mlp.down(neurons) - written
        block = self.slow.blocks[self.layer]
        return self.slow.written({part: written, "others": others}, block.post_mlp)[part]

    def _mlp_in(self, resid: Tensor) -> Tensor:
        """The residual stream that the MLP reads."""
        seen: list[Tensor] = []

        def read(reader: str, writes: Writes) -> Tensor:
            if reader == f"m{self.layer}":
                seen.append(total(reader, writes).detach())
            return total(reader, writes)

        self.slow.run_from(resid, read)
        return seen[0]

    def _of_part(self, part: str, mlp_in: Tensor, others_in: Tensor) -> Tensor:
        """What an expert writes, or all of them as the router has it, if that part alone reads ``mlp_in``.

        For a neuron, its activation.
        """
        block, layer_rules = self.slow.blocks[self.layer], self.scores.rules
        x, others = (normed(block.mlp_norm, one, layer_rules) for one in (mlp_in, others_in))
        mlp = block.mlp
        if not isinstance(mlp, Experts):
            return mlp.neurons(x, layer_rules)[..., int(part[1:])]
        if part == "router":
            weights = mlp.weights(x)
            return torch.stack(
                [
                    weights[..., e, None] * one(others, layer_rules)
                    for e, one in enumerate(mlp.experts)
                ]
            ).sum(0)
        if part == "shared":
            assert mlp.shared is not None
            assert mlp.shared_gate is not None
            return (x @ mlp.shared_gate).sigmoid() * mlp.shared(x, layer_rules)
        expert = int(part[1:])
        return mlp.weights(others)[..., expert, None] * mlp.experts[expert](x, layer_rules)

    def _by_copy(self, one: SlowPass, part: str) -> Tensor:
        """The metric's gradient by a copy of the MLP's input that only this part reads."""
        mlp_in = self._mlp_in(one.resid)
        copy = torch.zeros_like(mlp_in).requires_grad_()
        is_neuron = part.startswith("n")
        site = f"m{self.layer}.n" if is_neuron else f"m{self.layer}"

        def see(name: str, value: Tensor) -> Tensor:
            if name != site:
                return value
            new = self._of_part(part, mlp_in + copy, mlp_in)
            change = new - new.detach()  # no value changes
            if not is_neuron:
                return value + change
            only = torch.nn.functional.one_hot(torch.tensor(int(part[1:])), value.shape[-1])
            return value + change[..., None] * only

        logits = self.slow.run_nodes(one.resid, see, rules=self.scores.rules)
        (found,) = torch.autograd.grad(logit_diff(logits, self.pairs).sum(), copy)
        return found


def check_parts(kind: str, layer: int, pairs: PromptPairs, options: Options) -> None:
    model, slow = twins(kind)
    found = score_split(model, pairs, what(kind, layer), **options)
    oracle = SlowParts(slow, pairs, layer, SlowScores(slow, pairs, **options))
    names = [name.partition(".")[2] for name in found.parts]
    reader = model.graph.mlp_reader(layer)
    n_read = model.graph.readers[reader].n_writers
    chosen = names if kind in EXPERTS else [names[0], names[17], names[-1]]
    for name in chosen:
        row = names.index(name)
        if name != "router":
            outgoing = oracle.outgoing(name)[reader + 1 :]
            assert_close(found.outgoing[row, reader + 1 :], outgoing, 1e-4)
        assert_close(found.incoming[:n_read, row], oracle.incoming(name)[:n_read], 1e-4)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_each_part_equals_the_slow_model(
    kind: str, options: Options, some_pairs: PromptPairs
) -> None:
    check_parts(kind, 0 if kind in EXPERTS else 1, some_pairs, options)


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2-moe"])
def test_each_part_equals_the_slow_model_the_other_way_round(
    kind: str, some_pairs: PromptPairs
) -> None:
    gradient = "gim" if kind in EXPERTS else "relevance"
    check_parts(kind, 0, some_pairs, {"gradient": gradient, "direction": "denoising"})


def test_parts_of_the_slow_model_sum_to_its_mlp(some_pairs: PromptPairs) -> None:
    """Guards the tests above."""
    for kind, parts in (
        ("gemma2", [f"n{neuron}" for neuron in range(48)]),
        ("qwen2-moe", ["e0", "e1", "e2", "e3", "shared", "router"]),
    ):
        _, slow = twins(kind)
        scores = SlowScores(slow, some_pairs)
        oracle = SlowParts(slow, some_pairs, 0, scores)
        table = scores.scores().sum(1).mean(0)
        column = slow.readers.index("m0")
        incoming = torch.stack([oracle.incoming(part) for part in parts]).sum(0)
        outgoing = torch.stack([oracle.outgoing(p) for p in parts if p != "router"]).sum(0)
        assert torch.allclose(incoming, table[:, column])
        row = slow.writers.index("m0")
        assert torch.allclose(outgoing[column + 1 :], table[row, column + 1 :])


# ---- batches, lengths and memory


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2-moe"])
def test_a_batch_gives_what_its_pairs_give_alone(kind: str) -> None:
    model, pairs = twins(kind)[0], tiny.pairs(3, n_pos=N_POS)
    options: Options = {"gradient": "integrated", "steps": 2}
    together = score_split(model, pairs, what(kind, 0), **options)
    alone = [
        score_split(model, tiny.one_pair(pairs, row), what(kind, 0), **options) for row in range(3)
    ]
    assert_close(
        together.outgoing.nan_to_num(),
        torch.stack([one.outgoing for one in alone]).mean(0).nan_to_num(),
    )
    assert_close(
        together.incoming.nan_to_num(),
        torch.stack([one.incoming for one in alone]).mean(0).nan_to_num(),
    )


def test_prompts_may_have_several_lengths() -> None:
    model = twins("llama-gqa")[0]
    short, long = tiny.pairs(1, n_pos=5), tiny.pairs(2, n_pos=8, seed=1)

    def joined(short: Tensor, long: Tensor) -> Tensor:
        short = torch.nn.functional.pad(short, (0, long.shape[1] - short.shape[1]), value=-1)
        return torch.cat([short, long])

    mixed = PromptPairs(
        joined(short.clean, long.clean),
        joined(short.corrupted, long.corrupted),
        joined(short.answers, long.answers),
        joined(short.wrong, long.wrong),
    )
    done: list[int] = []
    found = score_split(model, mixed, "m1:neurons", progress=lambda _, n, total: done.append(n))
    assert done == [1, 2]
    one, two = (score_split(model, pairs, "m1:neurons") for pairs in (short, long))
    assert_close(found.outgoing.nan_to_num(), ((one.outgoing + 2 * two.outgoing) / 3).nan_to_num())
    assert_close(found.incoming.nan_to_num(), ((one.incoming + 2 * two.incoming) / 3).nan_to_num())


class OneAtATime(Integrated):
    """Integrated gradients whose steps share no batch."""

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        return super().passes(runs, by, 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "gemma2", "qwen2-moe"])
def test_little_memory_and_small_batches_change_nothing(kind: str) -> None:
    model, pairs = twins(kind)[0], tiny.pairs(3, n_pos=N_POS)

    def score(**changes: Any) -> SplitScores:
        options: Options = {"gradient": "integrated", "steps": 3, **changes}
        return score_split(model, pairs, what(kind, 0), **options)

    whole = score()
    assert_same(score(memory_limit=20_000), whole)
    assert_same(score(batch_size=2), whole)
    assert_same(score(gradient=OneAtATime(3)), whole)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float64, 1e-5)])
@pytest.mark.parametrize("kind", ["llama-gqa", "gemma2"])
def test_scores_of_models_of_any_precision_are_float32(
    kind: str, dtype: torch.dtype, bound: float, some_pairs: PromptPairs
) -> None:
    found = score_split(tiny.model(kind, dtype=dtype), some_pairs, "m1:neurons", gradient="clean")
    whole = score_split(twins(kind)[0], some_pairs, "m1:neurons", gradient="clean")
    for one, other in ((found.outgoing, whole.outgoing), (found.incoming, whole.incoming)):
        assert one.dtype == torch.float32
        error = (one - other).nan_to_num().abs().max() / other.nan_to_num().abs().max()
        assert float(error) < bound


# ---- top


def test_top_names_both_kinds_of_edges(some_pairs: PromptPairs) -> None:
    for kind in ("gpt2", "mixtral"):
        model = twins(kind)[0]
        parts = score_split(model, some_pairs, what(kind, 0))
        top = parts.top()
        n_edges = int((~parts.outgoing.isnan()).sum() + (~parts.incoming.isnan()).sum())
        assert len(top) == len(dict(top)) == n_edges
        assert [abs(s) for _, s in top] == sorted((abs(s) for _, s in top), reverse=True)
        assert parts.top(3) == top[:3]
        writers = [writer.name for writer in model.graph.writers]
        readers = [reader.name for reader in model.graph.readers]
        for name, score in top:
            one, other = name.split("->")
            if one in parts.parts:
                found = parts.outgoing[parts.parts.index(one), readers.index(other)]
            else:
                found = parts.incoming[writers.index(one), parts.parts.index(other)]
            assert found.item() == score
        assert not any(name.startswith("m0.router->") for name, _ in top)


# ---- refusals


@pytest.mark.parametrize(
    ("kind", "split", "options", "message"),
    [
        ("gpt2", "a0.h1:neurons", {}, "an MLP to split, m0 to m2, got 'a0.h1'; write --split m0:n"),
        ("gpt2", "m3:neurons", {}, "an MLP to split, m0 to m2, got 'm3'"),
        ("gpt2", "m0.n1:neurons", {}, "an MLP to split"),
        ("gpt2", "", {}, "an MLP to split, m0 to m2, got ''"),
        ("gpt2", "m1", {}, "m1 of model tiny gpt2 has neurons, got 'm1'; write --split m1:neurons"),
        ("gpt2", "m1:experts", {}, "tiny gpt2 has neurons, got 'm1:experts'; write --split m1:neu"),
        ("gpt2", "m1:heads", {}, "has neurons, got 'm1:heads'"),
        ("mixtral", "m1:neurons", {}, "has experts, got 'm1:neurons'; write --split m1:experts"),
        (
            "gpt2",
            "m1:neurons",
            {"gradient": "graddrop"},
            "needs signed scores, which gradient grad",
        ),
        ("gpt2", "m1:neurons", {"gradient": "mean"}, "unknown gradient 'mean'"),
        ("gpt2", "m1:neurons", {"metric": "loss"}, "unknown metric 'loss'"),
        ("mixtral", "m1:experts", {"gradient": "relevance"}, "has no rule for the mixture of"),
        ("gpt2", "m1:neurons", {"memory_limit": 0}, "expected a memory limit above 0 bytes, got 0"),
        ("gpt2", "m1:neurons", {"steps": 0}, "expected at least one step, got 0"),
    ],
)
def test_what_cannot_be_split_is_refused(
    kind: str, split: str, options: Options, message: str, some_pairs: PromptPairs
) -> None:
    with pytest.raises(InputError, match=message):
        score_split(twins(kind)[0], some_pairs, split, **options)


def test_kl_takes_the_gradient_at_the_corrupted_run(some_pairs: PromptPairs) -> None:
    assert (
        score_split(twins("gpt2")[0], some_pairs, "m0:neurons", metric="kl").gradient == "corrupted"
    )
