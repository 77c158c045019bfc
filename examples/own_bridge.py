"""A TransformerBridge of your own, prompt pairs of your own, and what wiremap makes of them.

python examples/own_bridge.py
"""

from __future__ import annotations

from pathlib import Path

import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

from wiremap.circuits import discover
from wiremap.edges import Model, PromptPairs, patch_nodes, score_nodes
from wiremap.edges.model.loading import bundled_path

# Any Hugging Face model that you loaded, trained or edited; here a bundled one.
name = bundled_path("ioi-mini")
weights = transformers.AutoModelForCausalLM.from_pretrained(name)
tokenizer = transformers.AutoTokenizer.from_pretrained(name)
bridge = build_bridge_from_module(weights, type(weights).__name__, hf_config=weights.config)

model = Model(bridge, "mine", tokenizer)  # leaves the bridge as it is
pairs = PromptPairs.read(Path(__file__).parent / "pairs.jsonl", model)

# Which heads, neurons and positions matter? AtP* estimates all at once, patching measures.
scores = score_nodes(model, pairs, ["heads", "neurons"], positions="each")
best = [node for node, _ in scores.top(5)]
for node, effect in zip(best, patch_nodes(model, pairs, best).mean(), strict=True):
    print(f"{node:12} {effect:+.2f} logits")

# How are they wired?
circuit = discover(model, pairs, budget=100)
print(f"{len(circuit.edges)} edges; {circuit.faithfulness}")
for source, target, slot in circuit.graph.edges(keys=True):
    print(f"{source} -> {target} {slot}")
