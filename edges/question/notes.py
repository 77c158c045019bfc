"""What is worth knowing of prompt pairs that were read: how, token ids, BOS."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import WiremapWarning
from ..model.tokens import Tokenizer
from ..names.vocabulary import BOS_TEXTS
from .columns import OWN
from .entries import Entries
from .faults import Faults
from .spaces import shown_tokens


def note(text: str, category: type[WiremapWarning] = WiremapWarning) -> None:
    """A warning, which the command line shows as a note."""
    warnings.warn(text, category, stacklevel=2)


def note_left_out(faults: Faults) -> None:
    """Says how many rows are left out, by cause."""
    causes = "; ".join(f"{len(rows)}: {what}" for what, rows in faults.by_kind().items())
    note(f"{len(faults.found)} of {faults.n_rows} pairs are left out ({causes})")


def note_shape(shape: str, entries: Entries) -> None:
    """Says what a file was taken for, and which columns were, where their names say another."""
    said = [f"read as {shape}"] if shape else []
    said += [f"{name} from the column {given}" for name, given in entries.columns.renamed.items()]
    said += entries.columns.unused
    if entries.lists_of_python:
        said.append("lists in cells as Python prints them")
    if said:
        note(f"prompt pairs: {', '.join(said)}")


def note_ids(tokenizer: Tokenizer, records: Mapping[int, Mapping[str, Any]]) -> None:
    """Says what is given as token ids, and what the first of them spell."""
    said: list[str] = []
    for name in OWN:
        given = [row for row, record in records.items() if f"{name}_ids" in record]
        if given:
            ids = records[given[0]][f"{name}_ids"]
            shown = shown_tokens(tokenizer, ids, 8)
            said.append(f"{name} ({len(given)} pairs; in row {given[0] + 1} {ids[-8:]} is {shown})")
    if said:
        note(f"taken as token ids: {', '.join(said)}")
    prompts = [record["clean_ids"] for record in records.values() if "clean_ids" in record]
    bare = sum(not tokenizer.starts(prompt) for prompt in prompts)
    if bare and tokenizer.bos:
        note(
            f"{bare} of {len(prompts)} prompts given as token ids do not begin with the BOS token "
            f"{tokenizer.bos_text!r}, as this model's prompts do; they are taken as they are"
        )


def note_bos(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Says how many prompts begin with BOS as text: once, twice, or another tokenizer's."""
    text_of = tokenizer.bos_text
    starts = tokenizer.begins_with_bos(texts)
    if any(starts):
        note(
            f"{sum(starts)} of {len(texts)} prompts begin with the BOS token {text_of!r} as "
            "text; they are not given a second"
        )
        twice = sum(tokenizer.begins_with_bos([text.removeprefix(text_of) for text in texts]))
        if twice:
            note(f"{twice} of {len(texts)} prompts begin with {text_of!r} twice; take one off")
    plain = tokenizer.without_bos()
    # What is one token was meant, whichever it is.
    foreign = [bos for bos in BOS_TEXTS if len(plain.encode([bos])[0]) > 1]
    taken = [bos for text in texts for bos in foreign if text.startswith(bos)]
    if taken:
        note(
            f"{len(taken)} of {len(texts)} prompts begin with {taken[0]!r}, which is no token of this "
            f"tokenizer: it is read as {shown_tokens(plain, plain.encode(taken[:1])[0])}; take it off"
        )
