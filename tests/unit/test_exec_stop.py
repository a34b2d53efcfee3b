"""pycontainer._exec_stop: what keeps a tracer from looking is told as it is.

What it sees of containers is in tests/integration/test_receipt.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from typing import Any

import pytest

from pycontainer import _exec_stop
from pycontainer._exec_stop import ExecStop
from pycontainer.errors import SetupError


def test_no_descriptor_is_left_to_look_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, *_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with subprocess.Popen(["sh", "-c", "read line; exec true"], stdin=subprocess.PIPE) as process:
        with monkeypatch.context() as patch:
            patch.setattr(_exec_stop, "open", full, raising=False)
            with pytest.raises(SetupError) as caught:
                ExecStop(process.pid, lambda pid: pid).result()
        assert (caught.value.step, caught.value.errno) == ("watch the main process", errno.EMFILE)
        assert caught.value.path == f"/proc/{process.pid}/stat"
        process.communicate(b"\n", timeout=30)
    assert process.returncode == 0  # it went on
    assert not any(thread.name.startswith("exec-stop") for thread in threading.enumerate())
