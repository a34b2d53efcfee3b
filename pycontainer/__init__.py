"""Linux containers through pluggable execution drivers, as a library: no daemon.

The names below are everything that is public.  Each is imported when it is
first used (:pep:`562`), so that importing the package costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # known to type checkers by its name; typing would cost more than all the rest here

if TYPE_CHECKING:
    from typing import Any

    from pycontainer import aio, rootfs
    from pycontainer._api import CompletedContainer, Container, run
    from pycontainer.command import Command, Mount, Network, Process, Resources, Rlimit
    from pycontainer.device import Device
    from pycontainer.diagnosis import Diagnosis, Finding, doctor
    from pycontainer.driver import (
        ContainerInfo,
        ContainerProcess,
        ExecutionDriver,
        ExitStatus,
        Feature,
        FeatureProbe,
        LogLimits,
        Probe,
        State,
        Stdio,
    )
    from pycontainer.errors import (
        AlreadyExistsError,
        ContainerError,
        ContainerExitError,
        ContainerLostError,
        ContainerNotFoundError,
        DriverConflictError,
        DriverNotFoundError,
        DriverUnavailableError,
        InvalidCommandError,
        NotRunningError,
        RequirementError,
        SetupError,
        UnsupportedError,
        WaitTimeoutError,
    )
    from pycontainer.hooks import Hook, Hooks
    from pycontainer.hookspecs import hookimpl
    from pycontainer.logs import LogRecord
    from pycontainer.observers import register_observer, unregister_observer
    from pycontainer.options import Option
    from pycontainer.overlay import Overlay
    from pycontainer.plugins import InstalledDriver, drivers, get_driver
    from pycontainer.recorded import containers, gc, get
    from pycontainer.rootfs import HostView
    from pycontainer.stats import (
        CpuStats,
        InterfaceStats,
        IoStats,
        MemoryStats,
        PidsStats,
        Pressure,
        Stats,
    )
    from pycontainer.stdio import DEVNULL, PIPE, STDOUT, Pipes, Terminal, TtyTerminal

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AlreadyExistsError",
    "Command",
    "CompletedContainer",
    "Container",
    "ContainerError",
    "ContainerExitError",
    "ContainerInfo",
    "ContainerLostError",
    "ContainerNotFoundError",
    "ContainerProcess",
    "CpuStats",
    "Device",
    "Diagnosis",
    "DriverConflictError",
    "DriverNotFoundError",
    "DriverUnavailableError",
    "ExecutionDriver",
    "ExitStatus",
    "Feature",
    "FeatureProbe",
    "Finding",
    "Hook",
    "Hooks",
    "HostView",
    "InstalledDriver",
    "InterfaceStats",
    "InvalidCommandError",
    "IoStats",
    "LogLimits",
    "LogRecord",
    "MemoryStats",
    "Mount",
    "Network",
    "NotRunningError",
    "Option",
    "Overlay",
    "PidsStats",
    "Pipes",
    "Pressure",
    "Probe",
    "Process",
    "RequirementError",
    "Resources",
    "Rlimit",
    "SetupError",
    "State",
    "Stats",
    "Stdio",
    "Terminal",
    "TtyTerminal",
    "UnsupportedError",
    "WaitTimeoutError",
    "__version__",
    "aio",
    "containers",
    "doctor",
    "drivers",
    "gc",
    "get",
    "get_driver",
    "hookimpl",
    "register_observer",
    "rootfs",
    "run",
    "unregister_observer",
]

_HOMES = {
    "aio": "aio",  # a module that is public as it is
    "_api": "CompletedContainer Container run",
    "command": "Command Mount Network Process Resources Rlimit",
    "device": "Device",
    "diagnosis": "Diagnosis Finding doctor",
    "driver": "ContainerInfo ContainerProcess ExecutionDriver ExitStatus Feature FeatureProbe LogLimits "
    "Probe State Stdio",
    "errors": "AlreadyExistsError ContainerError ContainerExitError ContainerLostError ContainerNotFoundError "
    "DriverConflictError DriverNotFoundError DriverUnavailableError InvalidCommandError NotRunningError "
    "RequirementError SetupError UnsupportedError WaitTimeoutError",
    "hooks": "Hook Hooks",
    "hookspecs": "hookimpl",
    "logs": "LogRecord",
    "observers": "register_observer unregister_observer",
    "options": "Option",
    "plugins": "InstalledDriver drivers get_driver",
    "overlay": "Overlay",
    "recorded": "containers gc get",
    "rootfs": "rootfs HostView",
    "stats": "CpuStats InterfaceStats IoStats MemoryStats PidsStats Pressure Stats",
    "stdio": "DEVNULL PIPE STDOUT Pipes Terminal TtyTerminal",
}

if not TYPE_CHECKING:  # which would let a type checker believe that any name is there

    def __getattr__(name: str) -> Any:
        """Import a public name from where it is defined."""
        for module, names in _HOMES.items():
            if name in names.split():
                from importlib import import_module

                home = import_module(f"{__name__}.{module}")
                value = globals()[name] = home if name == module else getattr(home, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
