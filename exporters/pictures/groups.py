"""Groups of nodes by the role they play, from a YAML file.

duplicate tokens: [a0.h1, a0.h10, a3.h0]
name movers: [a9.h6, a9.h9, a10.h0]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...edges.errors import InputError
from ...edges.files import read_text


def read_groups(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The names of nodes by role. Whether the model has them is checked when they are drawn.

    Raises:
        InputError: not YAML, or not a mapping from roles to lists of names.
    """
    import yaml

    try:
        # safe_load makes plain values, never objects that run code.
        roles: Any = yaml.safe_load(read_text(Path(path)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # Deep nesting ends in a RecursionError, a date that is none in a ValueError.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected YAML: {reason:.200}") from None
    if not isinstance(roles, dict) or not roles:
        raise InputError(
            f"{path}: expected roles with lists of nodes, such as 'name movers: [a9.h6, a9.h9]', "
            f"got {type(roles).__name__}"
        )
    for role, names in roles.items():
        # In YAML yes, 12 and ~ are no strings.
        if not isinstance(role, str) or not role.strip():
            raise InputError(
                f"{path}: expected names of roles, got {role!r:.60}; put it between quotes"
            )
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise InputError(
                f"{path}: {role:.60}: expected a list of nodes, such as [a9.h6, a9.h9], got "
                f"{names!r:.80}"
            )
    return {role: tuple(names) for role, names in roles.items()}
