"""The command group, and what its errors look like."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

from ..edges.errors import InputError, WiremapError, WiremapWarning
from .console import forgiving_stderr, show_note

COMMANDS = {
    "discover": "discover",
    "score": "score",
    "verify": "verify",
    "evaluate": "evaluate",
    "scrub": "scrub",
    "export": "export",
    "view": "view",
    "compare": "compare",
    "validate": "validate",
    "tasks": "about",
    "models": "about",
    "schema": "about",
    "info": "about",
}
"""Every command, and the module of this package that has it, under the same name."""


class _BadInput(click.ClickException):
    exit_code = 2


def _show_notes() -> None:
    """From here on our warnings are notes on stderr; those of others stay as they are."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, WiremapWarning):
            show_note(str(message))
        else:
            others(message, category, *where, **more)

    # Python shows a warning once for each place, but every run has its own.
    warnings.simplefilter("always", WiremapWarning)
    warnings.showwarning = show


class _Group(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> Any:
        with forgiving_stderr():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            # Undone at the end, for programs that call this in their own process.
            with warnings.catch_warnings():
                _show_notes()
                return super().invoke(ctx)
        except InputError as error:
            # Caught first: it is a WiremapError, too, but exits with a code of its own.
            raise _BadInput(str(error)) from error
        except WiremapError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("wiremap"), prog_name="wiremap")
def main() -> None:
    """Find, prove and draw circuits in transformers.

    wiremap scores every connection between heads and MLPs, measures the best by path patching,
    prunes the rest and writes the circuit as a graph. Try: wiremap discover

    Exit codes: 0 done, 1 failed, 2 bad input.
    """


# Cheap: what is slow to import, these modules import inside their functions.
for _name, _module in COMMANDS.items():
    main.add_command(getattr(import_module(f".{_module}", __package__), _name))
