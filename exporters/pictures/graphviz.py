"""Pictures of DOT, drawn by the ``dot`` program of Graphviz (https://graphviz.org).

Keep and lose what DOT does. Where ``dot`` takes too long to place the nodes, they are put into
plain rows. SVG follows the reader's light or dark scheme. The same circuit gives the same bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable

from ...circuits.result.circuit import Circuit
from ...edges.errors import WiremapError
from ..format import Content, Format
from .dot import to_dot
from .palette import NEGATIVE, POSITIVE
from .shown import CHOICES, View

# What becomes of each colour where the reader prefers a dark scheme.
_DARK = {
    POSITIVE: "#74b3ec",
    NEGATIVE: "#ff8f86",
    "#ececec": "#3a3d42",
    "#e6f0e2": "#2c4229",
    "#e4ecf7": "#26384f",
    "#f7edd8": "#4a3c1d",
    "#efe6f3": "#43304c",
    "#f6f6f6": "#2b2e33",
    "white": "#15181c",
    "#667788": "#93a4b5",
    "#cccccc": "#5a5f66",
}


RENDER_SECONDS = 30
"""How long ``dot`` may take for one picture, before nodes are put into plain rows instead."""


_NO_VIEW = View()


class TooSlowError(WiremapError):
    """``dot`` took longer than RENDER_SECONDS."""


def draw(circuit: Circuit, kind: str, view: View = _NO_VIEW) -> bytes:
    """A picture of the circuit: ``svg``, ``png`` or ``pdf``.

    Raises:
        WiremapError: ``dot`` is not installed, fails, or takes longer than RENDER_SECONDS even
            for nodes that are placed already.
    """
    try:
        picture = render(to_dot(circuit, view), kind)
    except TooSlowError:
        picture = render(to_dot(circuit, view, placed=True), kind)
    if kind == "pdf":  # the time it was made would make every file another
        return re.sub(rb"(?<=/CreationDate \(D:)[0-9]{14}", b"19700101000000", picture)
    return _with_dark_scheme(picture) if kind == "svg" else picture


def render(dot: str, kind: str) -> bytes:
    """A picture of DOT text: ``svg``, ``png`` or ``pdf``.

    Raises:
        TooSlowError: ``dot`` takes longer than RENDER_SECONDS.
        WiremapError: it is not installed, or fails.
    """
    program = shutil.which("dot")
    if program is None:
        raise WiremapError(
            f"no {kind} picture: the dot program of Graphviz is not installed; install it "
            "(apt install graphviz, brew install graphviz), or open the DOT file elsewhere"
        )
    command = [program, f"-T{kind}", *(["-Gdpi=160"] if kind == "png" else [])]
    try:
        drawn = subprocess.run(
            command,
            input=dot.encode(),
            capture_output=True,
            timeout=RENDER_SECONDS,
            env={**os.environ, "TZ": "UTC"},  # PDF says in which time zone it was made
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TooSlowError(
            f"no {kind} picture: dot took longer than {RENDER_SECONDS} s; draw fewer edges "
            "(a smaller --top, View(top=...)), or open the DOT file elsewhere"
        ) from None
    if drawn.returncode != 0:
        reason = drawn.stderr.decode(errors="replace").strip()
        raise WiremapError(f"no {kind} picture: dot failed with: {reason:.300}")
    return drawn.stdout


def _with_dark_scheme(svg: bytes) -> bytes:
    """The picture with a style sheet for readers who prefer a dark scheme."""
    # Graphviz writes colours as attributes, which a style sheet overrides: rules by attribute and
    # value change each of them wherever it is used.
    rules = "".join(
        f'[{what}="{light}"]{{{what}:{dark}}}'
        for light, dark in _DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}text{{fill:#e8e8e8}}}}</style>"
    head, start, rest = svg.partition(b"<svg")
    tag, end, body = rest.partition(b">")
    return head + start + tag + end + style.encode() + body


def _picture(kind: str, signs: Callable[[Content], bool], called: str) -> Format:
    return Format(
        kind,
        f".{kind}",
        "diagram; needs the dot program of Graphviz",
        encode=lambda circuit, view: draw(circuit, kind, view),
        signs=signs,
        called=called,
        shows=CHOICES,
    )


FORMATS = (
    _picture(
        "svg",
        lambda content: content.start.startswith("<") and "<svg" in content.start,
        "an SVG picture",
    ),
    _picture("png", lambda content: content.start.startswith("\x89PNG"), "a PNG picture"),
    _picture("pdf", lambda content: content.start.startswith("%PDF"), "a PDF"),
)
