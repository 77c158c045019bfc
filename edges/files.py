"""Reading and writing files: whole or not at all, and in words one can act on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import InputError


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is there whole or not at all.

    Raises:
        InputError: the place cannot be written to.
    """
    write_parts_atomically(path, [content])


def write_parts_atomically(path: Path, parts: Iterable[str | bytes]) -> None:
    """Writes a file part by part, so that it is there whole or not at all.

    Raises:
        InputError: the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part.encode() if isinstance(part, str) else part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose another place or make room"
        ) from error
