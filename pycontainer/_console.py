"""What the verbs of the command line have in common when it comes to whoever sits at it."""

from __future__ import annotations

import argparse
import os
import sys

from pycontainer.errors import ContainerError

__all__ = ["check_terminal", "complain"]


def complain(error: Exception) -> None:
    """Print what *error* says, and its notes."""
    for line in (str(error), *getattr(error, "__notes__", ())):
        print("pycontainer:", line, file=sys.stderr)


def check_terminal(options: argparse.Namespace) -> None:
    """Raise ContainerError, as docker, for ``-it`` where there is nobody to type."""
    if options.interactive and getattr(options, "tty", False) and not os.isatty(0):
        raise ContainerError("--interactive and --tty: the input device is not a TTY")
