"""What the fuzzing tests are made of: values of a Command that are right, nearly right, and anything at all."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pycontainer import Mount, Network
from pycontainer.command import COMMAND_KEYWORDS

#: What has hurt somebody, somewhere.
TEXTS = st.sampled_from(
    (
        *(
            "",
            "a",
            "0",
            "-1",
            "a b",
            "a\nb",
            "a\0b",
            "\ud800",
            "\udcff",
            "é",
            "٣",
            "..",
            ".",
            "/",
            "//",
            "/..",
            "/a/../b",
        ),
        *("/proc/self/fd/7", "/proc/self/exe", "/dev/fd/3", "/dev", "/sys/kernel", "a" * 5000, "a=b", "=", ":", "%s"),
        *("root", "nobody", "4294967295", "4294967294", "0x10", "+1", "1:1", "1:", ":1", "root:root", "host", "none"),
        *(
            "ns:/proc/1/ns/net",
            "container:x",
            "bridge",
            "64m",
            "1e400",
            "1.5g",
            "nan",
            "0-",
            "0-9999",
            "0,0",
            "unconfined",
        ),
    )
)
NUMBERS = st.one_of(
    st.sampled_from(
        (0, 1, -1, 2, 4095, 4096, 100000, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63))
    ),
    st.integers(),
    st.sampled_from((0.5, 0.009, 1e9, -0.0, float("nan"), float("inf"), float("-inf"), 1e308)),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXTS | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
#: The same, of what JSON has.
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

SIZES = st.sampled_from((4096, 4194304, "64m", "1g", "1.5m", None))
PATHS = st.sampled_from(("/a", "/a/b", "/tmp/x", "/dev/x", "/etc/x", "/a b", "/é", "/run/x"))
NAMES = st.sampled_from(("a", "box", "b0x.y_z-1", "A" * 64))
CAPABILITIES = st.sampled_from(("CHOWN", "cap_kill", "CAP_SYS_ADMIN", "NET_RAW", "SETUID", "ALL"))
MOUNTS = st.one_of(
    st.builds(
        Mount,
        st.sampled_from(("/etc", "/usr", "/tmp", "/etc/passwd")),
        PATHS,
        read_only=st.booleans(),
        recursive=st.booleans(),
    ),
    st.builds(Mount.tmpfs, PATHS, size=SIZES, mode=st.sampled_from((None, 0, 0o700, 0o1777))),
)
NETWORKS = st.one_of(
    st.sampled_from((None, "none", "host", "ns:/proc/self/ns/net", "container:box", "bridge", "bridge:br0")),
    st.builds(Network, st.just("bridge"), address=st.just("10.0.0.2"), prefix_length=st.integers(1, 32)),
)
PROFILES = st.sampled_from(
    (
        None,
        "unconfined",
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]},
        {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": []},
    )
)

#: Values of each keyword of Command.of that are right, at least by themselves.
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "env": st.none()
    | st.dictionaries(st.sampled_from(("A", "PATH", "x.y")), st.text("ab \n=é", max_size=5), max_size=3),
    "cwd": st.sampled_from(("/", "/tmp", "/no/such")),
    "user": st.sampled_from((None, "root", 0, 1000, "1000:1000", "nobody", "no-such-user")),
    "groups": st.lists(st.sampled_from(("0", 5, "root", 4294967294)), max_size=3),
    "additional_groups": st.just(()),
    "hostname": st.none() | NAMES,
    "memory": SIZES,
    "memory_swap": st.sampled_from((None, -1, 0, "2g")),
    "cpus": st.sampled_from((None, 0.5, 1, 16777216)),
    "cpu_shares": st.none() | st.integers(2, 262144),
    "cpu_quota": st.sampled_from((None, None, None, -1, 50000)),
    "cpu_period": st.sampled_from((None, None, 1000, 100000)),
    "pids_limit": st.sampled_from((None, -1, 20)),
    "cpuset_cpus": st.sampled_from((None, "0", "0-1", "9999")),
    "cpuset_mems": st.sampled_from((None, "0")),
    "mounts": st.lists(MOUNTS, max_size=3),
    "network": NETWORKS,
    "capabilities": st.none(),
    "cap_add": st.lists(CAPABILITIES, max_size=2),
    "cap_drop": st.lists(CAPABILITIES, max_size=2),
    "name": st.none() | NAMES,
    "rlimits": st.dictionaries(st.sampled_from(("nofile", "RLIMIT_CORE", "nproc")), st.integers(20, 64), max_size=2),
    "pid": st.sampled_from((None, "host", "ns:/proc/self/ns/pid")),
    "ipc": st.sampled_from((None, "host", "container:box")),
    "uts": st.sampled_from((None, "host")),
    "seccomp": PROFILES,
    "masked_paths": st.none() | st.lists(PATHS, max_size=2),
    "readonly_paths": st.none() | st.lists(PATHS, max_size=2),
    "cgroup_parent": st.sampled_from((None, "a/b", "/a")),
    "rootfs": st.none() | st.sampled_from(("/usr", "/tmp")),
    "rootfs_propagation": st.sampled_from((None, "private", "rslave")),
    "sysctls": st.sampled_from((None, {"kernel.msgmax": 100}, {"net.ipv4.ip_forward": "1"})),
    "oom_score_adj": st.sampled_from((None, 0, 500, -1000)),
    "cpu_affinity": st.sampled_from((None, "0", "0-1")),
    "apparmor_profile": st.sampled_from((None, "unconfined", "docker-default")),
    "selinux_label": st.sampled_from((None, "system_u:system_r:container_t:s0:c1,c2")),
    "mount_label": st.sampled_from((None, "system_u:object_r:container_file_t:s0")),
    "config": st.lists(st.sampled_from(("a=b", "lxc.x = y")), max_size=1),
    "annotations": st.sampled_from((None, {}, {"a": "b"})),
    "hooks": st.none(),
}
for _name in COMMAND_KEYWORDS - RIGHT.keys():
    RIGHT[_name] = st.booleans()

_WORDS = st.sampled_from(("true", "sh", "/bin/echo", "a b", "é", "\udcff", "-x", ""))
ARGV = st.tuples(_WORDS.filter(bool), _WORDS, _WORDS).map(list)


def keywords(wrong: bool = True, names: frozenset[str] = COMMAND_KEYWORDS) -> st.SearchStrategy[dict[str, Any]]:
    """Some keywords; with *wrong*, every eighth value or so is not one of the right ones."""
    nearly = {
        name: st.integers(0, 7).flatmap(lambda n, right=right: right if n or not wrong else ANYTHING)  # type: ignore[misc]
        for name, right in RIGHT.items()
        if name in names
    }
    return st.fixed_dictionaries({}, optional=nearly).map(dict)


@st.composite
def mutated(draw: st.DrawFn, data: Any) -> Any:
    """*data*, of JSON's kinds, with something in it replaced, removed, added or doubled, somewhere."""
    for _ in range(draw(st.integers(1, 3))):
        data = _mutate(draw, data)
    return data


def _mutate(draw: st.DrawFn, data: Any) -> Any:
    if isinstance(data, (dict, list)) and data and draw(st.integers(0, 9)):
        copy = data.copy()
        key = draw(st.sampled_from(sorted(copy) if isinstance(copy, dict) else range(len(copy))))
        what = draw(st.integers(0, 9))
        if what == 0:
            del copy[key]
        elif what == 1 and isinstance(copy, dict):
            copy[draw(TEXTS)] = draw(JSON)
        elif what == 1:
            copy.insert(key, draw(JSON))
        elif what == 2 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = _mutate(draw, copy[key])
        return copy
    return draw(JSON)
