"""pycontainer.errors: what each of them carries, also through pickle."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys

import pytest

import pycontainer
from pycontainer.driver import ExitStatus
from pycontainer.errors import ContainerExitError, SetupError, WaitTimeoutError


def test_a_timeout_is_one_for_the_operating_system_too() -> None:
    error = WaitTimeoutError("box", 0.5, b"out", b"err")
    assert isinstance(error, TimeoutError)
    assert error.errno == errno.ETIMEDOUT
    assert error.strerror == "did not end within 0.5 s"
    assert error.filename is None
    assert str(error) == "container 'box' did not end within 0.5 s"


def test_check_is_that_of_subprocess() -> None:
    error = ContainerExitError(["job", "x"], ExitStatus(3, reason="exited with code 3"), b"out", b"err")
    assert isinstance(error, subprocess.CalledProcessError)
    assert isinstance(error, pycontainer.ContainerError)
    assert (error.cmd, error.returncode, error.output, error.stdout, error.stderr) == (
        ["job", "x"], 3, b"out", b"out", b"err",
    )  # fmt: skip
    assert str(error) == "['job', 'x']: exited with code 3"
    assert pycontainer.ContainerExitError is ContainerExitError


ERRORS = [
    WaitTimeoutError("box", 0.5, b"out", None),
    ContainerExitError(["job"], ExitStatus(None, 9, reason="killed"), "out", "err"),
    SetupError("execve", errno.ENOENT, "/x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pickle(error: Exception) -> None:
    error.extra = "kept"  # type: ignore[attr-defined]
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
    assert (getattr(other, "errno", None), other.args) == (getattr(error, "errno", None), error.args)


def test_subprocess_is_imported_only_for_the_one_that_needs_it() -> None:
    # Not by us: on Python 3.10 attrs imports platform, which does.
    program = "import sys, attrs; print('subprocess' in sys.modules); import pycontainer; pycontainer.run"
    program += "; pycontainer.ContainerError; print('subprocess' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    before, after = done.stdout.split()
    assert before == after


def test_errors_has_no_other_names_than_it_has() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        pycontainer.errors.Nothing  # noqa: B018


def test_a_failed_step_shows_itself_as_it_is_made() -> None:
    error = SetupError("mount proc on /proc", 1, "/proc")
    assert repr(error) == "SetupError('mount proc on /proc', 1, '/proc')"


def test_the_path_of_a_step_is_the_filename_of_an_os_error() -> None:
    error = SetupError("execve", errno.ENOENT, "/no/such")
    assert (error.filename, error.path) == ("/no/such", "/no/such")
    assert str(error) == "execve /no/such: ENOENT (No such file or directory)"
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.filename, str(copied)) == ("/no/such", str(error))
    assert SetupError("setsid", errno.EPERM).filename is None
    error = SetupError("set net.x to 1", errno.ENOENT, "sys/net/x")
    assert str(error) == "set net.x to 1 (sys/net/x): ENOENT (No such file or directory)"
