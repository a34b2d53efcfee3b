"""The one exception that needs :mod:`subprocess`, and so has a module of its own: see :mod:`pycontainer.errors`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pycontainer.errors import ContainerError

if TYPE_CHECKING:
    from pycontainer.driver import ExitStatus

__all__ = ["ContainerExitError"]


class ContainerExitError(ContainerError, subprocess.CalledProcessError):
    """``run(check=True)``: the payload ended with a status other than 0.

    The attributes are those of :class:`subprocess.CalledProcessError` (cmd,
    returncode, output or stdout, stderr), and :attr:`status`, the
    :class:`~pycontainer.ExitStatus`.
    """

    def __init__(self, cmd: Sequence[str], status: ExitStatus, stdout: Any = None, stderr: Any = None) -> None:
        subprocess.CalledProcessError.__init__(self, status.returncode, list(cmd), stdout, stderr)
        self.status = status
        self.args = (self.cmd, status, stdout, stderr)  # of which it is made again when it is unpickled

    def __str__(self) -> str:
        return f"{self.cmd!r}: {self.status.reason}"


ContainerExitError.__module__ = "pycontainer.errors"
