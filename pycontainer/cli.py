"""The command line: ``docker run``'s flags and exit codes, without a daemon.

::

    pycontainer run [flags] [--] COMMAND [ARG...]       run a container and exit as it did
    pycontainer explain [flags] [--] COMMAND [ARG...]   print the steps that this would take
    pycontainer drivers [--json]                        list the drivers, and whether they work here
    pycontainer doctor [--json] [DRIVER]                say why one does not, and what would help
    pycontainer receipt [--json] ID                     show what really holds for a detached container
    pycontainer compare [flags] [--] COMMAND [ARG...]   run it through every driver and show the differences
    pycontainer run -d [flags] [--] COMMAND [ARG...]    start a container that outlives this program; print its id
    pycontainer ps, logs, wait, stop, kill, rm, exec, pause, unpause, inspect, stats, update, gc
                                                        what is done with those

Exit codes of ``run``: the payload's own; 128+N when signal N ended it; 127
when the command does not exist; 126 when it cannot be executed; 125 for any
other error before it ran, a wrong flag included (those are Docker's); 124
when ``--timeout`` ended it, as with timeout(1).  ``exec`` has the same; the
other verbs about detached containers exit with 1 when one of them failed, and
so does ``exec`` where there is no such container.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from pycontainer._console import check_terminal, complain
from pycontainer._container_verbs import add_verbs as add_container_verbs
from pycontainer._container_verbs import run_detached
from pycontainer._driver_verbs import add_verbs as add_driver_verbs
from pycontainer._flags import add_driver_flags, add_flags, command_keywords, command_of
from pycontainer.errors import ContainerError, SetupError, WaitTimeoutError

if TYPE_CHECKING:
    from pycontainer import Container
    from pycontainer.driver import ExecutionDriver

#: Seconds within which a third SIGINT or SIGTERM kills.
PATIENCE = 5.0

FORWARDED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: *arguments* without its name (None: those of this process), its exit code."""
    try:
        options = _parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
        return int(options.verb(options))
    except ContainerError as error:
        complain(error)
        return exit_code(error)
    except BrokenPipeError:
        # Whoever read our output has left, as head(1) does. /dev/null, or the interpreter's last flush would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    except OSError as error:
        complain(error)
        return 125
    except KeyboardInterrupt:
        return 128 + 2
    except Exception:  # a mistake of a driver's, or of ours: who is to mend it needs all of this
        import traceback

        traceback.print_exc()
        return 125


def exit_code(error: ContainerError) -> int:
    """What ``pycontainer run`` exits with because of *error*."""
    import errno

    if isinstance(error, WaitTimeoutError):
        return 124
    if isinstance(error, SetupError) and error.step == "execve":
        return 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
    return 125


# -- the verbs


def _run(options: argparse.Namespace) -> int:
    from pycontainer import Container

    check_terminal(options)
    # Without a terminal the payload gets our own descriptors: nothing is copied.
    if options.detach:
        return run_detached(options, _driver(options), command_keywords(options))
    stdin = 0 if options.interactive else None
    with (
        _signal_proxy() as forward_to,
        Container(options.argv, driver=_driver(options), stdin=stdin, start=False, **command_keywords(options)) as box,
    ):
        receipt = box._start_within(None, 0.0, options.receipt is not None)
        forward_to(box)
        if receipt is not None:
            with open(options.receipt, "w", encoding="utf-8") as file:
                file.write(receipt.to_json() + "\n")
        box.wait(options.timeout)
    assert box.status is not None
    return box.status.shell_code


@contextmanager
def _signal_proxy() -> Iterator[Callable[[Container], None]]:
    """Docker's ``--sig-proxy``: catches signals, and sends them to the container that it is called with.

    Those that come before there is one wait for it; the same one again ends
    the start.  What nohup(1), or a shell for a background job, has ignored
    stays ignored.  Of a container that takes no notice of SIGINT and SIGTERM,
    as PID 1 does without a handler, the third within a few seconds is the end.

    Once there is one a thread does it, which the interpreter's own handler
    wakes: a handler in Python would have to wait for the main thread, which may
    just be about to wait for the container.
    """
    import signal
    import threading

    with ExitStack() as undo:
        waiting: list[int] = []
        started = False

        def note(number: int, frame: object) -> None:
            if number in waiting and not started:
                raise KeyboardInterrupt
            waiting.append(number)

        def forward_to(box: Container) -> None:
            nonlocal started
            reader, writer = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, reader)
            os.set_blocking(writer, False)

            def forward() -> None:
                asked: list[float] = []  # to end, and when
                while numbers := os.read(reader, 64):
                    for number in numbers:
                        if number not in before:
                            continue
                        if number in (signal.SIGINT, signal.SIGTERM):
                            asked = [*(then for then in asked if then > time.monotonic() - PATIENCE), time.monotonic()]
                            if len(asked) == 3:
                                complain(ContainerError("the third SIGINT or SIGTERM: the container is killed"))
                                box.kill()
                        box.send_signal(number)

            thread = threading.Thread(target=forward, daemon=True)
            thread.start()
            undo.callback(thread.join)
            undo.callback(os.close, writer)
            signal.pthread_sigmask(signal.SIG_BLOCK, before)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer, warn_on_full_buffer=False))
            started, earlier = True, waiting[:]  # from here on what is noted was written as well
            os.write(writer, bytes(earlier))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, before)

        before: dict[int, Any] = {}
        for number in (signal.Signals[name] for name in FORWARDED_SIGNALS):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
                undo.callback(signal.signal, number, before[number])
        yield forward_to


def _explain(options: argparse.Namespace) -> int:
    command = command_of(options)
    driver = _driver(options)
    explain = getattr(driver, "explain", None)
    if explain is None:
        raise ContainerError(f"driver {driver.name!r} does not support explain")
    for line in explain(command):
        print(line)
    return 0


# -- the parser


class _Parser(argparse.ArgumentParser):
    chosen: str | None = None  # the verb, where there is one: what is left over is complained of by the whole program

    def error(self, message: str) -> NoReturn:
        prog = f"{self.prog} {self.chosen}" if self.chosen else self.prog
        self.exit(125, f"pycontainer: {message} ('{prog} --help' lists the flags)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print("pycontainer", version("pycontainer-execdriver"))
        parser.exit()


def _parser(words: Sequence[str] = ()) -> _Parser:
    parser = _Parser(prog="pycontainer", description="Run containers, without a daemon.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb, summary in (
        ("run", _run, "run a command in a new container, and exit as it did"),
        ("explain", _explain, "print the steps that a run with the same flags would take, and take none"),
    ):
        flags = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. The flags are those of docker run.",
            usage="%(prog)s [FLAG...] [--] COMMAND [ARG...]",
            add_help=False,  # -h is --hostname, as in docker
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,  # what was not given is absent: the defaults are Command's
        )
        flags.set_defaults(verb=verb)
        add_flags(flags)
        add_driver_flags(flags, words)
    add_driver_verbs(verbs)
    add_container_verbs(verbs, _driver, words)
    parser.chosen = words[0] if words and words[0] in verbs.choices else None
    return parser


def _driver(options: argparse.Namespace) -> ExecutionDriver:
    """The driver that the flags choose. Raises ContainerError, also for an option that is not its own."""
    from pycontainer.plugins import default_names, get_driver

    own = [key for key in vars(options) if key.startswith("option ")]
    names = [name.strip() for name in options.driver.split(",")] if options.driver else []
    if options.require or len(names) > 1:
        from pycontainer.requirements import choose_driver

        if own:
            _, driver, option = own[0].split(" ")
            raise ContainerError(f"--{driver}-{option.replace('_', '-')} is for one driver, which --driver has to name")
        return choose_driver(options.require, names or None)
    try:
        if not own:
            return get_driver(options.driver or None)
        from pycontainer.options import given_flags

        name = options.driver or default_names()[0]
        return get_driver(name, **given_flags(options, name))
    except (TypeError, ValueError) as error:
        raise ContainerError(str(error)) from None
