"""The errors wiremap raises.

    WiremapError              something failed              (command line: exit 1)
    └── InputError            what was given cannot be used (command line: exit 2; also a ValueError)

Every message says what was expected, what came, where, and what to do next. What went on all the
same, but not as one may think, is a WiremapWarning (command line: a note on stderr).
"""


class WiremapError(Exception):
    """Base class of every error wiremap raises on purpose."""


class InputError(WiremapError, ValueError):
    """A model, file, option or name that cannot be used as it is."""


class WiremapWarning(UserWarning):
    """Something worth knowing that is no error."""


class SpaceWarning(WiremapWarning):
    """Answers without the space that words of their prompt have (command line: --as-written)."""


from collections.abc import Sequence


def name_rows(rows: Sequence[int], next_step: str = "", most: int = 10) -> str:
    """``in 3 rows: 1, 4, 9 (do this)``, rows counted from 1, at most ``most`` of them listed."""
    listed = ", ".join(str(row + 1) for row in rows[:most]) + (", ..." if len(rows) > most else "")
    where = f"in row {listed}" if len(rows) == 1 else f"in {len(rows)} rows: {listed}"
    return f"{where}; {next_step}" if next_step else where
