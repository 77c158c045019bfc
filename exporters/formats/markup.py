"""XML, written and read with care: legal characters only, and no document types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ...edges.errors import InputError

Value = str | bool | int | float


# What XML 1.0 cannot hold, not even as a character reference.
_ILLEGAL = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def content(value: Value) -> str:
    """A value as the text of an element."""
    return _escaped(value) if isinstance(value, str) else _number(value)


def attributes(**values: Value) -> str:
    """Values as the attributes of an element; ``_`` at the end of a name is left out."""
    return "".join(
        f" {name.rstrip('_')}={_quoted(value)}"
        if isinstance(value, str)
        else f' {name.rstrip("_")}="{_number(value)}"'
        for name, value in values.items()
    )


def _number(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # The shortest digits that are read back as the same number.
    return repr(value)


@lru_cache(maxsize=10_000)  # names and words come again and again
def _escaped(text: str) -> str:
    return escape(_ILLEGAL.sub("", text))


@lru_cache(maxsize=10_000)
def _quoted(text: str) -> str:
    return quoteattr(_ILLEGAL.sub("", text))


def parse(text: str, namespace: str, name: str) -> ElementTree.Element:
    """The root of an XML document.

    A document type is refused: entities may grow without bound, or name files and servers.

    Raises:
        InputError: not XML, one with a document type, or the root is not ``name`` in ``namespace``.
    """
    root = parse_any(text, name)
    if root.tag != f"{{{namespace}}}{name}":
        raise InputError(f"expected a {name} document of {namespace}, got {root.tag!r:.100}")
    return root


def parse_any(text: str, name: str = "XML") -> ElementTree.Element:
    """The root of any XML document without a document type. Raises InputError as ``parse``."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"expected {name} without a document type, got one; it is not read")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:  # ValueError: an unknown encoding
        raise InputError(f"expected XML: {error}") from None


def local(element: ElementTree.Element) -> str:
    """The name of an element, without its namespace."""
    return str(element.tag).rpartition("}")[2]


def children(element: ElementTree.Element, *names: str) -> Iterator[ElementTree.Element]:
    """The elements directly inside, each of which must be one of ``names``."""
    for child in element:
        if local(child) not in names:
            raise InputError(
                f"{local(element)}: expected {', '.join(names)} inside, got {local(child)!r:.60}"
            )
        yield child


def values(kind: str | None, text: str, where: str) -> Value:
    """The value of a text by the type its column declares.

    Raises:
        InputError: it is not of that type; or there is no such type.
    """
    word = text.strip()
    if kind == "string":
        return text
    if kind == "boolean" and word.lower() in ("true", "false", "1", "0"):
        return word.lower() in ("true", "1")
    if kind in ("int", "long", "integer") and re.fullmatch(r"-?[0-9]{1,20}", word):
        return int(word)
    # The pattern keeps out nan, inf and 1_0; float then refuses what passes it, such as 1.2.3.
    if kind in ("float", "double") and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", word):
        try:
            return float(word)
        except ValueError:
            pass
    raise InputError(
        f"{where}: expected a value of type {kind or '(none)'!r:.30}, got {text!r:.60}"
    )
