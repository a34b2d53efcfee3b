"""Areas: what the payload finds around itself. A field is honoured or refused, never ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycontainer import Mount
from pycontainer.testing.conformance.base import Area

__all__ = ["Environment", "Mounts"]


class Environment(Area):
    """Variables, working directory, user, host name, limits of a process."""

    def test_variables_are_exactly_those_given(self) -> None:
        given = {"PATH": "/usr/bin:/bin", "A": "1", "B": "two words", "C": "x=y", "D": "", "E": "\u00fc"}
        lines = self.run(self.payload.environment(), env=given, encoding="utf-8").stdout.splitlines()
        # A shell between us and the program may add the first three, a container manager the last (systemd's
        # Container Interface).
        added = ("PWD", "SHLVL", "_", "container")
        assert {line for line in lines if line.partition("=")[0] not in added} == {
            f"{name}={value}" for name, value in given.items()
        }

    def test_nothing_of_ours_comes_along(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYCONTAINER_TEST_SECRET", "secret")
        assert "secret" not in self.run(self.payload.environment()).stdout

    def test_there_is_a_path_and_a_home(self) -> None:
        names = {line.partition("=")[0] for line in self.run(self.payload.environment()).stdout.splitlines()}
        assert {"PATH", "HOME"} <= names

    def test_a_value_of_several_lines(self) -> None:
        env = {"PATH": "/usr/bin:/bin", "A": "one\ntwo"}
        if self.honours("process.env", env=env):
            assert self.run(self.payload.variable("A"), env=env).stdout == "one\ntwo\n"

    def test_the_working_directory(self) -> None:
        assert self.run(self.payload.directory()).stdout == "/\n"
        if self.honours("process.working_dir", cwd="/tmp"):
            assert self.run(self.payload.directory(), cwd="/tmp").stdout == "/tmp\n"

    def test_root_without_a_user(self) -> None:
        assert self.run(self.payload.ids()).stdout.split()[:2] == ["0", "0"]

    def test_a_user_by_number(self) -> None:
        if self.honours("process.user", user="1234:2345"):
            assert self.run(self.payload.ids(), user="1234:2345").stdout == "1234 2345 2345\n"

    def test_a_user_by_name(self) -> None:
        if self.honours("process.user", user="root"):
            assert self.run(self.payload.ids(), user="root").stdout.split()[:2] == ["0", "0"]

    def test_more_groups(self) -> None:
        if self.honours("process.additional_groups", user="1234:2345", groups=[3456]):
            assert self.run(self.payload.ids(), user="1234:2345", groups=[3456]).stdout == "1234 2345 2345 3456\n"

    def test_no_groups_of_ours(self) -> None:
        assert self.run(self.payload.ids()).stdout == "0 0 0\n"

    def test_the_host_name(self) -> None:
        if self.honours("hostname", hostname="kit-host"):
            assert self.run(self.payload.hostname(), hostname="kit-host").stdout == "kit-host\n"

    def test_the_host_name_is_the_id_by_default(self) -> None:
        if self.honours("hostname", hostname="kit-host"):
            assert self.run(self.payload.hostname(), name="kit-name").stdout == "kit-name\n"

    def test_limits_of_a_process(self) -> None:
        if self.honours("process.rlimits", rlimits={"nofile": (50, 60)}):
            assert self.run(self.payload.open_files_limit(), rlimits={"nofile": (50, 60)}).stdout == "50 60\n"


class Mounts(Area):
    """Binds and tmpfs, read-only or not."""

    @pytest.fixture
    def shared(self, tmp_path: Path) -> Path:
        """A directory of the host with one file."""
        tmp_path.chmod(0o777)
        (tmp_path / "file").write_text("from outside")
        return tmp_path

    def test_a_directory(self, shared: Path) -> None:
        mounts = [Mount(str(shared), "/data")]
        if not self.honours("mounts", mounts=mounts):
            return
        assert self.run(self.payload.read("/data/file"), mounts=mounts).stdout == "from outside"
        assert self.run(self.payload.write("/data/new", "from inside"), mounts=mounts).returncode == 0
        assert (shared / "new").read_text() == "from inside"

    def test_a_file(self, shared: Path) -> None:
        mounts = [Mount(str(shared / "file"), "/data-file")]
        if self.honours("mounts", mounts=mounts):
            assert self.run(self.payload.read("/data-file"), mounts=mounts).stdout == "from outside"

    def test_read_only(self, shared: Path) -> None:
        mounts = [Mount(str(shared), "/data", read_only=True)]
        if not self.honours("mounts", mounts=mounts):
            return
        assert self.run(self.payload.read("/data/file"), mounts=mounts).stdout == "from outside"
        assert self.run(self.payload.write("/data/file", "changed"), mounts=mounts).returncode != 0
        assert (shared / "file").read_text() == "from outside"

    def test_one_below_another(self, shared: Path) -> None:
        (shared / "below").mkdir()
        mounts = [Mount(str(shared), "/data"), Mount.tmpfs("/data/below")]
        if not self.honours("mounts", mounts=mounts):
            return
        assert self.run(self.payload.write("/data/below/new", "x"), mounts=mounts).returncode == 0
        assert list((shared / "below").iterdir()) == []

    def test_a_tmpfs(self) -> None:
        mounts = [Mount.tmpfs("/data")]
        if not self.honours("mounts", mounts=mounts):
            return
        assert self.run(self.payload.write("/data/new", "x"), mounts=mounts).returncode == 0
        assert self.run(self.payload.read("/data/new"), mounts=mounts).returncode != 0

    def test_a_read_only_root(self) -> None:
        if self.honours("read_only", read_only=True):
            assert self.run(self.payload.write("/tmp/new", "x"), read_only=True).returncode != 0

    def test_flags_of_mounts(self, tmp_path: Path) -> None:
        mounts = [
            Mount(str(tmp_path), "/data", read_only=True, options=("nosuid", "nodev", "noexec")),
            Mount.tmpfs("/small", size="1m"),
        ]
        if self.honours("mounts", mounts=mounts):
            assert self.differing("mounts./data", "mounts./small", mounts=mounts) == []

    def test_a_root_that_is_read_only(self) -> None:
        if self.honours("read_only", read_only=True):
            assert self.receipt_of(read_only=True).read_only
