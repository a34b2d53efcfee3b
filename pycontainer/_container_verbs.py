"""The verbs of the command line that are about detached containers: docker's, with its wording and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer._console import check_terminal, complain
from pycontainer._flags import add_driver_flags, add_limits, environment, limit_keywords
from pycontainer.errors import ContainerError, ContainerLostError, ContainerNotFoundError

if TYPE_CHECKING:
    from pycontainer import Container
    from pycontainer.driver import ContainerInfo, ExecutionDriver

__all__ = ["add_verbs", "run_detached"]


def add_verbs(verbs: Any, choose: Callable[[argparse.Namespace], ExecutionDriver], words: Sequence[str]) -> None:
    """Add them to the sub-parsers *verbs*; *choose* gives the driver that the flags name."""

    def add(name: str, verb: Callable[..., int], summary: str, ids: str = "+", **keywords: Any) -> Any:
        parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **keywords)
        parser.set_defaults(verb=lambda options: verb(options, choose(options)), require=[])
        parser.add_argument("--driver", metavar="NAME", help="the one that they were started with")
        add_driver_flags(parser, words)
        if ids:
            parser.add_argument("ids", nargs=ids if ids == "+" else None, metavar="CONTAINER")
        return parser

    ps = add("ps", _ps, "list detached containers", "", allow_abbrev=False)
    ps.add_argument("-a", "--all", action="store_true", help="those that have ended, too")
    ps.add_argument("-q", "--quiet", action="store_true", help="only their ids")
    ps.add_argument("--json", action="store_true", help="as JSON")
    logs = add("logs", _logs, "print what a detached container has printed", "1", allow_abbrev=False)
    logs.add_argument("-f", "--follow", action="store_true", help="and what it prints from now on, until it has ended")
    logs.add_argument("-n", "--tail", type=_lines, default=None, metavar="N", help="begin with the last N lines")
    logs.add_argument("-t", "--timestamps", action="store_true", help="when each line came")
    stop = add("stop", _stop, "end detached containers: SIGTERM, then SIGKILL", allow_abbrev=False)
    stop.add_argument("-t", "--time", type=float, default=10.0, metavar="SECONDS", help="before SIGKILL; default: 10")
    kill = add("kill", _kill, "send a signal to detached containers", allow_abbrev=False)
    kill.add_argument("-s", "--signal", type=_signal, default=signal.SIGKILL, metavar="SIGNAL", help="default: KILL")
    remove = add("rm", _remove, "remove detached containers that have ended, and their logs", allow_abbrev=False)
    remove.add_argument("-f", "--force", action="store_true", help="kill those that still run")
    add("wait", _wait, "wait until detached containers have ended, and print their exit codes", allow_abbrev=False)
    add("pause", _pause, "freeze detached containers", allow_abbrev=False)
    add("unpause", _unpause, "let paused detached containers go on", allow_abbrev=False)
    add("stats", _stats, "print what detached containers use now, as JSON: bytes, nanoseconds", allow_abbrev=False)
    update = add(
        *("update", _update, "change limits of running detached containers"),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # what was not given is absent, and stays as it is
    )
    update.set_defaults(driver=None)
    add_limits(update.add_argument)
    rules: dict[str, Any] = {"dest": "device_cgroup_rules", "action": "append", "metavar": "RULE"}
    update.add_argument("--device-cgroup-rule", **rules, help="such as 'c 10:229 rw'; they replace the earlier ones")
    add("inspect", _inspect, "print all that is known of detached containers, as JSON", allow_abbrev=False)
    add("gc", _gc, "remove what processes that died have left on this host", "", allow_abbrev=False)
    run = add("exec", _exec, "run a further command in a detached container", "1", allow_abbrev=False)
    run.usage = "%(prog)s [FLAG...] CONTAINER COMMAND [ARG...]"
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    run.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    run.add_argument("-t", "--tty", action="store_true", help="give it a terminal of its own")
    run.add_argument("-u", "--user", metavar="USER[:GROUP]", help="default: that of the container")
    run.add_argument("-w", "--workdir", metavar="DIR", help="default: that of the container")
    run.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="one more variable")


def run_detached(options: argparse.Namespace, driver: ExecutionDriver, keywords: dict[str, Any]) -> int:
    """``run -d``: start it, print its id, and leave it alone."""
    from pycontainer import Container

    if options.timeout is not None:
        raise ContainerError("--timeout needs somebody who waits, and with --detach nobody does")
    if getattr(options, "rm", False):
        raise ContainerError("--rm: a detached container stays, with its log and status, until 'pycontainer rm'")
    if options.interactive and not keywords.get("tty"):
        raise ContainerError("--interactive: a detached container has no standard input but /dev/null")
    with Container(
        options.argv, driver=driver, detach=True, log_limits=_limits(options.log_options), **keywords
    ) as box:
        print(box.id)
    return 0


def _limits(options: Iterable[str]) -> Any:
    from pycontainer import LogLimits
    from pycontainer._api import size_limit

    given: dict[str, int] = {}
    for option in ",".join(options).split(",") if options else ():
        name, _, value = option.partition("=")
        if name == "max-size" and value:
            given["size"] = size_limit(value) or 0
        elif name == "max-file" and value.isdecimal() and int(value):
            given["files"] = int(value)
        else:
            raise ContainerError(f"--log-opt {option}: there are max-size=BYTES and max-file=NUMBER")
    return LogLimits(**given)


def _each(options: argparse.Namespace, driver: ExecutionDriver, verb: Callable[[Container], object]) -> int:
    """Call *verb* with each container and print what it returns, or the id; 1 if any of them failed, as docker."""
    from pycontainer import get

    code = 0
    for id in options.ids:
        try:
            with get(id, driver) as box:
                said = verb(box)
                print(id if said is None else said, flush=True)
        except (ContainerError, OSError) as error:
            complain(error)
            code = 1
    return code


def _stop(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    def stop(box: Container) -> None:
        with contextlib.suppress(ContainerLostError):  # it has ended, whatever its status
            box.stop(options.time)

    return _each(options, driver, stop)


def _kill(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    return _each(options, driver, lambda box: driver.kill(box.id, options.signal))


def _remove(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    return _each(options, driver, lambda box: box.remove(options.force))


def _wait(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    def wait(box: Container) -> int:
        box.wait()
        assert box.status is not None
        return box.status.shell_code

    return _each(options, driver, wait)


def _pause(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    return _each(options, driver, lambda box: box.pause())


def _unpause(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    return _each(options, driver, lambda box: box.unpause())


def _update(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    from pycontainer.resources import Resources

    limits = limit_keywords(options)
    if not limits:
        raise ContainerError("what is to be changed? No limit is given")
    Resources.of(**limits)  # what is wrong with it is wrong for all of them
    return _each(options, driver, lambda box: box.update(**limits))


def _stats(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    from pycontainer import get

    code, all_stats = 0, []
    for id in options.ids:
        try:
            with get(id, driver) as box:
                all_stats.append({"id": id, **_plain(box.stats())})
        except (ContainerError, OSError) as error:
            complain(error)
            code = 1
    print(json.dumps(all_stats, indent=2))
    return code


def _plain(value: Any) -> Any:
    """*value*, an object of attrs with numbers, objects and mappings, for JSON."""
    import attrs

    if attrs.has(type(value)):
        return {name: _plain(getattr(value, name)) for name in attrs.fields_dict(type(value))}
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _gc(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    from pycontainer import gc

    for line in gc(driver):
        print(line)
    return 0


def _logs(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    outputs = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    begins = dict.fromkeys(outputs, True)  # a line
    try:
        records = driver.logs(options.ids, options.follow, options.tail)
    except ContainerNotFoundError as error:
        complain(error)
        return 1
    for record in records:
        output = outputs[record.stream]
        if options.timestamps and begins[record.stream]:
            fraction = f"{record.time % 1:.6f}"[1:]
            output.write(time.strftime(f"%Y-%m-%dT%H:%M:%S{fraction}Z ", time.gmtime(record.time)).encode())
        begins[record.stream] = record.data.endswith(b"\n")
        output.write(record.data)
        output.flush()
    return 0


def _exec(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    from pycontainer import get
    from pycontainer.spec import process_to_oci

    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        raise ContainerError("what is to be run? There is no COMMAND")
    check_terminal(options)
    try:
        found = get(options.ids, driver)
    except ContainerNotFoundError as error:
        complain(error)
        return 1
    with found as box:
        command = driver.info(box.id).command
        env = None
        if options.env and command is not None:
            usual = process_to_oci(command.process, command.rootfs)["env"]
            given = [("variable", text) for text in options.env]
            env = dict(item.split("=", 1) for item in usual) | dict(environment(given, os.environ))
        done = box.exec(
            argv,
            env=env,
            cwd=options.workdir,
            user=options.user,
            tty=options.tty,
            stdin=0 if options.interactive else None,
        )
    return done.status.shell_code


def _ps(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    from pycontainer import State, containers

    shown = [info for info in containers(driver) if options.all or info.state is not State.STOPPED]
    shown.reverse()  # as docker, the newest first
    if options.json:
        print(json.dumps([_data(info) for info in shown], indent=2))
    elif options.quiet:
        for info in shown:
            print(info.id)
    else:
        rows = [("CONTAINER ID", "COMMAND", "CREATED", "STATUS"), *map(_row, shown)]
        widths = [max(len(row[column]) for row in rows) + 3 for column in range(3)]
        for row in rows:
            print("".join(text.ljust(width) for text, width in zip(row, (*widths, 0), strict=True)).rstrip())
    for info in shown:
        if info.problem:
            complain(ContainerError(f"container {info.id!r}: {info.problem}"))
    return 0


def _inspect(options: argparse.Namespace, driver: ExecutionDriver) -> int:
    from pycontainer.errors import ContainerNotFoundError

    infos = [driver.info(id) for id in options.ids]
    found = [info for info in infos if info.command is not None or info.problem]
    print(json.dumps([_data(info) for info in found], indent=2))
    for info in infos:
        if info not in found:
            complain(ContainerNotFoundError(info.id))
    return 0 if found == infos else 1


def _data(info: ContainerInfo) -> dict[str, Any]:
    status = info.status
    return {
        "id": info.id,
        "state": info.state.value,
        "pid": info.pid,
        "created": info.created,
        "ended": info.ended,
        "status": status
        and {
            "exit_code": status.exit_code,
            "signal": status.signal,
            "oom_killed": status.oom_killed,
            "reason": status.reason,
        },
        "command": None if info.command is None else json.loads(info.command.to_json()),
        **({"problem": info.problem} if info.problem else {}),
    }


def _row(info: ContainerInfo) -> tuple[str, str, str, str]:
    from pycontainer import State

    now = time.time()
    text = "?" if info.command is None else " ".join(info.command.process.argv)
    text = "".join(character if character.isprintable() else "?" for character in text)
    created = info.created
    if info.state is State.STOPPED and info.status is None:
        status = "Dead"
    elif info.state is State.STOPPED:
        assert info.status is not None
        status = f"Exited ({info.status.shell_code}) {_ago(now - (info.ended or now))} ago"
    else:
        status = f"Up{'' if created is None else f' {_ago(now - created)}'}"
        status += " (Paused)" if info.state is State.PAUSED else ""
    age = "?" if created is None else f"{_ago(now - created)} ago"
    return info.id, f'"{text if len(text) <= 20 else text[:19] + "…"}"', age, status


def _ago(seconds: float) -> str:
    """A time in words, as docker says it."""
    for limit, unit, name in ((60, 1, "second"), (3600, 60, "minute"), (48 * 3600, 3600, "hour")):
        if seconds < limit:
            number = max(0, int(seconds // unit))
            return "Less than a second" if not number else f"{number} {name}{'s' if number != 1 else ''}"
    return f"{int(seconds // 86400)} days"


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines, or 'all'")
    return int(text)


def _signal(text: str) -> int:
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if text.isdecimal() and 0 < int(text) <= 64:
        return int(text)
    try:
        return signal.Signals[name]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a signal") from None
