"""The words that options take, and what stands where an option is left out: each once. No torch.

The library, the command line, the report and the tests read them here. Under a list follows what
stands when nothing is said, mostly its singular (``READERS``, ``READER``).

Lists that grow with the code that serves them live there: the families of nodes in
``names.nodes.FAMILIES``, the built-in tasks in ``circuits.tasks``, the formats of files in
``exporters.registry.FORMATS``, and what makes a gradient rule of its name in ``scores.rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

# ---- which model, where, and on which pairs

MODEL = "ioi-mini"
N_PAIRS = 64
SEED = 0

SEARCH = "search"
HELD_OUT = "held-out"
PARTS = ("all", SEARCH, HELD_OUT)
"""Of a task's pairs: all, those a search may see, and those that judge what it finds."""
PART = "all"

WRONG_BESIDE: Mapping[str, tuple[str, ...]] = {
    "answer": ("wrong_answer",),
    "answers": ("wrong_answers",),
    "correct_answer": ("incorrect_answer",),
    "correct_answers": ("incorrect_answers",),
    "correct": ("incorrect", "wrong"),
    "clean_answer": ("patch_answer", "corrupted_answer", "corrupt_answer"),
    "clean_answers": ("patch_answers", "corrupted_answers", "corrupt_answers"),
    "clean_label": ("patch_label", "corrupted_label", "corrupt_label"),
    "target": ("wrong_target", "foil", "distractor"),
    "label": ("wrong_label", "patch_label", "corrupted_label", "corrupt_label"),
}
"""Columns of answers in files of prompt pairs, wiremap's first; each with that of the wrong ones."""

WRONG_IDS_BESIDE: Mapping[str, tuple[str, ...]] = {
    "answer_ids": ("wrong_answer_ids",),
    "answer_id": ("wrong_answer_id",),
    "answer_idx": ("wrong_answer_idx", "corrupted_answer_idx"),
    "answers_idx": ("wrong_answers_idx", "corrupted_answers_idx"),
    "correct_idx": ("incorrect_idx",),
    "correct_id": ("incorrect_id",),
    "correct_ids": ("incorrect_ids",),
    "clean_answer_idx": ("patch_answer_idx", "corrupted_answer_idx"),
}
"""The same of answers as token ids; EAP-IG's files have ``correct_idx`` and ``answers_idx``."""

PROMPT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "clean": (
        "clean",
        "clean_prompt",
        "clean_prefix",
        "clean_text",
        "clean_input",
        "clean_sentence",
        "original_prompt",
        "original",
        "prompt",
    ),
    "corrupted": (
        "corrupted",
        "corrupt",
        "corrupted_prompt",
        "corrupt_prompt",
        "patch_prompt",
        "counterfactual_prompt",
        "corrupted_prefix",
        "corrupt_prefix",
        "patch_prefix",
        "corrupted_text",
        "corrupt_text",
        "corrupted_input",
        "corrupt_input",
        "corrupted_sentence",
        "counterfactual",
        "corrupted_hard",
    ),
    "clean_ids": ("clean_ids", "clean_tokens", "clean_input_ids", "clean_token_ids"),
    "corrupted_ids": (
        "corrupted_ids",
        "corrupt_ids",
        "corrupted_tokens",
        "corrupt_tokens",
        "corrupted_input_ids",
        "corrupt_input_ids",
        "corrupted_token_ids",
    ),
}
"""What columns of prompts are called, wiremap's name first."""

RECORDS_UNDER = ("prompts", "pairs", "examples", "records", "rows", "data", "instances")
"""Where one JSON document has its records."""

SEPARATORS: Mapping[str, str] = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
"""What parts the columns of a table of prompt pairs."""

BOS_TEXTS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "<|startoftext|>")
"""How tokenizers spell the BOS token: at the start of a prompt it is that of some tokenizer."""

DEVICE = "auto"
DEVICES = ("auto", "cpu", "cuda", "mps")

DTYPES = ("float32", "float64", "bfloat16", "float16")
DTYPE = "float32"

KV = ("grouped", "per-query")
"""Readers of keys and values: one for each key-value head, or one for each query head it serves."""
GROUPED = "grouped"

WEIGHTS = ("score", "weight", "attribution", "importance")
"""Columns of an edge table, or attributes of a graph's edges, that are taken for scores."""

# ---- what is asked

METRICS = ("logit_diff", "log_prob", "prob_diff", "kl", "accuracy")
METRIC = "logit_diff"

DIRECTIONS = ("noising", "denoising")
DIRECTION = "noising"

# ---- how scores are made

GRADIENTS: Mapping[str, str] = {
    "clean": "at the clean run",
    "corrupted": "at the corrupted run",
    "both": "the mean of the two",
    "integrated": "the mean along the line between the two inputs (EAP-IG)",
    "graddrop": "at the run edited, each layer's write constant in turn: unsigned (AtP*)",
    "relevance": "LRP's rules in place of derivatives (RelP)",
    "gim": "softer softmax, gradients shared among factors (GIM)",
}
"""Gradient rules, each in a line."""

INTEGRATED = "integrated"
"""The rule for edges by default, and the one that has steps and a schedule."""

SCHEDULES = ("midpoint", "left")
"""Where ``integrated`` takes its gradients: the midpoints of equal parts, or their left ends."""
SCHEDULE = "midpoint"
STEPS = 5
"""Of ``integrated``: 10 rank hardly better, at twice the cost."""

READERS = ("linear", "exact", "exact-attention")
READER = "linear"

POSITIONS = ("sum", "each", "spans")
NODE_POSITIONS = ("sum", "each")
SUMMED = "sum"

EDGE_AGGREGATES = ("sum", "sum-of-abs")
"""Of an edge's scores by position: their sum, or the sum of their absolute values."""
EDGE_AGGREGATE = "sum"

NODE_AGGREGATES = ("abs-of-mean", "mean-of-abs")
"""|mean estimate| over pairs, the estimand's form, and mean |estimate|, the paper's eq. 5."""
NODE_AGGREGATE = "abs-of-mean"

NODES = ("heads", "mlps")
"""The families of nodes that are scored if none are named."""

Method = Literal["atp", "atp-qk", "atp-star"]
METHODS: tuple[Method, ...] = get_args(Method)

Baseline = Literal["iterative", "subsampling", "blocks", "hierarchical"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
BASELINE = "subsampling"
N_SUBSETS = 300
"""Subsets that ``subsampling`` draws."""

# ---- what is measured

MASK_STEPS = 4
"""Midpoints of the line from no edge to a circuit at which gradients by its mask are taken."""

Frozen = Literal["none", "heads", "all"]
FROZEN: tuple[Frozen, ...] = get_args(Frozen)
"""What keeps the edited run's values downstream of a reader."""
NOTHING = "none"

PatchKind = Literal["corrupted", "mean", "mean-by-position", "zero", "noise"]
PATCH_KINDS: tuple[PatchKind, ...] = get_args(PatchKind)
"""Where the values come from that patching puts in."""
OTHER_RUN = "corrupted"
NOISE_SCALE = 3.0
NOISE_SEEDS = 10

BUDGET: Mapping[str, int] = {"cpu": 200, "cuda": 50_000}
"""How many edges are verified if nothing says how many, by device; on others as on a CPU."""

BOUNDED = True
"""Whether what was not verified is bounded when nothing is said."""
BOUND_SUBSETS = 1000
PROBABILITY = 0.03
"""With which a subset has each node or edge."""
CONFIDENCE = 0.99
"""Of a bound on what was not measured."""

LOSS_PAIRS = 16
"""Over how many pairs, the first, it is measured what a circuit loses without an edge of it."""

# ---- what is set aside

HELD_OUT_SHARE = 0.25
"""The share of pairs of one's own that a circuit is judged on, and not found on."""
FEWEST_TO_HOLD_OUT = 8
"""Of fewer pairs of one's own none is set aside unless it is asked for."""
HELD_OUT_CONFIDENCE = 0.9
"""Of the interval of what a circuit is worth on them."""

# ---- what is kept

TARGET = 0.9
"""Faithfulness that a circuit shall reach when nothing else says what to keep."""

PRUNE = ("top", "greedy")
"""How a number of edges is chosen: the largest (by default), or from the logits backwards."""

# ---- what is tested

RESAMPLES = 1000
INTERVAL = 0.95
"""Of effects over resampled pairs."""

SCHEMES = ("together", "per-edge", "per-path")
SCHEME = "together"

OTHERS = ("any", "same-label", "paired")
OTHER = "any"
FEATURE = "feature:"
"""Before a column of the pairs file: other prompts agree with the clean one in that column."""

REPEATS = 10
RANDOM_CIRCUITS = 3
"""To compare a scrubbed circuit with, on the command line; a function makes none by default."""
MAX_TREE = 20_000
"""Copies of nodes that a tree may have before it is refused."""

# ---- what is drawn

QKV = ("merge", "nodes", "parallel")
COLLAPSE = ("qkv", "layers", "groups")
EDGES_DRAWN = 100
ROWS_SHOWN = 20

DOCUMENTS = ("circuit", "scrub")
"""What there is a JSON Schema of."""
