"""Where a root file system comes from, and reading in one that nobody vouches for."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import refuse, store
from pycontainer.errors import InvalidCommandError, SetupError
from pycontainer.overlay import Overlay, overlay

__all__ = ["HostView", "Overlay", "UserIds", "lookup_user", "open_in_rootfs", "overlay"]

#: A larger etc/passwd or etc/group is refused.
MAX_DATABASE = 1 << 20

# -- files of a rootfs

_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_FILE = struct.pack(  # struct open_how; O_NONBLOCK for a fifo, O_NOCTTY for a terminal
    "QQQ", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
)


@functools.cache
def _syscall() -> Any:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    function.restype = ctypes.c_long
    return function


def _openat2(directory: int, path: str) -> int:
    for _ in range(100):
        descriptor: int = _syscall()(_OPENAT2, directory, os.fsencode(path), _FILE, len(_FILE))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        # EAGAIN: a mount or rename anywhere while ".." was being resolved, see openat2(2).
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


def open_in_rootfs(rootfs: str, path: str) -> int:
    """Open the regular file *path* of *rootfs* for reading: the one way to read in a rootfs.

    Links are resolved as if *rootfs* were the root (openat2(2),
    RESOLVE_IN_ROOT), those of /proc not at all.  Returns a descriptor that is
    the caller's.  Raises OSError; FileNotFoundError also where *rootfs* itself
    is not there, EINVAL for anything but a regular file.
    """
    directory = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = _openat2(directory, path)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return descriptor


def _open_database(layers: Sequence[str], path: str) -> int | None:
    """*path* in the first of the *layers* that has it; a link is followed in its own layer alone. Raises OSError."""
    for layer in layers:
        try:
            return open_in_rootfs(layer, path)
        except (FileNotFoundError, NotADirectoryError):
            if len(layers) > 1 and _is_opaque(f"{layer}/{os.path.dirname(path)}"):
                return None
        except OSError as error:
            if len(layers) == 1 or error.errno != errno.ENXIO:
                raise
            return None  # a device 0:0, with which overlayfs notes that it was removed
    return None


def _is_opaque(directory: str) -> bool:
    """Whether an overlay shows nothing of the layers below *directory*."""
    try:
        return os.getxattr(directory, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


def _database(layers: Sequence[str], path: str, where: str) -> bytes:
    """The text of etc/passwd or etc/group, empty where there is none."""
    try:
        descriptor = _open_database(layers, path)
    except OSError as error:
        _unreadable(where, path, error)
    if descriptor is None:
        return b""
    try:
        text = b""
        while len(text) <= MAX_DATABASE and (part := os.read(descriptor, MAX_DATABASE + 1 - len(text))):
            text += part
    except OSError as error:
        _unreadable(where, path, error)
    finally:
        os.close(descriptor)
    if len(text) > MAX_DATABASE:
        refuse(where, f"{path} in the rootfs is larger than {MAX_DATABASE} bytes")
    return text


def _unreadable(where: str, path: str, error: OSError) -> NoReturn:
    """Raise InvalidCommandError for what is wrong with the rootfs, SetupError for what this process or host lacks."""
    # EINVAL: no regular file; ENXIO: a fifo, socket or device with nobody at its other end; EXDEV, ELOOP: a link of
    # /proc, or too many (openat2(2)).
    of_the_rootfs = ("EACCES", "EINVAL", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENODEV", "ENOENT", "ENOTDIR", "ENXIO")
    if errno.errorcode.get(error.errno or 0) in (*of_the_rootfs, "EPERM", "EXDEV"):
        refuse(where, f"{path} in the rootfs cannot be read: {error.strerror}")
    raise SetupError(f"read {path}", error.errno or errno.EIO, path) from None


# -- users


@frozen
class UserIds:
    """A user of a rootfs in numbers: what setgroups(2), setresgid(2) and setresuid(2) get, and the home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""  #: as etc/passwd has it, empty for a uid without an entry


def lookup_user(rootfs: str | HostView | Overlay | None, user: str | None, groups: tuple[str, ...] = ()) -> UserIds:
    """Who *user* is in *rootfs*: passwd(5) and group(5), read without any of the host's name services.

    *rootfs* is a directory or an overlay; None and a HostView mean the host's own files.
    *user* is as in :class:`~pycontainer.command.Process`, None is uid 0.  A
    number needs no entry: its gid is then 0 and its home ``/``.  *groups* are
    names and numbers; the result has exactly those (CVE-2022-2995), without
    the gid.  The files may be hostile: not followed out of the rootfs, not
    waited for, and at most 1 MiB (CVE-2024-9676).

    Raises InvalidCommandError, for ``process.user`` or
    ``process.additional_groups``; SetupError where it is not the rootfs that
    keeps a file from being read, as of EMFILE or EIO.
    """
    root = rootfs.layers if isinstance(rootfs, Overlay) else (rootfs if isinstance(rootfs, str) else "/",)
    name, group = (0, None) if user is None else check.user("process.user", user)
    entry = _find(_database(root, "etc/passwd", "process.user"), name, 6)
    if entry is not None:
        uid, gid = _ids("process.user", "etc/passwd", entry, 2, 3)
        home = _home(entry[5])
    elif isinstance(name, int):
        uid, gid, home = name, 0, "/"
    else:
        refuse("process.user", f"etc/passwd in the rootfs has no user {name!r}")
    members: dict[int, None] = {}
    if group is not None:
        gid = _gid(root, "process.user", group)
    for text in groups:
        where = "process.additional_groups"
        members[_gid(root, where, check.user_or_group(where, text))] = None
    members.pop(gid, None)
    return UserIds(uid, gid, tuple(members), home, os.fsdecode(entry[0]) if entry else "")


def _gid(root: Sequence[str], where: str, group: int | str) -> int:
    if isinstance(group, int):
        return group
    entry = _find(_database(root, "etc/group", where), group, 3)
    if entry is None:
        refuse(where, f"etc/group in the rootfs has no group {group!r}")
    return _ids(where, "etc/group", entry, 2)[0]


def _find(text: bytes, wanted: int | str, fields: int) -> list[bytes] | None:
    """The first line of passwd(5) or group(5) whose name, or whose number, is *wanted*; it has *fields* or more."""
    if isinstance(wanted, int):
        for line in text.split(b"\n"):
            entry = line.split(b":", 7)
            if len(entry) >= fields and entry[2].isdigit() and len(entry[2]) <= 10 and int(entry[2]) == wanted:
                return entry
        return None
    prefix = os.fsencode(wanted) + b":"
    for line in text.split(b"\n"):
        if line.startswith(prefix):
            entry = line.split(b":", 7)
            if len(entry) >= fields:
                return entry
    return None


def _ids(where: str, file: str, entry: list[bytes], *columns: int) -> list[int]:
    """The numbers of an entry. One that does not fit 32 bits must not become another (CVE-2024-40635)."""
    numbers = []
    for text in (entry[column] for column in columns):
        if not text.isdigit() or len(text) > 10 or int(text) > check.MAX_ID:
            refuse(where, f"the entry {os.fsdecode(entry[0])!r} of {file} in the rootfs has no valid id: {text[:20]!r}")
        numbers.append(int(text))
    return numbers


def _home(text: bytes) -> str:
    return os.fsdecode(text) if text.startswith(b"/") and b"\0" not in text else "/"


# -- the host's own programs

#: What of a Python's prefix is shown, with its pyvenv.cfg.  Not the whole directory: a virtual environment may be where
#: its project is, beside what nobody is to read.
_PREFIX_PARTS = ("bin", "include", "lib", "lib64", "libexec", "share")

#: Directories of programs and libraries, or links to them: hier(7), file-hierarchy(7).
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

#: Files of /etc that programs expect and that are nobody's secret: no shadow(5), no keys, no host name, and nothing
#: in which administrators write down passwords of proxies and registries.
_FILES = (
    *("bash.bashrc", "ca-certificates.conf", "debian_version", "ethertypes", "gai.conf", "group", "host.conf"),
    *("hosts", "inputrc", "ld-musl-x86_64.path", "ld-musl-aarch64.path", "ld.so.cache", "ld.so.conf"),
    *("locale.alias", "locale.conf", "localtime", "login.defs", "magic", "mime.types", "networks", "nsswitch.conf"),
    *("os-release", "passwd", "profile", "protocols", "resolv.conf", "rpc", "services", "shells", "ssl/cert.pem"),
    *("ssl/openssl.cnf", "timezone"),
)

#: Directories of /etc, likewise.
_TREES = (
    *("alternatives", "ca-certificates", "crypto-policies", "fonts", "ld.so.conf.d", "pki/ca-trust"),
    *("pki/tls/certs", "ssl/certs", "terminfo"),
)
_VERSIONED_TREES = ("python3", "java-")

#: What else a root has, empty: hier(7).
_DIRECTORIES = (
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/home", 0o755),
    ("/mnt", 0o755),
    ("/opt", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/srv", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var", 0o755),
    ("/var/cache", 0o755),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
)


def _pair(where: str, pair: Any) -> tuple[Any, Any]:
    if len(check.items(where, check.as_tuple(pair))) != 2:
        refuse(where, f"{pair!r} is not a pair")
    return pair[0], pair[1]


def _link(pair: Any) -> tuple[str, str]:
    path, target = _pair("rootfs.links", pair)
    return check.path("rootfs.links", path), check.line("rootfs.links", target)


def _directory(pair: Any) -> tuple[str, int]:
    path, mode = _pair("rootfs.directories", pair)
    check.integer("rootfs.directories", mode, 0, 0o7777)
    return check.path("rootfs.directories", path), mode


@frozen
class HostView:
    """A root made of the host's own programs: an allow list, as data, for a driver to build and throw away.

    Nothing that is not named here appears in the container.  A driver makes
    the directories in their order, then the rest; a path that has gone since
    is left out.
    """

    overlays: tuple[str, ...] = field(default=(), converter=check.as_texts)  #: shown copy-on-write at the same path
    links: tuple[tuple[str, str], ...] = field(default=(), converter=check.as_tuple)  #: symbolic links: path, target
    files: tuple[str, ...] = field(default=(), converter=check.as_texts)  #: read-only, following a link of the host
    trees: tuple[str, ...] = field(default=(), converter=check.as_texts)  #: read-only directories
    directories: tuple[tuple[str, int], ...] = field(default=(), converter=check.as_tuple)  #: empty ones: path, mode

    def __attrs_post_init__(self) -> None:
        for name in ("overlays", "files", "trees"):
            where = f"rootfs.{name}"
            store(self, name, tuple(check.host_path(where, path) for path in check.items(where, getattr(self, name))))
            if {"/", "/dev", "/sys", "/etc"}.intersection(getattr(self, name)):
                refuse(where, "a HostView never shows /, /dev, /sys or /etc as a whole")
        store(self, "links", tuple(_link(pair) for pair in check.items("rootfs.links", self.links)))
        pairs = check.items("rootfs.directories", self.directories)
        store(self, "directories", tuple(_directory(pair) for pair in pairs))

    @classmethod
    def detect(cls) -> HostView:
        """The view of this host and of the running Python. Looks, changes nothing; a few milliseconds."""
        overlays: list[str] = []
        links = [("/etc/mtab", "/proc/self/mounts"), ("/var/run", "/run")]
        for path in _PROGRAMS:
            if os.path.islink(path):
                links.append((path, os.readlink(path)))
            elif os.path.isdir(path):
                overlays.append(path)
        files = []
        shown: list[str] = []
        for path in _python_prefixes():
            real = os.path.realpath(path)
            if not _is_below(real, [*overlays, *shown]):
                shown.append(real)
                for part in (f"{real}/{name}" for name in _PREFIX_PARTS):
                    if os.path.islink(part):
                        links.append((part, os.readlink(part)))
                    elif os.path.isdir(part):
                        overlays.append(part)
                if os.path.isfile(f"{real}/pyvenv.cfg"):
                    files.append(f"{real}/pyvenv.cfg")
            if real != path and not _is_below(path, [*overlays, *shown]):
                links.append((path, real))
        for path in (f"/etc/{name}" for name in _FILES):
            real = os.path.realpath(path)
            if not _is_readable(real, stat.S_ISREG, 0o004):
                continue
            if real != path and _is_below(real, overlays):
                links.append((path, real))
            else:
                files.append(path)
        names = (*_TREES, *(name for name in sorted(os.listdir("/etc")) if name.startswith(_VERSIONED_TREES)))
        trees = [path for path in (f"/etc/{name}" for name in names) if _is_public_tree(path)]
        directories = dict(_DIRECTORIES)
        for path in (*overlays, *trees, *files, *(path for path, _ in links)):
            for parent in _parents(path):  # the way to a Python in /root has to be open: the rest is not there
                directories[parent] = directories.get(parent, 0) | 0o755
        return cls(tuple(overlays), tuple(links), tuple(files), tuple(trees), tuple(sorted(directories.items())))

    def to_json(self) -> str:
        """This view as JSON: :meth:`from_json` gives an equal one."""
        import json

        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> HostView:
        """The view that :meth:`to_json` wrote, checked like any other. Raises InvalidCommandError."""
        import json

        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidCommandError("rootfs", f"is not JSON: {error}") from None
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: Any) -> HostView:
        """A view from its fields as JSON has them. Raises InvalidCommandError."""
        if type(data) is not dict:
            refuse("rootfs", f"must be an object, not {type(data).__name__}")
        for name in data:
            if name not in attrs.fields_dict(cls):
                refuse(f"rootfs.{name}", "is not a field")
        return cls(**data)


#: A directory that was changed this short a time before it was read (ns) may change again without another time stamp:
#: the kernel's clock for those ticks every 1 to 10 ms.
_TICK = 20_000_000

#: How long a file of a tree may go on being shown after it was made private where it is (seconds): there are more of
#: those than can be looked at for each start.
_PATIENCE = 1.0


class DetectedView:
    """The view of this host as JSON, for as long as :meth:`holds`: to look anew takes longer than a start may."""

    def __init__(self) -> None:
        began = time.time_ns()
        view = HostView.detect()
        self.json = view.to_json()
        directories, listed = ["/", "/etc"], []
        for tree in view.trees:
            for path, _, names in os.walk(tree):
                directories.append(path)
                listed += [f"{path}/{name}" for name in names]
        self._directories = directories
        self._stamps = _stamps(directories)
        self._files = [path for path in view.files if _is_public(path)]
        self._listed = [path for path in listed if not os.path.islink(path)]
        self._looked = time.monotonic()
        self._settled = max(self._stamps) < began - _TICK

    def holds(self) -> bool:
        """Whether a look at the host would find nothing that this shows to be private by now, and nothing new."""
        now = time.monotonic()
        try:
            same = self._settled and _stamps(self._directories) == self._stamps
            if not (same and all(map(_is_public, self._files))):
                return False
            if now - self._looked >= _PATIENCE:
                if not all(map(_is_public, self._listed)):
                    return False
                self._looked = now
        except OSError:  # it is not there any more
            return False
        return True


def _stamps(paths: Sequence[str]) -> list[int]:
    """When these were changed last: their names, modes and owners. Nobody can set that back. Raises OSError."""
    return [found.st_ctime_ns for found in map(os.stat, paths)]


def _is_public(path: str) -> bool:
    """Whether it is, or leads to, a regular file that everybody may read. Raises OSError."""
    return os.stat(path).st_mode & (0o170000 | 0o004) == stat.S_IFREG | 0o004


def _is_below(path: str, directories: list[str]) -> bool:
    """Whether it is one of the directories or in one."""
    return any(path == directory or path.startswith(directory + "/") for directory in directories)


def _parents(path: str) -> list[str]:
    """The directories above it, without the root."""
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]


def _python_prefixes() -> list[str]:
    """Where the running Python and its virtual environment are, unless that is also where other things are."""
    import sys

    elsewhere = ["/", *(path for path, _ in _DIRECTORIES), os.path.realpath(os.path.expanduser("~"))]
    prefixes = dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix))
    return [
        path
        for path in prefixes
        if os.path.isdir(path) and not any(_is_below(other, [os.path.realpath(path)]) for other in elsewhere)
    ]


def _is_readable(path: str, kind: Any, bits: int) -> bool:
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except OSError:
        return False
    return bool(kind(mode)) and mode & bits == bits


def _is_public_tree(path: str) -> bool:
    """Whether everybody on the host may read all of it: the container's root reads without regard to modes."""
    if not _is_readable(path, stat.S_ISDIR, 0o005):
        return False
    with os.scandir(path) as entries:
        return all(
            entry.is_symlink()
            or (
                _is_public_tree(entry.path)
                if entry.is_dir(follow_symlinks=False)
                else _is_readable(entry.path, stat.S_ISREG, 0o004)
            )
            for entry in entries
        )
