"""The command line ``fedsieve``, one file per command."""

import os

# Large CPU tensors in huge pages: new ones cost a third of the time. Torch reads it once, at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from fedsieve.cli.app import app, main

__all__ = ["app", "main"]
