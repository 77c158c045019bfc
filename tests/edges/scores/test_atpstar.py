"""Node scores against the slow float64 model: every node, position, method and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from slow import SlowModel, Values
from torch import Tensor

from wiremap.edges import (
    InputError,
    Model,
    NodeScores,
    PromptPairs,
    WiremapError,
    patch_nodes,
    score_edges,
    score_nodes,
)
from wiremap.edges.names.nodes import FAMILIES, NodeSet
from wiremap.edges.question.metrics import METRICS, Targets
from wiremap.edges.runs.sweep import check_pairs
from wiremap.edges.runs.trace import Tape
from wiremap.edges.scores.node_scores import recommended_method

ALL = tuple(FAMILIES)
STEPS = 3
N_POS = 6

Options = dict[str, Any]
CASES: list[Options] = [
    {"method": method, "gradient": gradient, "direction": "noising"}
    for method in ("atp", "atp-qk")
    for gradient in ("clean", "corrupted", "both", "integrated", "graddrop")
] + [
    {"method": "atp-star", "gradient": None, "direction": "noising"},
    {"method": "atp", "gradient": "graddrop", "direction": "denoising"},
    {"method": "atp-qk", "gradient": "corrupted", "direction": "denoising"},
    {"method": "atp-qk", "gradient": "both", "direction": "denoising"},
    {"method": "atp-star", "gradient": None, "direction": "denoising"},
]


some_pairs = partial(tiny.pairs_ending_apart, n_pos=N_POS)


def slow_metric(logits: Tensor, pairs: PromptPairs, clean_logits: Tensor, metric: str) -> Tensor:
    rows = torch.arange(len(pairs))
    answers, wrong = pairs.answers[:, 0], pairs.wrong[:, 0]
    if metric == "logit_diff":
        return logits[rows, answers] - logits[rows, wrong]
    if metric == "log_prob":
        return logits.log_softmax(-1)[rows, answers]
    if metric == "prob_diff":
        return logits.softmax(-1)[rows, answers] - logits.softmax(-1)[rows, wrong]
    clean = clean_logits.softmax(-1)
    return -(clean * (clean.log() - logits.log_softmax(-1))).sum(-1)


class SlowScores:
    """Every node's estimates by the definitions, one gradient, key and layer at a time."""

    def __init__(
        self,
        slow: SlowModel,
        pairs: PromptPairs,
        direction: str,
        each: bool,
        metric: str = "logit_diff",
    ) -> None:
        self.slow, self.pairs, self.each, self.metric = slow, pairs, each, metric
        self.resids = slow.embed(pairs.clean), slow.embed(pairs.corrupted)
        self.clean, self.corrupted = (slow.values(resid) for resid in self.resids)
        noising = direction == "noising"
        self.edited_resid = self.resids[0 if noising else 1]
        self.edited, self.other = (
            (self.clean, self.corrupted) if noising else (self.corrupted, self.clean)
        )
        self.sign = -1 if noising else 1

    def of(self, names: tuple[str, ...], rule: str, fix: bool) -> Tensor:
        """Estimates ``[pair node]`` of these nodes."""
        if rule == "graddrop":
            table = self.dropped(fix)
        else:
            table = mean([self.estimates(self.gradients(run), fix) for run in self.runs(rule)])
        columns: list[Tensor] = []
        for node in names:
            name, _, position = node.partition("@")
            name, of_neuron, neuron = name.partition(".n")
            values = table[name + of_neuron]
            values = values[:, int(position)] if self.each else values
            columns.append(values[:, int(neuron)] if neuron else values)
        return torch.stack(columns, 1)

    def gradients(self, resid: Tensor, dropped: int | None = None) -> Values:
        """The metric's gradients by every activation, by autograd through the whole run."""
        seen: Values = {}

        def see(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            return value

        logits = self.slow.run_nodes(resid.clone().requires_grad_(), see, dropped)
        clean_logits = self.slow.run(self.pairs.clean)[0]
        value = slow_metric(logits, self.pairs, clean_logits, self.metric).sum()
        found = torch.autograd.grad(value, list(seen.values()), materialize_grads=True)
        return dict(zip(seen, found, strict=True))

    def runs(self, rule: str) -> list[Tensor]:
        """What the input writes in the runs the gradient is averaged over."""
        clean, corrupted = self.resids
        if rule == "integrated":
            parts = [(step + 0.5) / STEPS for step in range(STEPS)]
            return [part * clean + (1 - part) * corrupted for part in parts]
        return {"clean": [clean], "corrupted": [corrupted], "both": [clean, corrupted]}[rule]

    def dropped(self, fix: bool) -> Values:
        """One full pass for each layer dropped, never fewer; the mean of absolutes."""
        n_layers = self.slow.n_layers
        passes: list[Values] = []
        for layer in range(n_layers):
            estimates = self.estimates(self.gradients(self.edited_resid, layer), fix)
            for name, values in estimates.items():  # what the dropped layer's own nodes are worth
                assert name[:2] not in (f"a{layer}", f"m{layer}") or not bool(values.any())
            passes.append({name: values.abs() for name, values in estimates.items()})
        outside = ("input", *(f"r{layer}" for layer in range(n_layers)))  # of all layers
        return {
            name: torch.stack([found[name] for found in passes]).sum(0)
            / (n_layers if name in outside else n_layers - 1)
            for name in passes[0]
        }

    def estimates(self, gradients: Values, fix: bool) -> Values:
        """``[pair pos]``, neurons ``[pair pos neuron]``; without ``pos`` if positions are summed."""
        found: Values = {}
        for name in self.clean:
            if name.endswith("<pattern>"):
                continue
            if fix and name[-3:] in ("<q>", "<k>"):
                by_position = self.fixed(name, gradients)
            else:
                by_position = (self.clean[name] - self.corrupted[name]) * gradients[name]
                by_position = by_position if name.endswith(".n") else by_position.sum(-1)
            found[name] = by_position if self.each else by_position.sum(1)
        return found

    def fixed(self, name: str, gradients: Values) -> Tensor:
        """Estimates of a query or key by position, from patterns computed anew."""
        layer, slot = int(name[1]), name[-2]
        group = self.slow.n_heads // self.slow.n_kv_heads
        of = int(name.partition("<")[0][-1])
        total = torch.zeros(self.pairs.clean.shape, dtype=torch.float64)
        for head in [of] if slot == "q" else range(of * group, (of + 1) * group):
            q_name = f"a{layer}.h{head}<q>"
            k_name = self.slow.slot_name(layer, "k", head // group)
            q, k = self.edited[q_name], self.edited[k_name]
            by_pattern = gradients[f"a{layer}.h{head}<pattern>"]

            def worth(q: Tensor, k: Tensor, by: Tensor = by_pattern, head: int = head) -> Tensor:
                change = self.slow.pattern(q, k) - self.edited[f"a{layer}.h{head}<pattern>"]
                return (change * by).sum(-1)  # [pair query]

            if slot == "q":
                total += worth(self.other[q_name], k)
            elif self.each:
                for position in range(k.shape[1]):
                    alone = k.clone()
                    alone[:, position] = self.other[k_name][:, position]
                    total[:, position] += worth(q, alone).sum(-1)
            else:
                total += worth(q, self.other[k_name])
        return self.sign * total


def mean(tables: list[Values]) -> Values:
    return {name: torch.stack([table[name] for table in tables]).mean(0) for name in tables[0]}


def of_each_pair(scores: NodeScores) -> Tensor:
    assert scores.per_pair is not None
    return scores.per_pair


def by_site(nodes: NodeSet) -> Iterator[tuple[str, slice]]:
    for site, part in zip(nodes.sites, nodes.slices, strict=True):
        yield f"{site.kind} of layer {site.layer}", part


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_every_node_equals_the_slow_model(
    twins: tuple[Model, SlowModel], kind: str, options: Options
) -> None:
    """All nodes of all families, to 1e-4 of the largest of their kind and layer.

    Every case at each position on two kinds of models, and summed over positions on the others.
    """
    model, slow = twins
    pairs = some_pairs()
    each = (tiny.KINDS.index(kind) + CASES.index(options)) % 2 == 0
    positions = "each" if each else "sum"
    found = score_nodes(
        model, pairs, ALL, positions=positions, steps=STEPS, per_pair=True, **options
    )
    rule = options["gradient"] or "graddrop"
    expected = SlowScores(slow, pairs, options["direction"], each).of(
        found.names, rule, options["method"] != "atp"
    )
    assert len(found.names) == expected.shape[1]
    for site, part in by_site(found.nodes):
        scale = float(expected[:, part].abs().max())
        assert scale > 1e-3, site
        error = float((of_each_pair(found)[:, part] - expected[:, part]).abs().max())
        assert error < 1e-4 * scale, site


def test_the_slow_scores_differ_where_they_should(twins: tuple[Model, SlowModel]) -> None:
    """Guards the test above: no two of its oracles are the same."""
    model, slow = twins
    pairs = some_pairs()
    names = NodeSet(model.graph, model.d_mlp, ("heads",), N_POS).names
    each = SlowScores(slow, pairs, "noising", True)
    tables = [
        each.of(names, rule, fix)
        for rule in ("clean", "corrupted", "both", "integrated", "graddrop")
        for fix in (False, True)
    ]
    tables.append(SlowScores(slow, pairs, "denoising", True).of(names, "clean", True))
    keys = [index for index, name in enumerate(names) if "<k>" in name]
    for index, one in enumerate(tables):
        for other in tables[:index]:
            assert float((one - other)[:, keys].abs().max()) > 1e-2 * float(
                one[:, keys].abs().max()
            )
    summed = NodeSet(model.graph, model.d_mlp, ("heads",))
    together = SlowScores(slow, pairs, "noising", False).of(summed.names, "clean", True)
    alone = tables[1].unflatten(1, (-1, N_POS)).sum(2)
    for kind, same in (("<q>", True), ("<k>", False)):
        columns = [index for index, name in enumerate(summed.names) if kind in name]
        difference = float((together - alone)[:, columns].abs().max())
        assert (difference < 1e-9) == same


# ---- GradDrop


class Skip(torch.autograd.Function):
    """A block's output, whose gradient goes to the block's input as if the block wrote nothing."""

    @staticmethod
    def forward(ctx: Any, resid: Tensor, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def naive_gradients(model: Model, pairs: PromptPairs, dropped: int | None) -> dict[Any, Tensor]:
    """Gradients by (activation, layer) of one pass through the graph of the whole run."""
    seen: dict[Any, Tensor] = {}

    def see(name: str, layer: int, value: Tensor) -> Tensor:
        if name == "resid_pre" and dropped is not None and layer == dropped + 1:
            value = Skip.apply(seen["resid_pre", dropped], value)  # pyright: ignore[reportAssignmentType]
        seen[name, layer] = value
        return value

    with model.borrowed(), torch.enable_grad():
        resid = model.embed(pairs.clean).detach().requires_grad_()
        final = model.run(resid, see)
        if dropped == model.graph.n_layers - 1:
            final = Skip.apply(seen["resid_pre", dropped], final)
        targets = Targets(pairs.answers, pairs.wrong, torch.empty(len(pairs), 0))
        value = METRICS["logit_diff"](model.logits(final[:, -1]), targets).sum()  # pyright: ignore[reportArgumentType]
    found = torch.autograd.grad(value, list(seen.values()), materialize_grads=True)
    return dict(zip(seen, found, strict=True))


BlockBackward = tuple[int | None, int, dict[str, Tensor]]
"""Where a pass began, the block it went through, and the gradients it found there."""


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[BlockBackward]:
    """Every pass through a block that scoring makes."""
    made: list[BlockBackward] = []
    original = Tape.backward

    def backward(
        tape: Tape, gradient: Tensor, start: int | None = None, again: bool = False
    ) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        for layer, found, below in original(tape, gradient, start, again):
            made.append((start, layer, {**found, "resid_pre": below}))
            yield layer, found, below

    monkeypatch.setattr(Tape, "backward", backward)
    return made


@pytest.mark.parametrize("n_layers", [2, 3, 5])
def test_graddrop_goes_through_half_as_many_blocks(
    backwards: list[BlockBackward], n_layers: int
) -> None:
    model = tiny.model("gpt2", n_layer=n_layers)
    score_nodes(model, some_pairs(), ALL, method="atp-star")
    assert len(backwards) == n_layers * (n_layers + 1) // 2
    backwards.clear()
    score_nodes(model, some_pairs(), ALL, method="atp-qk")
    assert len(backwards) == n_layers


@pytest.mark.parametrize("method", ["atp", "atp-star"])
def test_restarted_passes_are_the_naive_ones_bit_for_bit(
    kind: str, backwards: list[BlockBackward], method: str
) -> None:
    model, pairs = tiny.model(kind), some_pairs(3)
    n_layers = model.graph.n_layers
    score_nodes(model, pairs, ALL, method=method, gradient="graddrop")
    n_compared = 0
    for dropped in range(n_layers):
        naive = naive_gradients(model, pairs, dropped)
        for start, layer, found in backwards:
            # Above the dropped layer the first pass serves, below it the one restarted there.
            if start == (None if layer > dropped else dropped):
                for name, gradient in found.items():
                    assert torch.equal(gradient, naive[name, layer]), (dropped, name, layer)
                    n_compared += 1
        for name in ("q", "k", "v", "z", "neurons", "mlp_out"):
            assert not bool(naive[name, dropped].any())
        whole = naive_gradients(model, pairs, None)["resid_pre", 0]
        assert not torch.equal(naive["resid_pre", 0], whole)
    assert n_compared >= 5 * n_layers * (n_layers - 1)


def test_a_node_with_a_direct_effect_alone_scores_its_atp(kind: str) -> None:
    """Nothing after the first layer writes anything, but attention and MLP are still there."""
    hf = tiny.hf_model(kind)
    slow_names = ("c_proj", "o_proj", "down_proj", "attention.dense", "dense_4h_to_h")
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if any(part in name for part in slow_names) and ".0." not in name:
                weight.zero_()
    model, pairs = Model(tiny.bridge(hf), name="direct"), some_pairs()
    plain, dropped = (
        score_nodes(
            model, pairs, ALL, method="atp", gradient=gradient, positions="each", per_pair=True
        )
        for gradient in ("clean", "graddrop")
    )
    for site, part in by_site(plain.nodes):
        one, other = of_each_pair(plain)[:, part].abs(), of_each_pair(dropped)[:, part]
        if site in ("input of layer 0", "resid of layer 0"):  # these do have indirect effects
            assert not torch.allclose(one, other, rtol=1e-2)
        else:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)  # thirds are rounded
            assert bool(one.any()) or not site.endswith("layer 0")


def test_graddrop_scores_are_unsigned_and_say_so() -> None:
    model, pairs = tiny.model("gpt2"), some_pairs()
    for method, gradient, unsigned in (
        ("atp-star", None, True),
        ("atp", "graddrop", True),
        ("atp-qk", None, False),
    ):
        found = score_nodes(model, pairs, ALL, method=method, gradient=gradient, per_pair=True)
        assert found.unsigned is unsigned
        assert bool((of_each_pair(found) >= 0).all()) is unsigned
        assert torch.equal(found.scores, found.contributions) is unsigned


# ---- what each part is there for


def saturated_model() -> Model:
    """A GPT-2 with one head in its last layer whose scores are a hundred times as large."""
    hf = tiny.hf_model("gpt2")
    attention = hf.transformer.h[2].attn
    with torch.no_grad():
        for first in (0, 32):  # queries and keys of head 0
            attention.c_attn.weight[:, first : first + 8] *= 10
            attention.c_attn.bias[first : first + 8] *= 10
        attention.c_proj.weight[:8] *= 0.3  # small enough that what follows is nearly linear
    return Model(tiny.bridge(hf), name="saturated")


def saturation(model: Model, tokens: Tensor) -> Tensor:
    """The largest weight of each query of head 0 of the last layer. ``[pair query]``"""
    largest: list[Tensor] = []

    def see(name: str, layer: int, value: Tensor) -> Tensor:
        if name == "pattern" and layer == 2:
            largest.append(value[:, 0].amax(-1))
        return value

    with torch.no_grad(), model.borrowed():
        model.run(model.embed(tokens), see)
    return largest[0]


@pytest.mark.parametrize("slot", ["q", "k"])
def test_the_qk_fix_finds_what_saturation_hides(slot: str) -> None:
    model, pairs = saturated_model(), tiny.pairs(4)
    assert float(saturation(model, pairs.clean)[:, -1].min()) > 0.999
    assert int((saturation(model, pairs.clean)[:, -1] > 0.999999).sum()) >= 2
    names = [f"a2.h0<{slot}>@{position}" for position in range(7)]
    exact = patch_nodes(model, pairs, names).effects
    found = {
        method: score_nodes(model, pairs, "heads", method=method, positions="each", per_pair=True)
        for method in ("atp", "atp-qk")
    }
    columns = [found["atp"].names.index(name) for name in names]
    plain, fixed = (of_each_pair(scores)[:, columns].T for scores in found.values())
    large = exact.abs() > 0.2
    assert int(large.sum()) >= 2
    assert bool((plain[large].abs() < exact[large].abs() / 100).all())
    share = fixed[large] / exact[large]
    assert bool((share > 0.8).all())
    assert bool((share < 1.25).all())


def cancelling_model(pairs: PromptPairs, strength: float) -> Model:
    """A GPT-2 that is linear but for its MLPs, one neuron of which undoes what a0.h1 writes.

    The last MLP's neuron 0 reads what changes in the write of a0.h1 and writes against it, along
    the answer. It is at a slope of its GELU in the clean run, and far down in the corrupted one.
    """
    hf = tiny.hf_model("gpt2", layer_norm_epsilon=1e12)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "ln_" in name:
                weight.fill_(1e6 if name.endswith("weight") else 0.0)
            elif "c_attn" in name:
                weight[..., : 2 * 32] *= 0.1
            elif "c_proj" in name:
                weight *= 0.1
        hf.transformer.h[0].attn.c_proj.weight[8:16] *= 10
        hf.transformer.h[2].attn.c_proj.weight.zero_()  # its MLP reads the residual stream alone
        hf.transformer.h[2].attn.c_proj.bias.zero_()
        slow = SlowModel(hf)
        clean, corrupted = (slow.values(slow.embed(t)) for t in (pairs.clean, pairs.corrupted))
        written = (clean["a0.h1"] - corrupted["a0.h1"])[0, -1] @ slow.head_output(0, 1)
        written = written - written.mean()
        answer, wrong = int(pairs.answers[0, 0]), int(pairs.wrong[0, 0])
        mlp = hf.transformer.h[2].mlp
        reads = 4 * written / written.dot(written)
        mlp.c_fc.weight[:, 0] = reads.float()
        mlp.c_fc.bias[0] = 1.5 - float(clean["r2"][0, -1] @ (reads - reads.mean()))
        mlp.c_proj.weight[0] = -strength * (hf.lm_head.weight[answer] - hf.lm_head.weight[wrong])
    return Model(tiny.bridge(hf), name="cancelling")


def test_graddrop_finds_what_cancellation_hides() -> None:
    pairs = some_pairs(1)
    node = "a0.h1"

    def estimate(strength: float, **options: Any) -> float:
        found = score_nodes(cancelling_model(pairs, strength), pairs, "heads", **options)
        return dict(found.top())[node]

    # The estimate is linear in the neuron's strength: choose the one that makes it nothing.
    without, one = (estimate(strength, method="atp") for strength in (0.0, 1.0))
    strength = without / (without - one)
    model = cancelling_model(pairs, strength)
    exact = abs(float(patch_nodes(model, pairs, [node]).effects))
    assert exact > 0.3 * abs(without) > 0.1
    plain = score_nodes(model, pairs, "heads", method="atp").top()
    assert abs(dict(plain)[node]) < 0.01 * exact
    assert node not in dict(plain[:10])
    for method in ("atp", "atp-star"):
        found = score_nodes(model, pairs, "heads", method=method, gradient="graddrop")
        dropped = found.top(3)
        assert node in dict(dropped)
        assert dict(dropped)[node] > 0.1 * exact


# ---- options


@pytest.mark.parametrize("method", ["atp", "atp-qk", "atp-star"])
def test_both_aggregates_come_from_the_pairs(method: str) -> None:
    model, pairs = tiny.model("llama-gqa"), some_pairs(4)
    found = score_nodes(model, pairs, ALL, method=method, per_pair=True)
    table = of_each_pair(found)
    torch.testing.assert_close(found.scores, table.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.contributions, table.abs().mean(0), rtol=1e-5, atol=1e-6)
    if method != "atp-star":  # pairs disagree about the sign
        assert float((found.contributions - found.scores.abs()).max()) > 0.1
    for aggregate, values in (
        ("abs-of-mean", found.scores),
        ("mean-of-abs", found.contributions),
    ):
        top = found.top(aggregate=aggregate)
        assert len(top) == len(found.names)
        assert [value for _, value in top] == sorted(
            values.tolist(), key=lambda value: abs(value), reverse=True
        )
        assert dict(top) == dict(zip(found.names, values.tolist(), strict=True))
    assert score_nodes(model, pairs, ALL, method=method).per_pair is None


def test_an_unknown_aggregate_is_refused() -> None:
    found = score_nodes(tiny.model("gpt2"), some_pairs(), "mlps")
    with pytest.raises(InputError, match="unknown aggregate 'max'; there are abs-of-mean, mean"):
        found.top(aggregate="max")


def one_pair(pairs: PromptPairs, row: int) -> PromptPairs:
    rows = slice(row, row + 1)
    return PromptPairs(
        pairs.clean[rows], pairs.corrupted[rows], pairs.answers[rows], pairs.wrong[rows]
    )


@pytest.mark.parametrize("positions", ["each", "sum"])
@pytest.mark.parametrize(
    "options",
    [{"method": "atp-star"}, {"method": "atp-qk", "gradient": "integrated", "steps": 2}],
    ids=["atp-star", "integrated"],
)
def test_a_batch_gives_what_its_pairs_give_alone(
    kind: str, options: Options, positions: str
) -> None:
    model, pairs = tiny.model(kind), some_pairs(3)
    options = {**options, "positions": positions, "per_pair": True}
    done: list[int] = []
    together = of_each_pair(score_nodes(model, pairs, ALL, **options))
    in_parts = score_nodes(
        model, pairs, ALL, batch_size=2, progress=lambda _, n, total: done.append(n), **options
    )
    assert done == [2, 1]
    torch.testing.assert_close(of_each_pair(in_parts), together, rtol=1e-4, atol=1e-5)
    for row in range(3):
        alone = of_each_pair(score_nodes(model, one_pair(pairs, row), ALL, **options))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def of_two_lengths() -> tuple[PromptPairs, PromptPairs, PromptPairs]:
    """Two short pairs, one long, and all three as one, the long one first."""
    short, long = some_pairs(n_pos=5), some_pairs(1, seed=1)

    def padded(tokens: Tensor) -> Tensor:
        return torch.nn.functional.pad(tokens, (0, N_POS - tokens.shape[1]), value=-1)

    mixed = PromptPairs(
        torch.cat([long.clean, padded(short.clean)]),
        torch.cat([long.corrupted, padded(short.corrupted)]),
        torch.cat([long.answers, short.answers]),
        torch.cat([long.wrong, short.wrong]),
    )
    return short, long, mixed


def test_prompts_of_several_lengths_are_summed_over_their_own_positions() -> None:
    model = tiny.model("llama-gqa")
    short, long, mixed = of_two_lengths()
    found = score_nodes(model, mixed, ALL, method="atp-star", per_pair=True)
    expected = torch.cat(
        [
            of_each_pair(score_nodes(model, pairs, ALL, method="atp-star", per_pair=True))
            for pairs in (long, short)
        ]
    )
    torch.testing.assert_close(of_each_pair(found), expected, rtol=1e-4, atol=1e-5)


def test_prompts_of_several_lengths_have_no_common_positions() -> None:
    with pytest.raises(
        InputError, match="prompts of one length, got lengths 5, 6; use --positions"
    ):
        score_nodes(tiny.model("gpt2"), of_two_lengths()[2], "mlps", positions="each")


@pytest.mark.parametrize("positions", ["each", "sum"])
def test_families_alone_score_as_they_do_among_others(positions: str) -> None:
    model, pairs = tiny.model("neox"), some_pairs()
    options: Options = {"method": "atp-star", "positions": positions}
    among = dict(score_nodes(model, pairs, ALL, **options).top())
    names: set[str] = set()
    for family in FAMILIES:
        alone = score_nodes(model, pairs, family, **options)
        names |= set(alone.names)
        for name, score in alone.top():
            assert score == pytest.approx(among[name], rel=1e-4, abs=1e-5)
    assert names == set(among)


def test_linear_nodes_summed_over_positions_are_the_sum_of_each() -> None:
    """But for keys, which the fix replaces together, and GradDrop's absolutes."""
    model, pairs = tiny.model("gpt2"), some_pairs()
    options: Options = {"method": "atp-qk", "per_pair": True}
    each = score_nodes(model, pairs, ALL, positions="each", **options)
    summed = score_nodes(model, pairs, ALL, positions="sum", **options)
    added = of_each_pair(each).unflatten(1, (-1, N_POS)).sum(2)
    keys = torch.tensor(["<k>" in name for name in summed.names])
    difference = (added - of_each_pair(summed)).abs()
    assert float(difference[:, ~keys].max()) < 1e-4
    assert float(difference[:, keys].max()) > 0.1


@pytest.mark.parametrize("gradient", ["clean", "corrupted"])
def test_writers_score_what_their_outgoing_edges_sum_to(kind: str, gradient: str) -> None:
    model, pairs = tiny.model(kind), some_pairs()
    edges = score_edges(model, pairs, gradient=gradient).scores.nansum(1)
    for method in (None, "atp"):
        nodes = score_nodes(model, pairs, "writers", method=method, gradient=gradient)
        assert nodes.names == tuple(writer.name for writer in model.graph.writers)
        scale = float(edges.abs().max())
        torch.testing.assert_close(nodes.scores, edges, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("families", "n_pairs", "method"),
    [
        ("heads", 1, "atp-star"),
        ("neurons", 1, "atp-star"),
        ("heads", 2, "atp-qk"),
        (("heads", "mlps"), 2, "atp-qk"),
        ("neurons", 2, "atp"),
        (("mlps", "residual"), 2, "atp"),
        ("writers", 1, "atp"),
        ("writers", 2, "atp"),
    ],
)
def test_the_papers_method_is_the_default(
    families: str | tuple[str, ...], n_pairs: int, method: str
) -> None:
    of = (families,) if isinstance(families, str) else families
    assert recommended_method(of, n_pairs) == method
    model, pairs = tiny.model("gpt2"), some_pairs(n_pairs)
    found = score_nodes(model, pairs, families)
    assert found.method == method
    assert found.gradient == ("graddrop" if method == "atp-star" else "clean")
    explicit = score_nodes(model, pairs, families, method=method)
    assert torch.equal(found.scores, explicit.scores)


def test_a_single_pair_may_ask_for_another_gradient() -> None:
    model, pairs = tiny.model("gpt2"), some_pairs(1)
    assert score_nodes(model, pairs, "heads", gradient="both").method == "atp-qk"
    assert score_nodes(model, pairs, "neurons", gradient="integrated").method == "atp"
    assert score_nodes(model, pairs, "heads", gradient="graddrop").method == "atp-star"


@pytest.mark.parametrize(
    ("options", "gradient"),
    [
        ({}, "clean"),
        ({"direction": "denoising"}, "corrupted"),
        ({"metric": "kl"}, "corrupted"),
        ({"metric": "kl", "direction": "denoising"}, "corrupted"),
        ({"gradient": "both"}, "both"),
    ],
)
def test_the_gradient_is_taken_where_patching_starts(options: Options, gradient: str) -> None:
    found = score_nodes(tiny.model("gpt2"), some_pairs(), "mlps", method="atp", **options)
    assert found.gradient == gradient


@pytest.mark.parametrize(
    ("metric", "gradient"),
    [("log_prob", "graddrop"), ("prob_diff", "both"), ("kl", "corrupted"), ("kl", "integrated")],
)
def test_other_metrics_equal_the_slow_model_too(metric: str, gradient: str) -> None:
    hf, pairs = tiny.hf_model("gpt2"), some_pairs()
    slow = SlowModel(hf)
    found = score_nodes(
        Model(tiny.bridge(hf), name="tiny gpt2"),
        pairs,
        ALL,
        metric=metric,
        method="atp-qk",
        gradient=gradient,
        steps=STEPS,
        positions="each",
        per_pair=True,
    )
    expected = SlowScores(slow, pairs, "noising", True, metric).of(found.names, gradient, True)
    for site, part in by_site(found.nodes):
        scale = float(expected[:, part].abs().max())
        assert scale > 1e-6, site  # probabilities are small
        error = float((of_each_pair(found)[:, part] - expected[:, part]).abs().max())
        assert error < 1e-4 * scale, site


# ---- refusals


def constant(logits: Tensor, targets: Targets) -> Tensor:
    return 0 * logits[:, 0]


def unrelated(logits: Tensor, targets: Targets) -> Tensor:
    return torch.ones(len(logits))


def summed(logits: Tensor, targets: Targets) -> Tensor:
    return logits.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "head"}, "expected families of nodes among writers, .*, got 'head'"),
        ({"nodes": []}, "expected families of nodes among writers, .*, got none"),
        ({"metric": "fidelity"}, "unknown metric 'fidelity'; there are logit_diff"),
        ({"metric": constant}, "the metric does not change with the model's output there"),
        ({"metric": constant, "method": "atp-star"}, "the metric does not change with"),
        ({"metric": constant, "gradient": "integrated"}, "the metric does not change with"),
        ({"metric": unrelated}, "does not depend on the logits"),
        ({"metric": summed}, r"expected the metric to return one number per row, \[2\], got \[\]"),
        ({"method": "eap"}, "unknown method 'eap'; there are atp, atp-qk, atp-star"),
        ({"gradient": "mean"}, "unknown gradient 'mean'; there are clean, corrupted, both, int"),
        ({"direction": "up"}, "unknown direction 'up'; there are noising, denoising"),
        ({"steps": 0, "gradient": "integrated"}, "expected at least one step, got 0"),
        ({"steps": -1}, "expected at least one step, got -1"),
        (
            {"method": "atp-star", "gradient": "clean"},
            "method atp-star means gradient graddrop, got clean; leave the gradient out",
        ),
        (
            {"method": "atp-star", "gradient": "integrated"},
            "method atp-star means gradient graddrop, got integrated",
        ),
        ({"metric": "kl", "gradient": "clean"}, "metric kl is 0 at the clean run"),
        ({"metric": "kl", "method": "atp-star"}, "metric kl is 0 at the clean run"),
        ({"metric": "kl", "gradient": "graddrop"}, "metric kl is 0 at the clean run"),
    ],
)
def test_unknown_and_contradictory_options_are_refused(options: Options, message: str) -> None:
    options = {"nodes": "heads", **options}
    with pytest.raises(InputError, match=message):
        score_nodes(tiny.model("gpt2"), some_pairs(), **options)


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(InputError, match="unknown positions 'all'; there are sum, each"):
        score_nodes(tiny.model("gpt2"), some_pairs(), positions="all")


def test_kl_can_be_dropped_where_it_has_a_gradient() -> None:
    model, pairs = tiny.model("gpt2"), some_pairs()
    found = score_nodes(
        model, pairs, "heads", metric="kl", method="atp-star", direction="denoising"
    )
    assert float(found.scores.max()) > 0


def test_graddrop_of_one_layer_is_refused() -> None:
    model, pairs = tiny.model("gpt2", n_layer=1), some_pairs()
    for method, gradient in (("atp-star", None), ("atp", "graddrop")):
        with pytest.raises(InputError, match="GradDrop needs at least two layers"):
            score_nodes(model, pairs, "heads", method=method, gradient=gradient)
    assert score_nodes(model, pairs, "heads", method="atp-qk").scores.any()


@pytest.mark.parametrize("method", ["atp", "atp-qk", "atp-star"])
@pytest.mark.parametrize("run", ["clean", "corrupted"])
@pytest.mark.parametrize("positions", ["each", "sum"])
def test_what_is_not_finite_names_the_module_and_the_pair(
    method: str, run: str, positions: str
) -> None:
    """A finite embedding whose square is not, in one prompt."""
    model, pairs = tiny.model("neox"), some_pairs(3)
    prompts = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    elsewhere = torch.cat(
        [*(prompts[name] for name in prompts if name != run), prompts[run][[0, 2]]]
    )
    token = next(token for token in prompts[run][1].tolist() if token not in elsewhere)
    with torch.no_grad():
        model.bridge.embed.weight[token] = 3e38
    options: Options = {"method": method, "positions": positions}
    with pytest.raises(
        WiremapError,
        match=r"NaN or infinite values in the \w+ of layer 0 in the \w+ run, in row 2; try float32",
    ):
        score_nodes(model, pairs, "heads", batch_size=2, **options)
    with pytest.raises(WiremapError, match=rf"of layer 0 in the {run} run, in row 2;"):
        score_nodes(model, pairs, "neurons", **options)


def test_a_gradient_that_is_not_finite_names_the_pair() -> None:
    model, pairs = tiny.model("gpt2"), some_pairs(3)

    def root(logits: Tensor, targets: Targets) -> Tensor:
        values = logits.gather(1, targets.answers)[:, 0]
        second = targets.answers[:, 0] == pairs.answers[1, 0]
        at_zero = values[second] - values[second].detach()
        return values.index_put((second,), at_zero.sqrt())

    for method in ("atp", "atp-qk", "atp-star"):
        with pytest.raises(
            WiremapError, match=r"in the gradient by the \w+ of layer \d, in row 2;"
        ):
            score_nodes(model, pairs, "heads", metric=root, method=method)


def test_what_is_not_finite_is_found_although_no_node_of_it_was_asked_for() -> None:
    hf = tiny.hf_model("gpt2")
    model = Model(tiny.bridge(hf), name="damaged later")
    check_pairs(model, tiny.pairs())
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_proj.bias[0] = torch.inf
    with pytest.raises(WiremapError, match="in the mlp_out of layer 1 in the clean run, in 3 rows"):
        score_nodes(model, tiny.pairs(), "heads")
