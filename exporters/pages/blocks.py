"""The blocks that the report is made of: sections, lists, tables and figures, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...circuits.result.circuit import Circuit
from ...circuits.result.headline import headline, remarks
from ..pictures.labels import escaped, printable

# Hyphens are shorter than plus signs, and lines break after them.
_MINUS = str.maketrans("-", "\u2212")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Attributes:
        signs: a class for each row's cell in the column ``effect``.
        narrow: whether it is only as wide as it must be.
        words: columns of words; the first of them names the row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    signs: Sequence[str] = ()
    narrow: bool = False
    words: Sequence[int] = (1,)

    def html(self) -> str:
        """The table, in a frame that scrolls."""
        head = "".join(
            f'<th scope="col"{self._class(place)}>{escaped(name)}</th>'
            for place, name in enumerate(self.columns)
        )
        signs = self.signs or [""] * len(self.rows)
        lines = [self._row(row, sign) for row, sign in zip(self.rows, signs, strict=True)]
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        body = "\n".join(lines)
        return (
            f'<div class="scroll"><table{" class=narrow" if self.narrow else ""}>{caption}'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )

    def _row(self, row: Sequence[str], sign: str) -> str:
        cells = [
            # <bdi> keeps a name in a right-to-left script from turning the text around it.
            f'<th scope="row"{self._class(place, sign)}><bdi>{escaped(text)}</bdi></th>'
            if place == self.words[0]
            else f"<td{self._class(place, sign)}>{escaped(text)}</td>"
            for place, text in enumerate(row)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    def _class(self, column: int, sign: str = "") -> str:
        kind = sign if self.columns[column] == "effect" else ""
        kind = "words" if column in self.words else kind
        return f' class="{kind}"' if kind else ""


def headline_of(circuit: Circuit) -> str:
    """What is said first of a circuit, and under it what its figures do not agree in."""
    lines = [f'<p class="headline">{escaped(headline(circuit))}</p>']
    lines += [f'<p class="remark">{escaped(remark)}</p>' for remark in remarks(circuit)]
    return "".join(lines)


def section(name: str, content: str) -> str:
    """A section with a heading; nothing if there is nothing in it."""
    return f"<section><h2>{name}</h2>{content}</section>" if content else ""


def listed(items: Iterable[tuple[str, str]]) -> str:
    """Names with their values, which are text; those without a value are left out."""
    lines = [
        f"<dt>{escaped(name)}</dt><dd><bdi>{escaped(value)}</bdi></dd>"
        for name, value in items
        if printable(value)
    ]
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def count(number: int, word: str) -> str:
    """Such as ``1,234 edges``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def signed(value: float) -> str:
    """With its sign, to three digits."""
    return with_minus(f"{value:+.3g}")


def rounded(value: float) -> str:
    """To three places; large numbers to three digits."""
    return with_minus(f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}")


def with_minus(text: str) -> str:
    """The text with minus signs in the place of hyphens."""
    return text.translate(_MINUS)
