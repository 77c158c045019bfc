"""Spaces between prompts and answers, which change the tokens that a model sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import SpaceWarning, WiremapWarning, name_rows
from ..model.tokens import Tokenizer

_SPACES = " \t\u00a0"


def shown_tokens(tokenizer: Tokenizer, tokens: Sequence[int], most: int | None = None) -> str:
    """Tokens parted by ``|``, the last of them only; spaces and ends of lines show."""
    last = list(tokens if most is None else tokens[-most:])
    # As JSON has them, so that an end of line shows.
    texts = (json.dumps(tokenizer.decode(token), ensure_ascii=False)[1:-1] for token in last)
    return ("...|" if len(last) < len(tokens) else "") + "|".join(texts)


def with_space(tokenizer: Tokenizer, clean: str, text: str) -> str:
    """A word on an answer that is one token with a space in front; empty if it is not."""
    if text[:1].isspace():
        return ""
    prompt, spaced = clean.rstrip(_SPACES), f" {text}"
    if prompt[-1:].isdigit() and text[:1].isdigit():
        return ""  # the rest of a number
    added = tokenizer.continuations([prompt], [spaced])[0]
    if added is None or len(added) != 1 or added[0] == tokenizer.unknown:
        return ""
    take_off = "" if prompt == clean else "take the space off the prompt and "
    return f"; {take_off}write {spaced!r}, which is one token"


def uneven_ends(tokenizer: Tokenizer, record: Mapping[str, Any]) -> str:
    """Whether one prompt alone ends with a space, or begins with BOS twice: a likely cause."""
    prompts = {name: record.get(name) for name in ("clean", "corrupted")}
    texts = {name: text for name, text in prompts.items() if isinstance(text, str)}
    spaced = [name for name, text in texts.items() if text[-1:] in tuple(_SPACES)]
    bos = tokenizer.bos_text
    twice = [name for name, text in texts.items() if bos and text.startswith(2 * bos)]
    causes = ((spaced, "ends with a space"), (twice, f"begins with {bos} twice"))
    return "".join(f" (the {names[0]} one {what})" for names, what in causes if len(names) == 1)


def note_spaces(
    tokenizer: Tokenizer,
    records: Mapping[int, Mapping[str, Any]],
    note: Callable[[str, type[WiremapWarning]], None],
) -> None:
    """Says which prompts end with a space, and which answers lack the one that words have.

    Both with the tokens as they are and as they would be. The second is a ``SpaceWarning``.
    """
    _note_trailing(tokenizer, records, note)
    _note_leading(tokenizer, records, note)
    _note_lacking(tokenizer, records, note)


def _note_trailing(
    tokenizer: Tokenizer,
    records: Mapping[int, Mapping[str, Any]],
    note: Callable[[str, type[WiremapWarning]], None],
) -> None:
    ending = [
        (row, record[name])
        for row, record in records.items()
        for name in ("clean", "corrupted")
        if isinstance(record.get(name), str) and record[name][-1:] in tuple(_SPACES)
    ]
    texts = [text for _, text in ending]
    given = tokenizer.encode(texts)
    without = tokenizer.encode([text.rstrip(_SPACES) for text in texts])
    # A tokenizer of words has no token for a space, and does not mind.
    differ = [place for place in range(len(texts)) if given[place] != without[place]]
    if not differ:
        return
    place = differ[0]
    rows = sorted({ending[each][0] for each in differ})
    answer = records[ending[place][0]].get("answer")
    answer = answer[0] if isinstance(answer, list) else answer
    shown, other = (f"{shown_tokens(tokenizer, ids, 3)}" for ids in (given[place], without[place]))
    if isinstance(answer, str):
        bare = answer.lstrip()
        shown, other = (
            shown_tokens(tokenizer, tokenizer.encode([text])[0], 4)
            for text in (texts[place] + answer, f"{texts[place].rstrip(_SPACES)} {bare}")
        )
    note(
        f"prompts end with a space {name_rows(rows)}: with the answer the first is read as "
        f"{shown}; without the space, and one before the answer, as {other}. The models of most "
        "tokenizers have hardly seen the former: take the space off the prompts",
        WiremapWarning,
    )


def _note_leading(
    tokenizer: Tokenizer,
    records: Mapping[int, Mapping[str, Any]],
    note: Callable[[str, type[WiremapWarning]], None],
) -> None:
    """Of two prompts one alone begins with a space: a table with spaces after its commas."""
    rows = [
        row
        for row, record in records.items()
        if isinstance(record.get("corrupted"), str)
        and record["clean"][:1].isspace() != record["corrupted"][:1].isspace()
    ]
    if not rows:
        return
    texts = [records[rows[0]][name] for name in ("clean", "corrupted")]
    encoded = tokenizer.encode(texts)
    if encoded == tokenizer.encode([text.lstrip() for text in texts]):
        return
    clean, corrupted = (shown_tokens(tokenizer, ids[:4]) for ids in encoded)
    note(
        f"one prompt begins with a space and the other does not {name_rows(rows)}: the first are read "
        f"as {clean}|... and {corrupted}|...; take the space off, or give both one",
        WiremapWarning,
    )


def _note_lacking(
    tokenizer: Tokenizer,
    records: Mapping[int, Mapping[str, Any]],
    note: Callable[[str, type[WiremapWarning]], None],
) -> None:
    lacking = [
        (row, record["clean"], text)
        for row, record in records.items()
        for name in ("answer", "wrong_answer")
        for text in _texts(record.get(name))
        if _joined(record["clean"], text)
    ]
    cleans = [clean for _, clean, _ in lacking]
    bare = tokenizer.continuations(cleans, [text for *_, text in lacking])
    spaced = tokenizer.continuations(cleans, [f" {text}" for *_, text in lacking])
    differ = [
        place
        for place, (without, other) in enumerate(zip(bare, spaced, strict=True))
        if without != other
        and other is not None
        and len(other) == 1
        and other[0] != tokenizer.unknown
    ]
    if not differ:
        return
    _, clean, text = lacking[differ[0]]
    rows = sorted({lacking[each][0] for each in differ})
    shown, other = (
        shown_tokens(tokenizer, tokenizer.encode([clean + answer])[0], 3)
        for answer in (text, f" {text}")
    )
    note(
        f"answers without the space that words of their prompt have {name_rows(rows)}: with "
        f"{text!r} the first is read as {shown}, with {' ' + text!r} as {other}. If the space is "
        "meant, write it (--as-written silences this, or a filter of SpaceWarning)",
        SpaceWarning,
    )


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _joined(clean: str, text: str) -> bool:
    """Whether a word would be written on to the last one, in a prompt whose words are apart."""
    before, after = clean[-1:], text[:1]
    if not (before.isalnum() and after.isalnum()) or (before.isdigit() and after.isdigit()):
        return False
    return " " in clean.strip()
