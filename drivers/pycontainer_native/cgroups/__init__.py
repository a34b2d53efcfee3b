"""Cgroups: where a container goes, what limits it there, and how everything in it ends.

:func:`detect` reads which hierarchies the host has and gives a
:class:`Layout`; :meth:`Layout.groups` turns the OCI runtime spec's
``linux.resources`` into :class:`Group` values, plain data that the launcher
carries out (it imports none of this); :class:`Cgroup` is the caller's handle
on a live container, which :mod:`freezer` stops, :mod:`usage` measures and
:mod:`update` gives other limits; :func:`sweep` removes what a dead launcher
left.

``v1`` (on cgroupspy's controllers) and ``v2`` (controllers of our own on
cgroupspy's interface descriptors) have the same two functions, ``writes`` and
``problems``.  They import cgroupspy, about 15 ms, so they are themselves
imported only for a Command that has a limit.
"""

from __future__ import annotations

from pycontainer_native.cgroups.layout import OOM_KEY, PREFIX, Group, Hierarchy, Layout, detect
from pycontainer_native.cgroups.live import Cgroup, sweep

__all__ = ["OOM_KEY", "PREFIX", "Cgroup", "Group", "Hierarchy", "Layout", "detect", "sweep"]
