"""Exact effects of nodes against the slow float64 model: every node, position and source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from comparing import assert_equal_effects
from slow import SlowModel, Values
from torch import Tensor

from wiremap.edges import InputError, Model, PromptPairs, WiremapError, patch_nodes
from wiremap.edges.effects.node_effects import NodeEdits, patch_edits
from wiremap.edges.model.borrowing import hooks_on
from wiremap.edges.names.nodes import FAMILIES, NodeSet
from wiremap.edges.question.metrics import Targets
from wiremap.edges.question.question import Question
from wiremap.edges.question.source import KINDS, Source
from wiremap.edges.runs.sweep import Resources, check_pairs

DIRECTIONS = ("noising", "denoising")
N_POS = 5
SCALE, SEEDS = 2.0, 3


some_pairs = partial(tiny.pairs_ending_apart, n_pos=N_POS)


def logit_diff(logits: Tensor, pairs: PromptPairs) -> Tensor:
    """``[... pair vocab] -> [... pair]``"""
    rows = torch.arange(len(pairs))
    return logits[..., rows, pairs.answers[:, 0]] - logits[..., rows, pairs.wrong[:, 0]]


def slow_effects(
    slow: SlowModel,
    pairs: PromptPairs,
    items: Sequence[Sequence[str]],
    direction: str,
    other: Tensor | Values | None = None,
) -> Tensor:
    """Effects ``[item pair]``; ``other`` is what the input writes in the other run, or values."""
    clean = slow.embed(pairs.clean)
    other = slow.embed(pairs.corrupted) if other is None else other
    base, new = clean, other if isinstance(other, dict) else slow.values(other)
    if direction == "denoising":
        assert isinstance(other, Tensor)
        base, new = other, slow.values(clean)
    (unchanged,) = logit_diff(slow.patched(base, new, [[]]), pairs)
    change = unchanged - logit_diff(slow.patched(base, new, items), pairs)
    return change if direction == "noising" else -change


def noised(slow: SlowModel, pairs: PromptPairs, seed: int) -> Tensor:
    """What the input writes with the noise of one seed on the tokens that differ."""
    clean = slow.embed(pairs.clean)
    for row in range(len(pairs)):
        generator = torch.Generator().manual_seed(1_000_003 * seed + row)
        noise = torch.randn(clean.shape[1:], generator=generator).double()
        for position in range(clean.shape[1]):
            if pairs.clean[row, position] != pairs.corrupted[row, position]:
                clean[row, position] += SCALE * slow.embedding.std() * noise[position]
    return clean


def means(slow: SlowModel, data: PromptPairs, like: Values, by_position: bool) -> Values:
    """Means over all corrupted prompts of a data set, in the shape of ``like``."""
    found: dict[str, list[Tensor]] = {}
    for row, length in enumerate(data.lengths.tolist()):
        prompt = data.corrupted[row : row + 1, :length]
        for name, value in slow.values(slow.embed(prompt)).items():
            if not name.endswith("<pattern>"):
                found.setdefault(name, []).append(value[0])
    return {
        name: (torch.stack(rows) if by_position else torch.cat(rows)).mean(0).expand_as(like[name])
        for name, rows in found.items()
    }


def all_nodes(model: Model, positions: str = "each") -> NodeSet:
    n_pos = N_POS if positions == "each" else None
    families = [one for one in FAMILIES if one != "neurons" or model.has_neurons]
    return NodeSet(model.graph, model.d_mlp, tuple(families), n_pos)


@pytest.mark.parametrize(("direction", "positions"), [("noising", "each"), ("denoising", "sum")])
def test_every_node_equals_the_slow_model(
    every_twins: tuple[Model, SlowModel], direction: str, positions: str
) -> None:
    """All nodes of all families, to 1e-4 of the largest of their kind and layer."""
    model, slow = every_twins
    pairs, nodes = some_pairs(), all_nodes(model, positions)
    expected = slow_effects(slow, pairs, [[name] for name in nodes.names], direction)
    found = patch_nodes(model, pairs, nodes.names, direction=direction)
    assert found.names == nodes.names
    for site, part in zip(nodes.sites, nodes.slices, strict=True):
        scale = float(expected[part].abs().max())
        assert scale > 1e-3, site
        error = float((found.effects[part] - expected[part]).abs().max())
        assert error < 1e-4 * scale, site


def test_what_comes_before_the_first_difference_has_no_effect(kind: str) -> None:
    model, pairs = tiny.model(kind), some_pairs()
    nodes = all_nodes(model)
    effects = patch_nodes(model, pairs, nodes.names).effects
    first = [name.endswith("@0") for name in nodes.names]
    assert bool((pairs.clean[:, 0] == pairs.corrupted[:, 0]).all())
    assert float(effects[first].abs().max()) < 1e-5
    assert float(effects.abs().max()) > 0.5


def sets_of_nodes(model: Model, slow: SlowModel) -> list[list[str]]:
    """Sets across kinds, layers and positions; nodes within nodes; one node, none, all of a kind."""
    key, value = slow.slot_name(0, "k", 1), slow.slot_name(1, "v", 0)
    last = model.graph.n_layers - 1
    return [
        ["a0.h1<q>", "m1"],
        [key, value, "a0.h0@2", "m0.n3@4", "m0.n7"],
        ["r1@2", "a0.h1", f"a{last}.h0<q>@4"],
        [f"m{last}.n{neuron}" for neuron in range(model.d_mlp)],
        [],
        ["m1@4", "m1"],
        ["input@1", "input@2", "input@4"],
        [f"a{last}.h0", f"a{last}.h1@4", f"m{last}@4"],
        [f"a0.h{head}" for head in range(model.graph.n_heads)],
        ["m1"],
    ]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sets_are_patched_together(twins: tuple[Model, SlowModel], direction: str) -> None:
    model, slow = twins
    pairs, items = some_pairs(), sets_of_nodes(model, slow)
    expected = slow_effects(slow, pairs, items, direction)
    found = patch_nodes(model, pairs, items, direction=direction)
    assert found.names[0] == "a0.h1<q> + m1"
    assert_equal_effects(found.effects, expected)
    assert not bool(found.effects[4].any())
    assert torch.equal(found.effects[5], found.effects[9])
    alone = patch_nodes(model, pairs, items[0], direction=direction).effects
    assert float((alone.sum(0) - found.effects[0]).abs().max()) > 1e-2


def test_members_of_a_node_set_are_the_nodes_named(twins: tuple[Model, SlowModel]) -> None:
    model, slow = twins
    pairs = some_pairs()
    for positions in ("each", "sum"):
        nodes = all_nodes(model, positions)
        generator = torch.Generator().manual_seed(0)
        members = torch.rand(6, len(nodes), generator=generator) < 0.02
        members[2] = False
        items = [[nodes.names[index] for index in row.nonzero().flatten()] for row in members]
        names = [str(item) for item in range(6)]
        edits = NodeEdits.of_members(nodes, members)
        found = patch_edits(model, Question(pairs=pairs), names, edits, Resources())
        assert found.names == tuple(names)
        assert_equal_effects(found.effects, slow_effects(slow, pairs, items, "noising"))
        by_name = NodeEdits.of_names(model, items)
        assert by_name.first_layers == edits.first_layers


def test_the_residual_stream_is_everything_before_it(kind: str) -> None:
    model, pairs = tiny.model(kind), some_pairs()
    effects = patch_nodes(model, pairs, ["input", "r0", "r1"]).effects
    torch.testing.assert_close(effects[1], effects[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(effects[2], effects[0], rtol=1e-4, atol=1e-5)
    assert float(effects.abs().max()) > 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("patch_with", ["corrupted", "noise", "mean"])
def test_batches_change_nothing(patch_with: Any, batch_size: int) -> None:
    hf = tiny.hf_model("llama-gqa")
    model, slow = Model(tiny.bridge(hf), name="tiny"), SlowModel(hf)
    pairs, items = some_pairs(3), sets_of_nodes(model, slow)
    source = Source(patch_with, noise_seeds=2)
    done: list[int] = []
    whole = patch_nodes(model, pairs, items, patch_with=source)
    in_parts = patch_nodes(
        model,
        pairs,
        items,
        batch_size=batch_size,
        patch_with=source,
        progress=lambda _, n, total: done.append(n),
    )
    torch.testing.assert_close(in_parts.effects, whole.effects, rtol=1e-4, atol=2e-5)
    assert sum(done) == len(items) * len(pairs) * source.n_draws
    backwards = patch_nodes(model, pairs, items[::-1], patch_with=source)
    torch.testing.assert_close(backwards.effects.flip(0), whole.effects, rtol=1e-4, atol=2e-5)


def of_two_lengths() -> tuple[PromptPairs, PromptPairs, PromptPairs]:
    """One long pair, two short ones, and all three as one."""
    short, long = some_pairs(), some_pairs(1, n_pos=N_POS + 2, seed=1)

    def padded(tokens: Tensor) -> Tensor:
        return torch.nn.functional.pad(tokens, (0, 2), value=-1)

    mixed = PromptPairs(
        torch.cat([long.clean, padded(short.clean)]),
        torch.cat([long.corrupted, padded(short.corrupted)]),
        torch.cat([long.answers, short.answers]),
        torch.cat([long.wrong, short.wrong]),
    )
    return long, short, mixed


def test_prompts_of_several_lengths_are_never_padded(twins: tuple[Model, SlowModel]) -> None:
    model, slow = twins
    long, short, mixed = of_two_lengths()
    items = sets_of_nodes(model, slow)
    expected = [slow_effects(slow, pairs, items, "noising") for pairs in (long, short)]
    found = patch_nodes(model, mixed, items)
    assert_equal_effects(found.effects, torch.cat(expected, 1))


# ---- sources


@pytest.mark.parametrize("positions", ["each", "sum"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_noise_is_averaged_over_its_seeds(
    twins: tuple[Model, SlowModel], direction: str, positions: str
) -> None:
    model, slow = twins
    pairs = some_pairs()
    names = [name for name in all_nodes(model, positions).names if ".n" not in name]
    names += ["m0.n1", "m1.n2@2"]
    draws = [
        slow_effects(slow, pairs, [[name] for name in names], direction, noised(slow, pairs, seed))
        for seed in range(SEEDS)
    ]
    assert float((draws[0] - draws[1]).abs().max()) > 0.1
    source = Source("noise", noise_scale=SCALE, noise_seeds=SEEDS)
    found = patch_nodes(model, pairs, names, direction=direction, patch_with=source)
    assert_equal_effects(found.effects, torch.stack(draws).mean(0))
    one = patch_nodes(
        model,
        pairs,
        names,
        direction=direction,
        patch_with=Source("noise", noise_scale=SCALE, noise_seeds=1),
    )
    assert_equal_effects(one.effects, draws[0])


def test_noise_of_a_pair_does_not_depend_on_its_neighbours() -> None:
    model = tiny.model("gpt2")
    long, short, mixed = of_two_lengths()
    source = Source("noise", noise_seeds=2)
    names = ["input", "a0.h1<k>", "m1"]
    together = patch_nodes(model, mixed, names, patch_with=source).effects
    # The long pair is the first of both, and draws the same noise.
    alone = patch_nodes(model, long, names, patch_with=source).effects
    torch.testing.assert_close(together[:, :1], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(patch_nodes(model, mixed, names, patch_with=source).effects, together)
    with_short = patch_nodes(model, short, names, patch_with=source).effects
    assert not torch.allclose(together[:, 1:], with_short, atol=1e-2)  # other rows, other noise


@pytest.mark.parametrize("kind_of_mean", ["mean", "mean-by-position"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["of the pairs", "of other pairs"])
def test_means_equal_the_slow_model(
    twins: tuple[Model, SlowModel], kind_of_mean: Any, elsewhere: bool
) -> None:
    model, slow = twins
    pairs = some_pairs()
    data = some_pairs(4, seed=3) if elsewhere else pairs
    names = [name for name in all_nodes(model).names if ".n" not in name]
    names += ["a0.h1", slow.slot_name(1, "k", 0), "m0.n1", "m1.n2@2", "r1"]
    like = slow.values(slow.embed(pairs.clean))
    by_position = kind_of_mean == "mean-by-position"
    expected = slow_effects(
        slow, pairs, [[name] for name in names], "noising", means(slow, data, like, by_position)
    )
    source = Source(kind_of_mean, mean_over=data if elsewhere else None)
    assert_equal_effects(patch_nodes(model, pairs, names, patch_with=source).effects, expected)


def test_a_mean_over_prompts_of_several_lengths_counts_tokens(
    twins: tuple[Model, SlowModel],
) -> None:
    model, slow = twins
    pairs, data = some_pairs(), of_two_lengths()[2]
    names = ["input", "a0.h1", "m0", "m0.n1@2", "r1@3"]
    like = slow.values(slow.embed(pairs.clean))
    expected = slow_effects(
        slow, pairs, [[name] for name in names], "noising", means(slow, data, like, False)
    )
    source = Source("mean", mean_over=data)
    assert_equal_effects(patch_nodes(model, pairs, names, patch_with=source).effects, expected)
    mixed = of_two_lengths()[2]  # the pairs may be of several lengths, too
    found = patch_nodes(model, mixed, names, patch_with=source).effects[:, 1:]
    assert_equal_effects(found, expected)


def test_a_mean_over_one_pair_by_position_is_its_corrupted_run() -> None:
    model, pairs = tiny.model("neox"), some_pairs(1)
    names = all_nodes(model).names[::17]
    by_mean = patch_nodes(model, pairs, names, patch_with="mean-by-position").effects
    torch.testing.assert_close(
        by_mean, patch_nodes(model, pairs, names).effects, rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("positions", ["each", "sum"])
def test_zero_equals_the_slow_model(twins: tuple[Model, SlowModel], positions: str) -> None:
    model, slow = twins
    pairs = some_pairs()
    names = [name for name in all_nodes(model, positions).names if ".n" not in name]
    names += ["m0.n1", "m1.n2@2"]
    like = slow.values(slow.embed(pairs.clean))
    zeros = {name: torch.zeros_like(value) for name, value in like.items()}
    expected = slow_effects(slow, pairs, [[name] for name in names], "noising", zeros)
    found = patch_nodes(model, pairs, names, patch_with="zero")
    assert_equal_effects(found.effects, expected)


def test_patching_leaves_the_model_as_it_was() -> None:
    model, pairs = tiny.model("gpt2"), some_pairs()
    weight = next(model.bridge.parameters()).requires_grad_(True)
    check_pairs(model, pairs)  # the bridge puts hooks of its own where its first run needs them
    before = hooks_on(model.bridge)
    for patch_with in KINDS:
        effects = patch_nodes(model, pairs, ["m0.n3", "a1.h1<k>"], patch_with=patch_with).effects
        assert not effects.requires_grad
    assert weight.requires_grad
    assert hooks_on(model.bridge) == before


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"patch_with": "random"},
            "unknown source of patched values 'random'; there are corrupted, mean, mean-by-pos",
        ),
        ({"direction": "up"}, "unknown direction 'up'; there are noising, denoising"),
        ({"metric": "fidelity"}, "unknown metric 'fidelity'"),
        *(
            (
                {"patch_with": source, "direction": "denoising"},
                f"denoising puts clean values into a corrupted run, and {source} patching has no",
            )
            for source in ("mean", "mean-by-position", "zero")
        ),
    ],
)
def test_unknown_and_contradictory_options_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        patch_nodes(tiny.model("gpt2"), some_pairs(), ["m0"], **options)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_scale": 0.0},
        {"noise_scale": -1.0},
        {"noise_scale": float("inf")},
        {"noise_scale": float("nan")},
        {"noise_seeds": 0},
    ],
)
def test_impossible_noise_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a noise scale above 0 and at least one seed, got"):
        Source("noise", **options)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_noise_on_pairs_that_do_not_differ_is_refused(direction: str) -> None:
    pairs = some_pairs(3)
    corrupted = pairs.corrupted.clone()
    corrupted[[0, 2]] = pairs.clean[[0, 2]]
    same = PromptPairs(pairs.clean, corrupted, pairs.answers, pairs.wrong)
    with pytest.raises(InputError, match="they are the same in 2 rows: 1, 3; say what matters"):
        patch_nodes(tiny.model("gpt2"), same, ["m0"], direction=direction, patch_with="noise")


def test_a_mean_by_position_of_other_lengths_is_refused() -> None:
    model, pairs = tiny.model("gpt2"), some_pairs()
    long, _, mixed = of_two_lengths()
    for given, data in ((mixed, None), (pairs, mixed), (pairs, long)):
        source = Source("mean-by-position", mean_over=data)
        with pytest.raises(InputError, match="needs prompts of one length, .* got lengths 5, 7"):
            patch_nodes(model, given, ["m0"], patch_with=source)


def test_a_mean_over_prompts_the_model_cannot_run_is_refused() -> None:
    pairs = some_pairs()
    strange = PromptPairs(
        pairs.clean, pairs.corrupted + tiny.VOCABULARY, pairs.answers, pairs.wrong
    )
    with pytest.raises(InputError, match="expected tokens below 50, the vocabulary"):
        patch_nodes(tiny.model("gpt2"), pairs, ["m0"], patch_with=Source("mean", mean_over=strange))


def test_unknown_nodes_are_refused_with_the_nearest() -> None:
    pairs = some_pairs()
    with pytest.raises(InputError, match="unknown node 'a0.h9' in a model of 3 layers.* a0.h"):
        patch_nodes(tiny.model("gpt2"), pairs, ["m0", "a0.h9"])
    with pytest.raises(InputError, match="unknown node 'm0.n128' .* 128 neurons"):
        patch_nodes(tiny.model("gpt2"), pairs, [["m0", "m0.n128"]])
    with pytest.raises(InputError, match="unknown node 'a0.h1<k>'.*did you mean.* a0.kv1<"):
        patch_nodes(tiny.model("llama-gqa"), pairs, ["a0.h1<k>"])
    with pytest.raises(InputError, match="unknown node 'a0.kv1<k>'"):
        patch_nodes(tiny.model("gpt2"), pairs, ["a0.kv1<k>"])


def test_positions_outside_a_prompt_are_refused() -> None:
    model = tiny.model("gpt2")
    assert patch_nodes(model, some_pairs(), ["m0@4"]).effects.any()
    message = "positions below 5, the length of the shortest prompt, got position {}; give prompts"
    for pairs, position in ((some_pairs(), 5), (of_two_lengths()[2], 6)):
        with pytest.raises(InputError, match=message.format(position)):
            patch_nodes(model, pairs, ["m0", ["m1", f"a0.h1<q>@{position}"]])


def test_an_effect_that_is_not_finite_names_node_and_pair() -> None:
    pairs = some_pairs()

    def broken(logits: Tensor, targets: Targets) -> Tensor:
        second = targets.answers[:, 0] == pairs.answers[1, 0]
        return torch.where(second, torch.nan, logits[:, 0])

    with pytest.raises(WiremapError, match=r"effect of m0 \+ m1@2 on pair 2 is not finite"):
        patch_nodes(tiny.model("gpt2"), pairs, [["m0", "m1@2"], "m2"], metric=broken)


def test_means_survive_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(4)
    expected = patch_nodes(model, pairs, ["a0.h1"], patch_with="mean").effects
    double, calls = torch.Tensor.double, 0

    def fails_once(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("out of memory")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "double", fails_once)
    found = patch_nodes(model, pairs, ["a0.h1"], patch_with="mean").effects
    assert calls > 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
