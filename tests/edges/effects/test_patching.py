"""Exact effects against the slow float64 model, every edge; and the theorems of patching."""

from __future__ import annotations

import pytest
import tiny
import torch
from comparing import assert_equal_effects
from slow import SlowModel
from torch import Tensor

from wiremap.edges import (
    InputError,
    Model,
    PromptPairs,
    WiremapError,
    patch_edges,
    patch_nodes,
    score_edges,
    score_nodes,
)
from wiremap.edges.effects.reduced import patch_together, run_edges
from wiremap.edges.question.metrics import Targets, logit_diff

DIRECTIONS = ("noising", "denoising")


def slow_effects(slow: SlowModel, pairs: PromptPairs, direction: str, amount: Tensor) -> Tensor:
    """Effects of the edits in the rows of ``amount [item writer reader]``, ``[item pair]``."""
    runs = (pairs.clean, pairs.corrupted)
    base, other = runs if direction == "noising" else runs[::-1]
    n_items, n_pairs = len(amount), len(pairs)
    edited = slow.edited(
        base.repeat(n_items, 1), other.repeat(n_items, 1), amount.repeat_interleave(n_pairs, 0)
    )
    targets = Targets(pairs.answers, pairs.wrong, torch.empty(n_pairs, 0))
    change = logit_diff(slow.run(base)[0], targets) - logit_diff(
        edited, targets.repeat(n_items)
    ).view(n_items, n_pairs)
    return change if direction == "noising" else -change


def one_hot(slow: SlowModel, items: list[list[tuple[str, str]]]) -> Tensor:
    amount = torch.zeros(len(items), len(slow.writers), len(slow.readers), dtype=torch.float64)
    for row, edges in enumerate(items):
        for writer, reader in edges:
            amount[row, slow.writers.index(writer), slow.readers.index(reader)] = 1
    return amount


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_edge_equals_the_slow_model(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs, direction: str
) -> None:
    model, slow = every_twins
    # All by noising; by denoising, which exchanges the runs, a third of them.
    some = slow.edges if direction == "noising" else slow.edges[::3]
    expected = slow_effects(slow, pairs, direction, one_hot(slow, [[edge] for edge in some]))
    names = [f"{writer}->{reader}" for writer, reader in some]
    found = patch_edges(model, pairs, names, direction=direction)
    assert found.names == tuple(names)
    assert_equal_effects(found.effects, expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_node_equals_the_slow_model(
    twins: tuple[Model, SlowModel], pairs: PromptPairs, direction: str
) -> None:
    """Patching a node is patching all of its outgoing edges at once, but for what they pass on."""
    model, slow = twins
    outgoing = [
        [(writer, reader) for reader in slow.readers if writer in slow.reads(reader)]
        for writer in slow.writers
    ]
    expected = slow_effects(slow, pairs, direction, one_hot(slow, outgoing))
    found = patch_nodes(model, pairs, slow.writers, direction=direction)
    assert_equal_effects(found.effects, expected)


def own_writers(slow: SlowModel, reader: str) -> list[str]:
    """What the node of a reader writes as."""
    layer, _, rest = reader.partition(".")
    if not rest:
        return [reader]
    node, slot = rest.rstrip(">").split("<")
    number = int(node.lstrip("khv"))
    heads = [
        head for head in range(slow.n_heads)
        if slow.slot_names(int(layer[1:]), head)["qkv".index(slot)]
        == slow.slot_name(int(layer[1:]), slot, number)
    ]  # fmt: skip
    return [f"{layer}.h{head}" for head in heads]


def slow_path(
    slow: SlowModel, pairs: PromptPairs, direction: str, names: list[str], frozen: str = "none"
) -> Tensor:
    """Effect of a path on each pair: every reader's input written out, a pair at a time or not."""
    runs = (pairs.clean, pairs.corrupted)
    base, other = runs if direction == "noising" else runs[::-1]
    (base_logits, base_writes), (_, other_writes) = slow.run(base), slow.run(other)
    writer, *readers = names
    carries = [[writer], *(own_writers(slow, reader) for reader in readers if reader != "logits")]

    def read(reader: str, writes: dict[str, Tensor]) -> Tensor:
        known = {name: base_writes[name] for name in writes}
        if reader in readers:
            place = readers.index(reader)
            now = other_writes if place == 0 else writes
            known |= {name: now[name] for name in carries[place]}
            return torch.stack(list(known.values())).sum(0)
        if readers[-1] == "logits":
            return torch.stack(list(known.values())).sum(0)
        layer = slow.layer_of(readers[-1])
        for name, write in writes.items():  # what is downstream of the last reader
            later = name[0] in "am" and slow.layer_of(name) >= layer
            live = {"none": later, "heads": later and name[0] == "m", "all": False}[frozen]
            if live or name in carries[-1]:
                known[name] = write
        return torch.stack(list(known.values())).sum(0)

    targets = Targets(pairs.answers, pairs.wrong, torch.empty(len(pairs), 0))
    change = logit_diff(base_logits, targets) - logit_diff(slow.run(base, read)[0], targets)
    return change if direction == "noising" else -change


@pytest.mark.parametrize(("direction", "frozen"), [("noising", "heads"), ("denoising", "all")])
def test_frozen_effects_equal_the_slow_model(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs, direction: str, frozen: str
) -> None:
    model, slow = every_twins
    some = slow.edges[::11]
    found = patch_edges(
        model, pairs, [f"{w}->{r}" for w, r in some], direction=direction, frozen=frozen
    )
    expected = torch.stack([slow_path(slow, pairs, direction, [*edge], frozen) for edge in some])
    assert_equal_effects(found.effects, expected, 0.1)
    unfrozen = patch_edges(model, pairs, found.names, direction=direction)
    assert float((unfrozen.effects - found.effects).abs().max()) > 0.05


def paths_of(slow: SlowModel) -> list[list[str]]:
    """Paths of two and three edges, by every kind of reader, on to the logits or not."""
    _, key, value = slow.slot_names(1, slow.n_heads - 1)
    paths = [
        ["input", "a0.h1<q>", "m1"],
        ["input", slow.slot_names(0, 1)[1], key],
        ["input", "m0", key, "logits"],
        ["m0", value, f"m{slow.n_layers - 1}", "logits"],
        ["a0.h1", "a1.h0<q>", "logits"],
    ]
    return [path for path in paths if not (slow.parallel and value in path and "m1" in path)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_paths_equal_the_slow_model(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs, direction: str
) -> None:
    model, slow = every_twins
    paths = paths_of(slow)
    expected = torch.stack([slow_path(slow, pairs, direction, path) for path in paths])
    found = patch_edges(model, pairs, ["->".join(path) for path in paths], direction=direction)
    scale = float(expected.abs().max())
    assert scale > 1e-3
    assert float((found.effects - expected).abs().max()) < 1e-4 * max(scale, 1.0)


def test_a_path_to_the_logits_is_its_edge_with_all_else_frozen(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    model, slow = every_twins
    edges = [f"{writer}->{reader}" for writer, reader in slow.edges if reader != "logits"][::5]
    frozen = patch_edges(model, pairs, edges, frozen="all").effects
    paths = patch_edges(model, pairs, [f"{edge}->logits" for edge in edges]).effects
    torch.testing.assert_close(paths, frozen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("direction", "first"), [("noising", 0), ("denoising", 3), ("noising", 6)])
def test_what_precedes_the_first_difference_need_not_be_run_again(
    twins: tuple[Model, SlowModel], pairs: PromptPairs, direction: str, first: int
) -> None:
    """With a difference at the first position nothing is spared, at the last nearly everything."""
    model, slow = twins
    corrupted = pairs.clean.clone()
    corrupted[:, first] = (corrupted[:, first] + 3) % tiny.VOCABULARY
    differing = PromptPairs(pairs.clean, corrupted, pairs.answers, pairs.wrong)
    some = slow.edges[::3]
    expected = slow_effects(slow, differing, direction, one_hot(slow, [[edge] for edge in some]))
    found = patch_edges(model, differing, [f"{w}->{r}" for w, r in some], direction=direction)
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert float((found.effects - expected).abs().max()) < 1e-4 * scale
    nodes = [writer for writer in slow.writers if writer != "input"]
    outgoing = [
        [(writer, reader) for reader in slow.readers if writer in slow.reads(reader)]
        for writer in nodes
    ]
    expected = slow_effects(slow, differing, direction, one_hot(slow, outgoing))
    found = patch_nodes(model, differing, nodes, direction=direction)
    assert float((found.effects - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_edges_patched_together_equal_the_slow_model(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs, direction: str
) -> None:
    model, slow = every_twins
    sets = [slow.edges[:1], slow.edges[::7], slow.edges[3::2], slow.edges]
    runs = (pairs.clean, pairs.corrupted)
    base, other = runs if direction == "noising" else runs[::-1]
    targets = Targets(pairs.answers, pairs.wrong, torch.empty(len(pairs), 0))
    expected = torch.stack(
        [
            logit_diff(slow.run(base)[0], targets)
            - logit_diff(slow.reduced(base, other, set(slow.edges) - set(some)), targets)
            for some in sets
        ]
    )
    expected = expected if direction == "noising" else -expected
    names = [[f"{writer}->{reader}" for writer, reader in some] for some in sets]
    found = patch_together(model, pairs, names, direction=direction)
    assert_equal_effects(found, expected)
    alone = patch_edges(model, pairs, names[0], direction=direction).effects
    torch.testing.assert_close(found[:1], alone, rtol=1e-4, atol=1e-4)


def test_pairs_without_a_difference_have_no_effects() -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs()
    same = PromptPairs(pairs.clean, pairs.clean, pairs.answers, pairs.wrong)
    names = ["input->a0.h1<q>", "a0.h1->m2", "m1->logits"]
    assert float(patch_edges(model, same, names).effects.abs().max()) < 1e-4


def test_patching_the_input_is_the_other_run(
    twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    model, _ = twins
    values = run_edges(model, pairs, [])
    for direction in DIRECTIONS:
        effect = patch_nodes(model, pairs, ["input"], direction=direction).effects[0]
        torch.testing.assert_close(effect, values.full - values.empty, rtol=1e-4, atol=1e-4)


def test_batches_change_nothing(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(5)
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()][::11]
    whole = patch_edges(model, pairs, names).effects
    for batch_size in (2, 7, 64):
        in_parts = patch_edges(model, pairs, names, batch_size=batch_size).effects
        torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=2e-5)


def test_a_batch_gives_what_its_pairs_give_alone() -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(3)
    names = ["input->a0.kv1<k>", "a0.h1->a1.h2<q>", "m0->a2.kv0<v>", "m2->logits"]
    together = patch_edges(model, pairs, names).effects
    for row in range(3):
        one = PromptPairs(
            pairs.clean[row : row + 1],
            pairs.corrupted[row : row + 1],
            pairs.answers[row : row + 1],
            pairs.wrong[row : row + 1],
        )
        alone = patch_edges(model, one, names).effects[:, 0]
        torch.testing.assert_close(alone, together[:, row], rtol=1e-4, atol=2e-5)


def test_effects_come_in_the_order_asked_for() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs()
    names = ["m2->logits", "input->a0.h0<q>", "a0.h1->m1"]
    forwards, backwards = patch_edges(model, pairs, names), patch_edges(model, pairs, names[::-1])
    torch.testing.assert_close(forwards.effects, backwards.effects.flip(0), rtol=1e-4, atol=1e-5)


def test_on_a_linear_model_scores_are_exact_and_directions_agree() -> None:
    model, pairs = tiny.linear_model(), tiny.pairs(4)
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    noising = patch_edges(model, pairs, names, direction="noising").effects
    denoising = patch_edges(model, pairs, names, direction="denoising").effects
    scores = score_edges(model, pairs, per_pair=True).per_pair
    assert scores is not None
    rows, columns = torch.tensor([model.graph.edge(name) for name in names]).T
    scale = float(noising.abs().max())
    assert scale > 0.5
    torch.testing.assert_close(noising, denoising, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(scores[:, rows, columns].T, noising, rtol=1e-3, atol=1e-4 * scale)
    large = noising.abs() > 1e-3 * scale
    assert large.float().mean() > 0.2
    assert torch.equal(noising[large].sign(), denoising[large].sign())


def test_on_a_linear_model_nodes_are_exact_too() -> None:
    model, pairs = tiny.linear_model(), tiny.pairs(4)
    names = [writer.name for writer in model.graph.writers]
    scores = score_nodes(model, pairs, "writers", per_pair=True).per_pair
    assert scores is not None
    for direction in DIRECTIONS:
        effects = patch_nodes(model, pairs, names, direction=direction).effects
        scale = float(effects.abs().max())
        torch.testing.assert_close(scores.T, effects, rtol=1e-3, atol=1e-4 * scale)


def test_standard_error() -> None:
    found = patch_edges(tiny.model("gpt2"), tiny.pairs(4), ["m2->logits"])
    effects = found.effects[0].double()
    expected = ((effects - effects.mean()).pow(2).sum() / 3).sqrt() / 2
    torch.testing.assert_close(found.standard_error()[0].double(), expected, rtol=1e-5, atol=1e-6)
    single = patch_edges(tiny.model("gpt2"), tiny.pairs(1), ["m2->logits"])
    assert single.standard_error().isnan().all()


def test_unknown_and_impossible_edges_are_refused() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs()
    with pytest.raises(InputError, match="unknown frozen 'mlps'; there are none, heads, all"):
        patch_edges(model, pairs, ["m0->logits"], frozen="mlps")
    with pytest.raises(InputError, match="a0.h1 is computed after|is computed after a0.h1<q>"):
        patch_edges(model, pairs, ["input->m1->a0.h1<q>"])
    with pytest.raises(InputError, match="unknown writer 'logits'"):
        patch_edges(model, pairs, ["input->logits->m1"])
    with pytest.raises(InputError, match="unknown writer 'a0.h7'"):
        patch_edges(model, pairs, ["a0.h7->logits"])
    with pytest.raises(InputError, match="does not exist in this model"):
        patch_edges(model, pairs, ["m1->a0.h0<q>"])
    with pytest.raises(InputError, match="unknown node 'logits'"):
        patch_nodes(model, pairs, ["logits"])


def test_an_effect_that_is_not_finite_names_edge_and_pair() -> None:
    def broken(logits: Tensor, targets: Targets) -> Tensor:
        return logits[:, 0] / 0

    with pytest.raises(WiremapError, match=r"effect of m0->logits on pair 1 is not finite"):
        patch_edges(tiny.model("gpt2"), tiny.pairs(), ["m0->logits"], metric=broken)


# ---- circuits: the model reduced to a set of edges


def test_all_edges_are_the_clean_run_and_no_edges_the_corrupted_run(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    model, slow = every_twins
    names = [f"{writer}->{reader}" for writer, reader in slow.edges]
    everything, nothing = run_edges(model, pairs, names), run_edges(model, pairs, [])
    torch.testing.assert_close(everything.circuit, everything.full, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nothing.circuit, nothing.empty, rtol=1e-5, atol=1e-5)
    assert float((everything.full - everything.empty).abs().max()) > 0.5


def test_circuits_equal_the_slow_model(
    every_twins: tuple[Model, SlowModel], pairs: PromptPairs
) -> None:
    model, slow = every_twins
    generator = torch.Generator().manual_seed(0)
    targets = Targets(pairs.answers, pairs.wrong, torch.empty(len(pairs), 0))
    for share in (0.1, 0.5, 0.9):
        chosen = torch.rand(len(slow.edges), generator=generator) < share
        kept = [edge for edge, keep in zip(slow.edges, chosen.tolist(), strict=True) if keep]
        expected = logit_diff(slow.reduced(pairs.clean, pairs.corrupted, set(kept)), targets)
        names = [f"{writer}->{reader}" for writer, reader in kept]
        found = run_edges(model, pairs, names, batch_size=2).circuit
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
