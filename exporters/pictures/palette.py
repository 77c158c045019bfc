"""Colours of edges and nodes in every picture."""

from __future__ import annotations

POSITIVE = "#2166ac"


NEGATIVE = "#b2182b"


UNSCORED = "#6b6b6b"


COLOR = {"positive": POSITIVE, "negative": NEGATIVE, "unscored": UNSCORED}
"""Of an edge by its sign (``sign_of``)."""


FAINT = "#999999"


FILL = {
    "input": "#ececec",
    "kv": "#e6f0e2",
    "head": "#e4ecf7",
    "attention": "#e4ecf7",
    "mlp": "#f7edd8",
    "logits": "#ececec",
    "group": "#efe6f3",
}


FILL_OF_SLOT = "#f6f6f6"
