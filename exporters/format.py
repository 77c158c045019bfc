"""What a file format is: each module of one defines its own, and ``registry`` collects them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..circuits.result.circuit import Circuit
from ..circuits.result.document import loads
from .pictures.shown import View


@dataclass(frozen=True)
class Content:
    """The text of a file, and what tells of which format it is."""

    text: str

    @cached_property
    def start(self) -> str:
        """Its first 2000 characters, less blanks in front."""
        return self.text.lstrip()[:2000]

    @cached_property
    def data(self) -> Any:
        """Its JSON data, parsed once. Raises InputError if it is none."""
        return loads(self.text)

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of its JSON object; none if it is something else."""
        # What does not begin as an object is not parsed: every file is asked for its keys, XML and
        # CSV too.
        document = self.data if self.start.startswith("{") else None
        return frozenset(document) if isinstance(document, dict) else frozenset()


def _never(content: Content) -> bool:
    return False


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        description: what opens it.
        encode: the content of a file of this format.
        decode: the circuit of such a content; None if it is not read back.
        signs: whether a content is of this format, which its first characters or its keys tell.
        called: what a file that is not read back is called where it is refused.
        loses: what of a circuit does not come back when the file is read; "" for nothing at all,
            None if it is not read back.
        shows: which choices of a ``View`` it heeds.
    """

    name: str
    extension: str
    description: str
    encode: Callable[[Circuit, View], bytes]
    decode: Callable[[Content], Circuit] | None = None
    signs: Callable[[Content], bool] = _never
    called: str = ""
    loses: str | None = None
    shows: tuple[str, ...] = ()
