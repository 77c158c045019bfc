"""The command, as tests call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from wiremap.cli import main


def wiremap(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Result:
    """A command that must go through."""
    result = wiremap(*arguments)
    assert result.exit_code == 0, result.output
    return result


def told(*arguments: str | Path) -> Any:
    """What a command says as JSON."""
    return json.loads(done(*arguments, "--json").stdout)


def refused(*arguments: str | Path) -> str:
    """The error of a command that must exit with 2 and print nothing else; in one line."""
    result = wiremap(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())
