"""The launchers of one driver: who has which, what they may do here, and what the dead ones have left."""

from __future__ import annotations

import errno
import resource
import threading
import time

import attrs

from pycontainer.errors import ContainerError, DriverUnavailableError, InvalidCommandError, SetupError
from pycontainer.service import ServiceGoneError, caller
from pycontainer_native.cgroups import Layout, detect, sweep
from pycontainer_native.cgroups.live import DYING
from pycontainer_native.client import LauncherClient
from pycontainer_native.host import Host
from pycontainer_native.identity import RLIM_NLIMITS
from pycontainer_native.state import Store

_NOFILE = resource.RLIMIT_NOFILE


class Launchers:
    """A launcher for each caller, that is for each set of rights and namespaces that a thread of this process has had.

    A launcher goes on with those of whoever started it: it would do more for
    others than they may do themselves, or do it elsewhere.  *driver* is the
    name that errors have; the *store* knows where dead callers' launchers have
    been.
    """

    def __init__(self, driver: str, store: Store) -> None:
        self.caller: tuple[object, ...] = ()  #: who the thread was that was last looked at
        self.current: LauncherClient | None = None  #: that caller's, once he has needed one
        self._former: dict[tuple[object, ...], LauncherClient] = {}  # those of other callers
        self._driver = driver
        self._store = store
        self._lock = threading.Lock()
        self._thread = threading.local()  # .caller: who this thread was when it was last looked at
        self._host: Host | None = None
        self._layout: Layout | None = None
        self._parents: set[str] = set()  # the cgroup_parents that were asked for

    # -- who asks, and what is there for him

    @property
    def host(self) -> Host:
        """What plans need to know of the host, and of this process's resource limits: see :meth:`look_at_caller`."""
        host = self._host
        if host is None:
            host = self._host = Host.of_caller()
        return host

    @property
    def layout(self) -> Layout:
        """The host's cgroup hierarchies, looked up once."""
        if self._layout is None:
            self._layout = detect()
        return self._layout

    def look_at_caller(self) -> bool:
        """Before anything is begun: who this is by now, and what resource limits he has; whether he is another one.

        Whoever has other rights or namespaces than before gets another
        launcher, and is told of another host.
        """
        self._thread.caller = now = caller()
        is_other = now != self.caller and self._change_caller(now)
        host, limits = self.host, _limits()
        inherited = () if self.current is None else self.current.limits
        if limits != (inherited or limits) or host.rlimits or limits[_NOFILE] != host.nofile:
            pairs = enumerate(zip(limits, inherited, strict=False))
            changed = tuple((n, *own) for n, (own, launchers) in pairs if own != launchers and n != _NOFILE)
            self._host = attrs.evolve(host, nofile=limits[_NOFILE], rlimits=changed)
        return is_other

    def _change_caller(self, now: tuple[object, ...]) -> bool:
        with self._lock:
            before, self.caller = self.caller, now
            if not before:
                return False
            if self.current is not None:
                self._former[before] = self.current
            self.current = self._former.pop(now, None)
            self._host = self._layout = None
            return True

    # -- requests

    def ask(self, request: bytes, fds: list[int], owner: LauncherClient | None = None) -> LauncherClient:
        """Give *request* to the *owner* of its container, or to the caller's launcher, which is returned.

        A launcher that has died meanwhile is replaced, once; for an owner that
        is ServiceGoneError.
        """
        step = "start the launcher" if owner is None else "send the request"
        try:
            launcher = owner or self._live()
            step = "send the request"
            try:
                launcher.request(request, fds)
            except ServiceGoneError:
                if owner is not None:
                    raise
                self._forget(launcher)  # whether or not its process has ended, it listens no more
                launcher = self._live()
                launcher.request(request, fds)
        except OSError as error:
            if isinstance(error, ContainerError):
                raise
            raise SetupError(step, error.errno or errno.EPROTO, error.filename) from None
        return launcher

    def _live(self) -> LauncherClient:
        with self._lock:
            if self.current is None:
                self.sweep()
                limits = _limits()
                self.current = self._new()
                self.current.limits = limits
            if self.current.made_by != self._thread.caller:
                raise ContainerError(
                    "another thread, with other rights or namespaces, uses this driver at the same time"
                )
            return self.current

    def _new(self) -> LauncherClient:
        """Raises DriverUnavailableError: an ordinary user cannot have the user namespace that he needs."""
        namespace = self.host.namespace
        try:
            return LauncherClient(namespace)
        except SetupError as error:
            if namespace is None:
                raise
            from pycontainer_native.probe import without_user_namespace

            raise DriverUnavailableError("native", without_user_namespace(self._driver, error)) from None

    # -- what the dead have left

    def use_parent(self, parent: str) -> None:
        """There will be containers below the cgroup_parent *parent*: look what is left there, and take note of it.

        Raises InvalidCommandError.
        """
        if parent not in self._parents:
            sweep(self.layout, cgroup_parent=parent)
            self._store.note_parent(parent)
            self._parents.add(parent)

    def drop(self, launcher: LauncherClient) -> str:
        """Forget a dead launcher and remove what it left; its last words. Nothing happens to one that lives."""
        if not launcher.ended(timeout=1.0):
            return "its launcher let go of it"
        words = launcher.last_words()
        self._forget(launcher)
        return words

    def _forget(self, launcher: LauncherClient) -> None:
        """End it, for good, and remove what it left."""
        with self._lock:
            if self.current is launcher:
                self.current = None
            elif launcher in self._former.values():
                self._former = {who: former for who, former in self._former.items() if former is not launcher}
            else:
                return
        launcher.close()
        self._sweep_after(launcher)  # it may take a moment, for which others need not wait

    def _sweep_after(self, dead: LauncherClient) -> None:
        """Remove what a *dead* launcher of this driver has left, wherever its containers were."""
        deadline = time.monotonic() + DYING
        for parent in (None, *self._parents):
            sweep(self.layout, cgroup_parent=parent, dead=dead.token, patience=deadline - time.monotonic())

    def sweep(self, *, everywhere: bool = False) -> list[str]:
        """Remove what anybody's dead launchers have left, below the cgroup_parents that their callers wrote down too.

        *everywhere*: below all cgroups. Returns the paths of what is gone.
        """
        gone = sweep(self.layout, everywhere=everywhere)
        for parent in self._store.orphaned_parents():
            try:
                gone += sweep(self.layout, cgroup_parent=parent)
            except InvalidCommandError:
                continue  # it is gone, and with it what was below
        return gone

    # -- ends

    def close(self) -> None:
        """End all of them, with their containers; what they leave is removed."""
        with self._lock:
            launchers = self._all()
            self._former, self.current = {}, None
        in_peace = True
        for launcher in launchers:
            if not launcher.close():
                in_peace = False
                self._sweep_after(launcher)
        self._parents.clear()
        self._store.forget_parents(keep=not in_peace)

    def after_fork(self) -> None:
        """In a forked child: they are the parent's."""
        for launcher in self._all():
            launcher.forget()
        self._former, self.current = {}, None
        self._parents = set()
        self._store.forget_parents(keep=True)
        self._lock = threading.Lock()

    def _all(self) -> list[LauncherClient]:
        return [*self._former.values(), *filter(None, [self.current])]


def _limits() -> tuple[tuple[int, int], ...]:
    """This process's resource limits, by their numbers."""
    return tuple(map(resource.getrlimit, range(RLIM_NLIMITS)))
