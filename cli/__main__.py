"""``python -m wiremap.cli`` is the ``wiremap`` command."""

from .main import main

main(prog_name="wiremap")
