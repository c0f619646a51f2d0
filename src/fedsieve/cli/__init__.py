"""The command line ``fedsieve``, one file per command."""

from fedsieve.cli.app import app, main

__all__ = ["app", "main"]
