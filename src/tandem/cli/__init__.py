"""The commands a person types. `main` is the entry point of `tandem`."""

from tandem.cli.app import main

__all__ = ["main"]
