"""Commands of right and nearly right values, started: they run, or are refused with the documented error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings

import pycontainer
from pycontainer import InvalidCommandError, SetupError, UnsupportedError
from pycontainer.command import COMMAND_KEYWORDS
from pycontainer_native.driver import NativeDriver

from ..strategies import ARGV, keywords

#: Not the host's own limits and names, which others use meanwhile: what is made there stays there.
FIELDS = COMMAND_KEYWORDS - {"cgroup_parent", "hooks", "name"}


@pytest.mark.root
@pytest.mark.tool("busybox")
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(ARGV, keywords(names=FIELDS))
def test_it_runs_or_is_refused(native: NativeDriver, argv: list[str], fields: dict[str, Any]) -> None:
    try:
        status = pycontainer.run(["true", *argv], driver=native, timeout=60, stdout=-3, stderr=-3, **fields).status
        event(f"ran: {status.exit_code}")
    except (InvalidCommandError, UnsupportedError) as error:
        event(f"refused: {type(error).__name__}")
    except SetupError as error:
        event(f"failed: {error.step} {error.errno}")
        if not error.step:
            raise
