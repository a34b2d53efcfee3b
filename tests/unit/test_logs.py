"""Reading the log of a detached container, also while it is written and its files are renamed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycontainer import LogRecord
from pycontainer.logs import read_log

STAMP = "2026-10-06T00:17:09.500000000Z"
WHEN = 1791245829.5


def lines(*numbers: int) -> str:
    return "".join(f"{STAMP} stdout F {number}\n" for number in numbers)


def texts(records: object) -> list[bytes]:
    return [record.data for record in records]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (b"stdout F hello", LogRecord("stdout", WHEN, b"hello\n")),
        (b"stderr P no newline", LogRecord("stderr", WHEN, b"no newline")),
        (b"stdout F ", LogRecord("stdout", WHEN, b"\n")),
        (b"stdout P a  b F \xff\0", LogRecord("stdout", WHEN, b"a  b F \xff\0")),
    ],
)
def test_a_record(line: bytes, record: LogRecord) -> None:
    assert LogRecord.parse(STAMP.encode() + b" " + line) == record


def test_the_older_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(lines(7))
    for number in (1, 2, 10):
        (tmp_path / f"log.{number}").write_text(lines(number))
    assert texts(read_log(tmp_path)) == [b"10\n", b"2\n", b"1\n", b"7\n"]


def test_a_log_that_has_not_begun(tmp_path: Path) -> None:
    assert list(read_log(tmp_path)) == []
    with pytest.raises(FileNotFoundError):
        list(read_log(tmp_path / "missing"))


def test_following_through_renamings(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(lines(0))
    rounds = iter(range(1, 6))

    def rotate() -> bool:
        number = next(rounds)
        with log.open("a") as file:  # after the reader's last look
            file.write(lines(number * 10))
        if number % 2:
            os.rename(log, tmp_path / "log.1")  # over the one before
            log.write_text(lines(number * 10 + 1))
        return number < 5

    wanted = [0, 10, 11, 20, 30, 31, 40, 50, 51]
    assert texts(read_log(tmp_path, rotate)) == [f"{number}\n".encode() for number in wanted]


def test_a_record_that_is_only_half_written(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(lines(1) + STAMP)

    def complete() -> bool:
        with log.open("a") as file:
            file.write(" stderr P later\n")
        return False

    assert texts(read_log(tmp_path, complete)) == [b"1\n", b"later"]


def test_a_reader_that_is_too_slow_misses_what_was_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(lines(1))

    def rotate() -> bool:
        for number in (2, 3, 4):
            os.rename(log, tmp_path / "log.1")
            log.write_text(lines(number))
        return False

    assert texts(read_log(tmp_path, rotate)) == [b"1\n", b"3\n", b"4\n"]


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(0, []), (1, [b"5"]), (2, [b"3", b"4\n", b"5"]), (3, [b"2\n", b"3", b"4\n", b"5"]), (99, None)],
)
def test_the_last_lines(tmp_path: Path, tail: int, kept: list[bytes] | None) -> None:
    pieces = f"{STAMP} stdout P 3\n{STAMP} stdout F 4\n{STAMP} stdout P 5\n"
    (tmp_path / "log.1").write_text(lines(1))
    (tmp_path / "log").write_text(lines(2) + pieces)
    everything = [b"1\n", b"2\n", b"3", b"4\n", b"5"]
    assert texts(read_log(tmp_path, tail=tail)) == (everything if kept is None else kept)


def test_the_last_lines_and_what_comes_then(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(lines(1, 2, 3))

    def more() -> bool:
        with (tmp_path / "log").open("a") as file:
            file.write(lines(4, 5))
        return False

    assert texts(read_log(tmp_path, more, tail=1)) == [b"3\n", b"4\n", b"5\n"]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(lines(1, 2))
    before = os.listdir("/proc/self/fd")
    reader = read_log(tmp_path)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert os.listdir("/proc/self/fd") == before
