"""The ``wiremap`` command: thin functions over the library. Heavy imports stay inside of them."""

from .main import main

__all__ = ["main"]
