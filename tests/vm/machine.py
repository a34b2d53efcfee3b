#!/usr/bin/env python3
"""Run a command as root on a pure cgroup2 host: a virtual machine whose files are this host's.

    tests/vm/machine.py [--timeout SECONDS] [--cache DIRECTORY] [--skip] -- COMMAND [ARGUMENT...]

The machine has Debian's kernel and, copy-on-write, the file tree of the host, so that the same Python and the same
checkout are there; whatever is written is gone with it. The command starts in the present directory with the
present environment, in the root cgroup, which has all the controllers; TMPDIR is empty. What it prints appears on
stdout as it comes. The exit status is the command's; 124 after the time limit; 125 when the machine did not get as
far, or 0 with --skip when this host cannot have it.

The processor is emulated, with or without KVM on the host, and about ten times as slow as the host's.

It needs root on an x86-64 Debian with the packages qemu-system-x86, cpio, kmod and busybox-static. The kernel's
package is downloaded and unpacked in the cache, not installed.
"""

from __future__ import annotations

import argparse
import ctypes
import lzma
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent

#: The programs that this starts, and their Debian packages.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "cpio": "cpio",
    "depmod": "kmod",
    "modprobe": "kmod",
    "busybox": "busybox-static",
    "apt-get": "apt",
    "dpkg": "dpkg",
}

#: What Debian's kernel has as modules: to see the host's files, then what the tests need (brd: disks, in memory).
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "veth", "bridge", "brd")

TIMED_OUT, FAILED = 124, 125
PR_SET_PDEATHSIG = 1


class ImpossibleError(Exception):
    """There can be no such machine on this host."""


class MachineError(Exception):
    """The machine could not be made, or ended without telling the command's status."""


def check_host(path: str | None = None) -> None:
    """Raise ImpossibleError unless the programs are there, on *path* (default: where an administrator's are, too)."""
    if (machine := platform.machine()) != "x86_64":
        raise ImpossibleError(f"the virtual machine is an x86-64, and this is {machine}")
    if os.geteuid() != 0:
        raise ImpossibleError("the virtual machine needs root: some of the host's files are for root alone")
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin" if path is None else path
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PROGRAMS[program] for program in missing))
        raise ImpossibleError(f"the virtual machine needs {', '.join(missing)} (apt-get install {packages})")
    os.environ["PATH"] = path


def unpack_kernel(cache: Path) -> Path:
    """The directory below *cache* that has Debian's kernel as vmlinuz and its modules, by now at least."""
    kernel = cache / "kernel"
    wanted = kernel / "wanted"
    if kernel.is_dir() and not (wanted.exists() and wanted.read_text() == " ".join(MODULES)):
        shutil.rmtree(kernel)  # of an earlier version of this file
    if not kernel.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            whole, part = Path(directory, "whole"), Path(directory, "part")
            run(["dpkg", "-x", download_kernel(Path(directory)), whole])
            [image] = whole.glob("boot/vmlinuz-*")
            [tree] = whole.glob("**/lib/modules/*")
            (part / "modules").mkdir(parents=True)
            image.rename(part / "vmlinuz")
            order = ""
            for module in modules(tree):
                name, data = module.name.removesuffix(".xz"), module.read_bytes()
                (part / "modules" / name).write_bytes(lzma.decompress(data) if module.suffix == ".xz" else data)
                order += f"/modules/{name}\n"
            (part / "modules/order").write_text(order)
            (part / "wanted").write_text(" ".join(MODULES))
            part.rename(kernel)
    return kernel


def modules(tree: Path) -> Iterator[Path]:
    """The files of MODULES and of what they depend on, in the order to load them. *tree* is /lib/modules/VERSION."""
    base, version = tree.parents[2], tree.name
    run(["depmod", "-b", base, version])
    found: dict[Path, None] = {}
    for module in MODULES:
        for line in run(["modprobe", "-d", base, "-S", version, "--show-depends", module]).splitlines():
            if line.startswith("insmod "):  # "insmod PATH [OPTION...]" or "builtin NAME"
                found[Path(line.split()[1])] = None
    return iter(found)


def download_kernel(directory: Path) -> Path:
    """Debian's present kernel package, downloaded to *directory*. The package lists may be old, or not there yet."""
    try:
        run(["apt-get", "-qq", "download", kernel_package()], cwd=directory)
    except MachineError:
        run(["apt-get", "-qq", "update"])
        run(["apt-get", "-qq", "download", kernel_package()], cwd=directory)
    [package] = directory.glob("*.deb")
    return package


def kernel_package() -> str:
    """The package that linux-image-amd64 stands for."""
    for line in run(["apt-cache", "depends", "linux-image-amd64"]).splitlines():
        if line.strip().startswith("Depends: linux-image-"):
            return line.split()[-1]
    raise MachineError("apt-cache knows no kernel that linux-image-amd64 depends on")


def write_initramfs(file: Path, kernel: Path, script: str) -> None:
    """Write an initramfs of busybox, the modules, init, and *script* as the command."""
    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        root = Path(directory)
        (root / "bin").mkdir()
        (root / "dev").mkdir()
        shutil.copy(shutil.which("busybox") or "busybox", root / "bin")
        shutil.copytree(kernel / "modules", root / "modules")
        shutil.copy(HERE / "init", root)
        (root / "command").write_text(script)
        names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        with file.open("wb") as archive:
            pack = ["cpio", "--quiet", "-o", "-H", "newc"]
            subprocess.run(pack, input=names.encode(), stdout=archive, cwd=root, check=True)


def command_script(argv: Sequence[str], directory: str, env: Mapping[str, str]) -> str:
    """What PID 1 does in the end: run *argv*, tell its status on the second serial line, switch the machine off."""
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in env.items() if name.isidentifier())
    return f"""\
stty raw </dev/ttyS0
mkdir /run/tmp
{{
    (
        cd {shlex.quote(directory)} || exit {FAILED}
        {exports}export TMPDIR=/run/tmp
        exec {shlex.join(argv)}
    ) </dev/null 2>&1
    echo $? >/dev/ttyS1
}} | /run/busybox cat >/dev/ttyS0
echo 0 >/proc/sys/kernel/printk # no "Power down"
/run/busybox poweroff -f
"""


def start(argv: Sequence[str], cache: Path, timeout: float) -> int:
    """Run *argv* in a machine, for *timeout* seconds at most, and return its exit status."""
    kernel = unpack_kernel(cache)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        initramfs, status = Path(directory, "initramfs"), Path(directory, "status")
        write_initramfs(initramfs, kernel, command_script(argv, os.getcwd(), os.environ))
        options = {
            "accel": "tcg,thread=multi",
            "cpu": "max",
            "smp": "2",
            "m": "2048",
            "display": "none",
            "monitor": "none",
            "nic": "none",
            "virtfs": "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "kernel": kernel / "vmlinuz",
            "initrd": initramfs,
            # loglevel: what the kernel says of out-of-memory kills is no output of the command's.
            # tsc: an emulated processor's counter is one for all, and every other clock is a device to ask.
            "append": "console=ttyS0 loglevel=2 panic=-1 mitigations=off tsc=reliable",
        }
        qemu = ["qemu-system-x86_64", "-no-reboot", "-serial", "stdio", "-serial", f"file:{status}"]
        for name, value in options.items():
            qemu += [f"-{name}", str(value)]
        try:
            subprocess.run(qemu, stdin=subprocess.DEVNULL, timeout=timeout, preexec_fn=die_with_parent)
        except subprocess.TimeoutExpired:
            print(f"the virtual machine was still running after {timeout:g} s", file=sys.stderr)
            return TIMED_OUT
        told = status.read_text().strip() if status.exists() else ""
    if not told.isdecimal():
        raise MachineError("the virtual machine ended without a status")
    return int(told)


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that was."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run(argv: Sequence[str | Path], cwd: Path | None = None) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"{shlex.join(map(str, argv))}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--timeout", type=float, default=600, help="seconds until it is switched off (600)")
    parser.add_argument("--cache", type=Path, default=Path(".tox/vm"), help="where the kernel is kept (.tox/vm)")
    parser.add_argument("--skip", action="store_true", help="succeed where there can be no such machine, and say why")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        check_host()
        return start(options.command, options.cache.absolute(), options.timeout)
    except ImpossibleError as error:
        print(f"{'skipped: ' if options.skip else ''}{error}", file=sys.stderr)
        return 0 if options.skip else FAILED
    except MachineError as error:
        print(error, file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
