"""All edge scores at a glance: a picture of writers x readers, layers marked, as SVG.

One cell for each writer (rows, the input on top) and reader (columns). Blue carries the behaviour,
red opposes it; the depth of a colour is the square root of the magnitude, so that small scores can
be seen beside large ones; grey is where no edge exists. The cells are one embedded PNG, so that a
million of them are as quick to open as a hundred.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from ...edges.names.graph import ModelGraph
from .palette import NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from numpy.typing import NDArray


_NO_EDGE = (0xE4, 0xE4, 0xE4)


_LEFT, _TOP, _BELOW = 70.0, 64.0, 70.0


_FONT = "font-family='Helvetica, Arial, sans-serif'"


def to_heatmap(graph: ModelGraph, scores: NDArray[Any], title: str) -> str:
    """The picture of a table of scores, nan where no edge is; the same bytes every time."""
    n_rows, n_columns = scores.shape
    # Pixels: about 900 for all columns, 1 to 14 for each.
    cell = min(14, max(1, 900 // n_columns))
    width, height = cell * n_columns, cell * n_rows
    largest = _largest(scores)
    columns = [
        ("logits" if reader.kind == "logits" else f"layer {reader.layer}", reader.kind)
        for reader in graph.readers
    ]
    rows = ["input" if writer.layer < 0 else f"layer {writer.layer}" for writer in graph.writers]
    full_width, full_height = max(_LEFT + width + 60, 520.0), _TOP + height + _BELOW
    png = base64.b64encode(_png(_pixels(scores, largest, cell))).decode()
    lines = [
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{full_width:.0f}' "
            f"height='{full_height:.0f}' viewBox='0 0 {full_width:.0f} {full_height:.0f}' {_FONT}>"
        ),
        "<rect width='100%' height='100%' fill='white'/>",
        _text((_LEFT, 20.0), title, 14, anchor="start"),
        _text((_LEFT, 38.0), "rows write, columns read", 11, anchor="start", fill="#555"),
        (
            f"<image x='{_LEFT:.0f}' y='{_TOP:.0f}' width='{width}' height='{height}' "
            f"preserveAspectRatio='none' style='image-rendering:pixelated' "
            f"href='data:image/png;base64,{png}'/>"
        ),
        *_columns(columns, cell, height),
        *_rows(rows, cell, width),
        *_legend(largest, _TOP + height + 44),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _largest(scores: NDArray[Any]) -> float:
    import numpy

    return float(numpy.nanmax(numpy.abs(scores)))


def _pixels(scores: NDArray[Any], largest: float, cell: int) -> NDArray[Any]:
    """Colours by score. ``[writer * cell, reader * cell, 3]``"""
    import numpy

    # [writer reader 1]
    depth = numpy.sqrt(numpy.abs(numpy.nan_to_num(scores)) / (largest or 1.0))[..., None]
    # [writer reader rgb]
    of_sign = numpy.where(numpy.nan_to_num(scores)[..., None] >= 0, _rgb(POSITIVE), _rgb(NEGATIVE))
    # White at 0, the sign's full colour at the largest.
    pixels = 255 + depth * (of_sign - 255)
    pixels[numpy.isnan(scores)] = _NO_EDGE
    # As many pixels as it is drawn with: not all programs know how to leave cells sharp.
    return pixels.round().astype(numpy.uint8).repeat(cell, 0).repeat(cell, 1)


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[place : place + 2], 16) for place in (1, 3, 5))


def _png(pixels: NDArray[Any]) -> bytes:
    """A PNG (https://www.w3.org/TR/png-3/) of 8-bit colours."""
    height, width = pixels.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        # The length is not part of what is checked.
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    # Every line begins with the number of its filter, 0 for none.
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    # 8 bits a channel, colours of kind 2 (RGB), not interlaced.
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def _columns(columns: Sequence[tuple[str, str]], cell: int, height: int) -> list[str]:
    """Lines between layers, their names above, and q, k, v, mlp below where there is room."""
    lines: list[str] = []
    x = _LEFT
    for layer, members in groupby(columns, key=lambda column: column[0]):
        kinds = [kind for _, kind in members]
        lines.append(_line(x, _TOP - 6, x, _TOP + height))
        if cell * len(kinds) > 40:
            lines.append(_text((x + cell * len(kinds) / 2, _TOP - 10), layer, 11))
        start = x
        # In a layer all queries stand together, then all keys, all values, and the MLP.
        for kind, slots in groupby(kinds):
            n_slots = len(list(slots))
            if cell * n_slots > 10 and kind != "logits":
                middle = start + cell * n_slots / 2
                lines.append(_text((middle, _TOP + height + 14), kind[:3], 10))
            start += cell * n_slots
        x += cell * len(kinds)
        if layer == "logits":
            lines.append(_text((x + 4, _TOP + 10), "logits", 11, anchor="start"))
    return lines


def _rows(rows: Sequence[str], cell: int, width: int) -> list[str]:
    lines: list[str] = []
    y = _TOP
    for layer, members in groupby(rows):
        n_members = len(list(members))
        lines.append(_line(_LEFT - 6, y, _LEFT + width, y))
        if cell * n_members > 9:
            middle = y + cell * n_members / 2 + 4
            lines.append(_text((_LEFT - 10, middle), layer, 11, anchor="end"))
        y += cell * n_members
    return lines


def _legend(largest: float, y: float) -> list[str]:
    """Squares from the most negative to the most positive score, with their values."""
    shares = (-1.0, -0.25, -0.04, 0.0, 0.04, 0.25, 1.0)
    lines: list[str] = []
    for place, share in enumerate(shares):
        color = NEGATIVE if share < 0 else POSITIVE
        x = _LEFT + 62 * place
        opacity = abs(share) ** 0.5
        lines += [
            (
                f"<rect x='{x:.1f}' y='{y - 12:.1f}' width='58' height='10' fill='{color}' "
                f"fill-opacity='{opacity:.2f}' stroke='#999' stroke-width='0.5'/>"
            ),
            _text((x + 29, y + 12), f"{share * largest:+.3g}", 10),
        ]
    return lines


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f"<path d='M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}' stroke='#888' stroke-width='0.6' "
        "fill='none'/>"
    )


def _text(
    at: tuple[float, float], text: str, size: int, *, anchor: str = "middle", fill: str = "#222"
) -> str:
    text = "".join(char for char in text if char.isprintable())  # XML has no control characters
    return (
        f"<text x='{at[0]:.1f}' y='{at[1]:.1f}' font-size='{size}' text-anchor='{anchor}' "
        f"fill='{fill}'>{escape(text)}</text>"
    )
