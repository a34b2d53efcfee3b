"""Labels of a container: the AppArmor profile, or the SELinux contexts, that confine it beside everything else.

They are what Docker calls ``--security-opt apparmor=`` and ``label=``, and the
OCI runtime specification ``process.apparmorProfile``, ``process.selinuxLabel``
and ``linux.mountLabel``.  A kernel has at most one of these modules that
confines; a label for the other one is an error, before anything is made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontainer import _fields as check
from pycontainer.driver import FeatureProbe

if TYPE_CHECKING:
    from pycontainer.command import Command

__all__ = ["check_labels", "probe_labels", "unknown_labels"]

SYSFS = "/sys"

#: A profile's name, or of a stack of them: the kernel takes a line of less than a page (apparmor_setprocattr).
_PROFILE = re.compile(r"[^\s\0](?:[^\n\0]{0,1022}[^\s\0])?")
#: user:role:type, and with multi-level security a range of levels.
_CONTEXT = re.compile(r"[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+(?::[A-Za-z0-9_.,:-]+)?")


def check_labels(command: Command) -> None:
    """Raises InvalidCommandError: a label of *command* is none."""
    if command.apparmor_profile is not None:
        check.matching("apparmor_profile", command.apparmor_profile, _PROFILE)
    for name in ("selinux_label", "mount_label"):
        if getattr(command, name) is not None:
            check.matching(name, getattr(command, name), _CONTEXT)


def unknown_labels(command: Command) -> Iterator[tuple[str, str]]:
    """(field, problem) of every label of *command* that this kernel has no module for: what drivers' validate adds."""
    if command.apparmor_profile is not None and not _apparmor_is_enabled():
        yield "apparmor_profile", "this kernel has no AppArmor, or it is off (lsm=...,apparmor)"
    for name in ("selinux_label", "mount_label"):
        if getattr(command, name) is not None and not _selinux_is_enabled():
            yield name, "this kernel has no SELinux, or it is off (lsm=...,selinux)"


def probe_labels() -> FeatureProbe:
    """What drivers say about Feature.LABELS."""
    modules = {"AppArmor": _apparmor_is_enabled(), "SELinux": _selinux_is_enabled()}
    if any(modules.values()):
        return FeatureProbe(True, f"the kernel has {' and '.join(name for name in modules if modules[name])}")
    cause = "the kernel has neither AppArmor nor SELinux"
    return FeatureProbe(False, cause=cause, remedy="boot it with one of them: lsm=...,apparmor or lsm=...,selinux")


def _apparmor_is_enabled() -> bool:
    """Whether this kernel confines by AppArmor's profiles."""
    try:
        with open(f"{SYSFS}/module/apparmor/parameters/enabled", encoding="ascii") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


def _selinux_is_enabled() -> bool:
    """Whether this kernel confines by SELinux's contexts: only then does it make the place for selinuxfs."""
    return os.path.isdir(f"{SYSFS}/fs/selinux")
