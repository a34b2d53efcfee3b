"""The loop in machine code: its bytes against a disassembler, its behaviour against the one in Python."""

from __future__ import annotations

import ast
import ctypes
import errno
import marshal
import os
import re
import resource
import signal
import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer_native import abi, child, layout, machine
from pycontainer_native.request import Request

pytestmark = pytest.mark.skipif(not machine.present(), reason="there is no machine code for this machine")

#: Runs requests as the launcher does, by the loop whose name is the argument, and prints of each what its processes say
#: until they have ended, what they have written to the descriptor that is their stdout, and how the first one ends.
#: The processes are cloned for the request or, with "ahead", before the request is known.
CODE = """
import _socket as socket, ast, ctypes, marshal, os, sys, time
from pycontainer_native import abi, child, layout, machine
from pycontainer_native.request import Request

null, requests = ast.literal_eval(sys.stdin.read())
loop = sys.argv[1]

class Process:
    def __init__(self):
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reading, self.writing = os.pipe()

    def clone(self, begin):
        child.slots[abi.CHANNEL].value = self.theirs.fileno()
        arguments = (ctypes.c_ulong * 11)()
        arguments[4] = 17
        if loop == "python":
            self.pid = child.clone(arguments, child.bind(begin))
        else:
            self.pid = machine.clone(arguments, layout.table(begin))
            self.has = layout.mark()
        self.theirs.close()

    def send(self, message, given):
        self.ours.sendmsg([message], [(1, 1, b"".join(fd.to_bytes(4, "little") for fd in given))])

    def outcome(self, answer):
        said = []
        os.close(self.writing)
        while True:
            try:
                message = self.ours.recv(64)
            except ConnectionResetError:
                continue  # the request was left unread
            if not message:
                break
            if message == child.HOOKS:
                time.sleep(0.2)
                message += os.read(self.reading, 4096)
                if answer:
                    self.ours.send(answer)
                else:
                    self.ours.shutdown(socket.SHUT_RDWR)
            said.append(message[:1] if message[:1] == child.FORKED else message)
        written = b"".join(iter(lambda: os.read(self.reading, 4096), b""))
        said.sort(key=lambda message: message != child.FORKED)  # the two that there are do not wait for each other
        return said, written, os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

def run(sections, program, outside, hooks, stdin, answer, begins_next):
    global ahead
    sections = [marshal.dumps(section) for section in sections]
    ways = "join" if outside else "", outside, True, "", hooks, None, 0, None
    request = Request("", 0, [], sections, program, *ways)
    process, ahead = ahead or Process(), None
    incoming, outgoing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    incoming.setblocking(False)
    for _ in range(stdin):
        outgoing.send(b"message")
    given = [incoming.fileno(), process.writing, null, *([null] * 2 if outside else [])]
    has = getattr(process, "has", None)
    if loop == "python":
        memory = os.memfd_create("request")
        os.write(memory, request.to_wire())
        message = child.MEMFD
        process.send(message, [*given, memory])
    else:
        layout.make_room()
        layout.expect(sections[1:])
        frame = layout.lay(request, has)
        message = layout.message(frame, child.slots_of(request, len(given)))
        process.send(message, given)
    if has is None:
        process.clone(sections[0])
    outcome = process.outcome(answer)
    left = 0
    try:
        while incoming.recv(64):
            left += 1
    except BlockingIOError:
        pass
    if begins_next is not None:
        ahead = Process()
        ahead.clone(marshal.dumps(begins_next))
    return (*outcome, stdin - left)

ahead = None
print([run(*request) for request in requests])
"""

#: What every plan begins with: it takes the channel, and sees to it that descriptors get the numbers they are to have.
BEGIN = [
    (abi.NR["dup3"], ((abi.CHANNEL,), abi.CHANNEL_FD, abi.O_CLOEXEC), abi.CHANNEL, {}, 0, None),
    (abi.NR["close_range"], (abi.CHANNEL_FD + 1, 0xFFFFFFFF, 0), None, {}, 0, None),
    *[(abi.NR["dup3"], (abi.CHANNEL_FD, fd, abi.O_CLOEXEC), None, {}, 0, None) for fd in range(4, abi.FIRST_GIVEN_FD)],
    (abi.NR["umask"], (0,), None, {}, 0, None),
]
TAKE_STDOUT = (abi.NR["dup3"], ((abi.STDOUT,), 1, 0), None, {}, 0, None)
FIRST = abi.FIRST_SLOT

PROGRAM = ([b"/bin/echo"], [b"echo", b"done"], [b"A=1"])


def step(call: str, *arguments: Any, out: int | None = None, accept: Any = (), skip: int = 0, check: Any = None) -> Any:
    return (abi.NR[call], arguments, out, dict(accept), skip, check)


def wrote(text: bytes, **keywords: Any) -> Any:
    """A step that is seen to have been made."""
    return step("write", 1, text, len(text), **keywords)


def runs(loop: str, requests: list[Any], code: str = CODE) -> Any:
    """What comes of each of the requests."""
    null = os.open("/dev/null", os.O_RDWR)
    os.set_inheritable(null, True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, loop],
            input=repr((null, requests)),
            pass_fds=[null],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(null)
    assert done.stderr == ""
    return ast.literal_eval(done.stdout)


def asked(
    sections: list[Any],
    program: Any = PROGRAM,
    *,
    begin: Any = BEGIN,
    outside: int = 0,
    hooks: Any = None,
    stdin: int = 0,
    answer: bytes = b"s",
    begins_next: Any = None,
) -> Any:
    """A request, with so many messages to read from *stdin*, and what is said to who waits for hooks."""
    return [begin, *sections], program, outside, hooks, stdin, answer, begins_next


def both(sections: list[Any], program: Any = PROGRAM, **keywords: Any) -> Any:
    """What its processes say, write and exit with, which is the same by both loops."""
    request = asked(sections, program, **keywords)
    (by_python,), (by_machine,) = (runs(loop, [request]) for loop in ("python", "machine"))
    assert by_machine == by_python
    return by_machine if keywords.get("stdin") else by_machine[:3]


def failed(index: int, error: int, first: int = len(BEGIN)) -> bytes:
    """That the step of that index after the *first* ones has failed."""
    return child.FAILED + (first + index).to_bytes(4, "little") + error.to_bytes(4, "little")


def test_its_bytes_are_its_instructions() -> None:
    capstone = pytest.importorskip("capstone")
    lines = machine.LISTING.strip().splitlines()
    labels, address, listed = {}, 0, []
    for line in lines:
        text = line.partition("#")[0].rstrip()
        if text.startswith(" "):
            code, instruction = text.split(None, 1)
            listed.append((address, instruction))
            address += len(code) // 2
        else:
            labels[text.rstrip(":")] = address
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found = [(i.address, f"{i.mnemonic} {i.op_str}".rstrip()) for i in disassembler.disasm(machine.code(), 0)]
    jump = re.compile(r"(?<=^j)(\w+ )(\w+)$")
    assert found == [
        (at, jump.sub(lambda m: m[1] + f"{labels[m[2]]:#x}".replace("0x0", "0"), text)) for at, text in listed
    ]


def test_its_numbers_are_the_ones_named_elsewhere() -> None:
    text = machine.LISTING
    assert f"mov esi, {machine.CLONE_ARGS:#x}" in text
    assert f"mov eax, {abi.NR['clone3']:#x}" in text
    assert f"mov ebp, {abi.RETRIES + 1:#x}" in text
    messages = [f"{message[0]:#x}" for message in (child.FAILED, child.FORKED)]
    assert messages == re.findall(r"byte ptr \[rbx\], (\w+)", text)


def test_the_program_is_executed_with_its_arguments_and_environment() -> None:
    program = ([b"/usr/bin/env"], [b"env"], [b"A=1", b"B=two words"])
    assert both([[TAKE_STDOUT]], program) == ([b"x"], b"A=1\nB=two words\n", 0)


def test_a_failed_step_is_reported_with_its_index_in_the_whole_plan() -> None:
    sections = [[TAKE_STDOUT, wrote(b"1")], [wrote(b"2"), step("close", -1), wrote(b"3")], []]
    assert both(sections) == ([failed(3, errno.EBADF)], b"12", 1)


def test_the_first_step_is_reported_on_the_channel_that_it_does_not_have_yet() -> None:
    broken = step("dup3", (abi.CHANNEL,), -1, 0, out=abi.CHANNEL)
    assert both([[], []], begin=[broken]) == ([failed(0, errno.EBADF, 0)], b"", 1)


def test_accepted_errors_skip_others_do_not() -> None:
    missing = step("openat", abi.AT_FDCWD, b"/nowhere", 0, accept={errno.EBADF: 0, errno.ENOENT: 1})
    steps = [missing, wrote(b"skipped"), wrote(b"made", skip=1), wrote(b"skipped")]
    assert both([[TAKE_STDOUT, *steps], []]) == ([b"x"], b"madedone\n", 0)


def test_retries_end_with_success_or_after_so_many() -> None:
    # Each time a message is lost, which cannot be put where it is to go.
    lose = step("read", (abi.STDIN,), 1, 1, accept={errno.EFAULT: abi.RETRY, errno.EAGAIN: 0})
    assert both([[TAKE_STDOUT, lose, lose], []], stdin=10) == ([b"x"], b"done\n", 0, 10)
    assert both([[TAKE_STDOUT, lose], []], stdin=abi.RETRIES) == ([b"x"], b"done\n", 0, abi.RETRIES)
    said, _, code, lost = both([[TAKE_STDOUT, lose], []], stdin=abi.RETRIES + 10)
    assert (said, code, lost) == ([failed(1, errno.EFAULT)], 1, abi.RETRIES + 1)


def test_a_result_is_an_argument_and_a_word_of_a_structure_later_on() -> None:
    pipe = step("fcntl", 1, abi.F_DUPFD_CLOEXEC, 40, out=FIRST)
    vector = [[b"from a structure", 16], (FIRST,), b"\0"]
    sections = [
        [
            TAKE_STDOUT,
            pipe,
            step("write", (FIRST,), b"by its slot, ", 13),
            step("write", 1, [(FIRST,)], 1),  # the lowest byte of the word: 40 is "("
            step("write", 1, [vector][0][0][0], 16),
        ],
        [],
    ]
    assert both(sections)[1] == b"by its slot, (from a structuredone\n"


@pytest.mark.parametrize(
    ("fourth", "fifth", "sixth", "error"),
    [(0, 0, 0, 0), (1, 0, 0, errno.EINVAL), (0, 1, 0, errno.EINVAL), (0, 0, 1, errno.EAGAIN)],
)
def test_the_last_of_many_arguments_have_their_places(fourth: int, fifth: int, sixth: int, error: int) -> None:
    bound = step("prctl", abi.PR_SET_NO_NEW_PRIVS, 1, 0, fourth, fifth)  # all but the second have to be 0
    word = ("buffer", bytes(8))
    requeue = (202, (word, 4, 0, 0, word, sixth), None, {}, 0, None)  # futex, FUTEX_CMP_REQUEUE: the word has to be it
    outcome = both([[TAKE_STDOUT, bound, requeue], []])
    assert outcome == (
        ([failed(1 if error == errno.EINVAL else 2, error)], b"", 1) if error else ([b"x"], b"done\n", 0)
    )


@pytest.mark.parametrize(("wanted", "outcome"), [(b"/", ([b"x"], b"done\n", 0)), (b"(", ([failed(1, 95)], b"", 1))])
def test_what_a_call_writes_is_compared(wanted: bytes, outcome: Any) -> None:
    looked = step("getcwd", ("buffer", 4096), 4096, check=(wanted, 95))
    assert both([[TAKE_STDOUT, looked], []]) == outcome


def test_a_buffer_has_its_content_at_each_run() -> None:
    looked = step("read", (abi.STDERR,), ("buffer", b"abc"), 3, check=(b"abc", 95))  # /dev/null: nothing is read
    assert both([[TAKE_STDOUT, looked], []]) == ([b"x"], b"done\n", 0)


def test_the_fork_is_reported_and_what_fails_after_it() -> None:
    sections = [[TAKE_STDOUT, wrote(b"outside ")], [wrote(b"inside "), step("close", -1)], []]
    assert both(sections, outside=1) == ([b"p", failed(3, errno.EBADF)], b"outside inside ", 0)
    assert both([*sections[:1], [wrote(b"inside ")], []], outside=1) == ([b"p", b"x"], b"outside inside done\n", 0)


def test_it_waits_for_the_hooks_on_the_host_where_they_are_due() -> None:
    sections = [[TAKE_STDOUT, wrote(b"before ")], [wrote(b"after ")], []]
    hooks: Any = (1, b"{}", {"createRuntime": []})
    assert both(sections, hooks=hooks) == ([b"hbefore ", b"x"], b"after done\n", 0)
    for answer in (b"", b"n"):
        said, written, code, _ = runs("machine", [asked(sections, hooks=hooks, answer=answer)])[0]
        assert (said[0], b"after" in written, code) == (b"hbefore ", False, 1)


@pytest.mark.parametrize(
    ("paths", "outcome"),
    [
        (["/nowhere/echo"], errno.ENOENT),
        (["/etc/passwd"], errno.EACCES),
        (["/etc/passwd/echo"], errno.ENOTDIR),
        (["/nowhere/echo", "/etc/passwd/echo", "/bin/echo"], 0),
        (["/etc/passwd", "/nowhere/echo", "/bin/echo"], 0),
        (["/nowhere/echo", "/etc/passwd", "/nowhere/echo"], errno.EACCES),
        (["/etc/passwd", "/nowhere/echo"], errno.EACCES),
        (["/nowhere/echo", "/etc/passwd"], errno.EACCES),
        (["/nowhere/echo", "/etc/passwd/echo"], errno.ENOTDIR),
        (["/nowhere/echo", "/" + "x" * 300, "/bin/echo"], errno.ENAMETOOLONG),
        (["/etc/passwd", "/" + "x" * 300, "/bin/echo"], errno.ENAMETOOLONG),
    ],
)
def test_paths_are_tried_as_execvp_does(paths: list[str], outcome: int) -> None:
    program = ([os.fsencode(path) for path in paths], [b"echo", b"done"], [])
    said, wrote, code = both([[TAKE_STDOUT], []], program)
    assert (said, wrote, code) == (([b"x", failed(1, outcome)], b"", 1) if outcome else ([b"x"], b"done\n", 0))


def test_what_is_too_much_for_it_is_left_to_python() -> None:
    assert lay(PROGRAM) is not None
    assert lay((PROGRAM[0], [b"x" * layout.MOST], [])) is None
    assert lay(PROGRAM, hooks=(1, b"{}", {"poststop": []})) is not None
    assert lay(PROGRAM, hooks=(1, b"{}", {"createContainer": []})) is None
    assert lay(PROGRAM, hooks=(1, b"{}", {"startContainer": []})) is None
    assert lay(PROGRAM, fork="init") is None


def lay(program: Any, *, fork: str = "", hooks: Any = None) -> Any:
    sections = [marshal.dumps(section) for section in (BEGIN, [TAKE_STDOUT], [])]
    request = Request("", 0, [], sections, program, fork, 0, True, "", hooks, None, 0, None)
    return layout.lay(request, None)


def test_a_section_is_kept_when_it_comes_again_and_for_who_is_cloned_then() -> None:
    sections = [marshal.dumps(section) for section in (BEGIN, [TAKE_STDOUT, wrote(b"kept")], [])]
    request = Request("", 0, [], sections, PROGRAM, "", 0, True, "", None, None, 0, None)

    def has(known: Any) -> bool:
        frame = layout.lay(request, known)
        assert frame is not None
        return b"kept" not in frame[0]

    def fill_up() -> None:
        for number in range(2000):
            layout.table(marshal.dumps([step("write", 1, b"%d" % number * 100, 1)]))

    before = layout.mark()
    layout.expect(sections[1:])
    assert not has(None)
    layout.expect(sections[1:])
    assert has(None)
    assert not has(before)
    after = layout.mark()
    assert has(after)
    fill_up()
    assert has(after)
    layout.make_room()
    assert not has(None)
    layout.expect(sections[1:])
    assert has(None)
    assert not has(after)


def big(text: bytes) -> Any:
    """A section that writes *text*, and takes more room than others."""
    return [wrote(text), *[step("umask", number) for number in range(100)]]


def test_what_is_kept_and_forgotten_meanwhile_makes_no_difference() -> None:
    # Each of them comes three times, and they are more than there is room for.
    requests, outcomes = [], []
    for number in range(150):
        begin = [*BEGIN, step("umask", number % 7), step("umask", 0)]
        text = b"%d " % (number // 9 * 3 + number % 3)
        ahead = [*BEGIN, step("umask", (number + 1) % 7), step("umask", 0)] if number % 4 else None
        requests.append(asked([[TAKE_STDOUT], big(text), big(text + b"again "), []], begin=begin, begins_next=ahead))
        outcomes.append(([b"x"], text + text + b"again done\n", 0, 0))
    assert runs("machine", requests) == outcomes


def test_a_process_that_has_not_what_its_frame_relies_on_goes_no_further() -> None:
    code = CODE.replace("frame = layout.lay(request, has)", "frame = layout.lay(request, has); layout._kept.forget()")
    sections = [[TAKE_STDOUT], big(b"1"), []]
    assert runs("machine", [asked(sections)], code) == [([failed(0, errno.ESTALE)], b"", 1, 0)]


def test_a_filter_that_denies_even_its_end_ends_it() -> None:
    instructions = [(0x20, 0, 0, 0), (0x15, 0, 1, abi.NR["execve"]), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50001)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    confine = step("seccomp", abi.SECCOMP_SET_MODE_FILTER, 0, [len(instructions), code])
    sections = [[TAKE_STDOUT, step("prctl", abi.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)], [confine]]
    request = asked(sections, ([b"/nowhere/program"], [b""], []))
    assert runs("machine", [request]) == [([b"x"], b"", -signal.SIGILL, 0)]


def test_a_handler_of_the_launchers_is_not_the_clones() -> None:
    code = CODE.replace(
        "ahead = None\nprint", "import signal\nsignal.signal(signal.SIGXFSZ, print)\nahead = None\nprint"
    )
    limit = step("prlimit64", 0, resource.RLIMIT_FSIZE, bytes(16), 0)
    memory = (319, (b"", 0), FIRST, {}, 0, None)  # memfd_create
    sections = [[TAKE_STDOUT, memory, limit, step("write", (FIRST,), b"x", 1)], []]
    assert runs("machine", [asked(sections)], code) == [([], b"", -signal.SIGXFSZ, 0)]


def test_what_cannot_be_marked_is_not_cloned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    advised = []

    def refuse(address: int, length: int, advice: int) -> int:
        advised.append((advice, address))
        ctypes.set_errno(errno.EAGAIN if advice == machine._MADV_DONTFORK and len(advised) == 2 else errno.ENOMEM)
        return -1

    monkeypatch.setattr(machine.libc, "madvise", refuse)
    monkeypatch.setattr(machine, "_clone", None.__eq__)  # which is not called
    with pytest.raises(OSError, match="madvise") as caught:
        machine.clone((ctypes.c_ulong * 11)(), 0)
    assert caught.value.errno == errno.EAGAIN
    assert [address for advice, address in advised[2:]] == [address for address, _ in machine._ranges]
    assert {advice for advice, _ in advised[2:]} == {machine._MADV_DOFORK}


def test_a_large_section_is_laid_out_for_its_frame_alone() -> None:
    sections = [marshal.dumps(section) for section in (BEGIN, [wrote(b"%d" % n * 100) for n in range(900)], [])]
    request = Request("", 0, [], sections, PROGRAM, "", 0, True, "", None, None, 0, None)
    for _ in range(3):
        layout.expect(sections[1:])
        assert not layout.takes(request)
        assert layout.lay(request, None) is None


def test_a_row_has_the_index_of_its_first_step() -> None:
    sections = [BEGIN, [TAKE_STDOUT] * 2, [TAKE_STDOUT] * 3, [TAKE_STDOUT] * 4]
    request = Request(
        "", 0, [], [marshal.dumps(s) for s in sections], PROGRAM, "join", 1, True, "", (2, b"", {}), None, 0, None
    )
    frame = layout.lay(request, None)
    assert frame is not None
    first = len(BEGIN)
    rows = [layout._ROW.unpack_from(frame[0], layout._ROW.size * number)[2] for number in range(7)]
    total = first + 2 + 3 + 4
    assert rows == [
        first,
        total + 1,
        first + 2,
        first + 5,
        first + 5,
        first + 5,
        total,
    ]  # fork; gate and report; program


@pytest.mark.parametrize("wrong", ["a descriptor is missing", "a descriptor too many", "the message is cut off"])
def test_what_comes_with_a_request_is_what_was_to_come(wrong: str) -> None:
    changes = {
        "a descriptor is missing": "given.pop()",
        "a descriptor too many": "given.append(null)",
        "the message is cut off": "message += bytes(1 << 17)",
    }
    code = CODE.replace("self.ours.sendmsg(", f"{changes[wrong]}; self.ours.sendmsg(")
    assert runs("machine", [asked([[TAKE_STDOUT], []])], code) == [([failed(0, errno.EMFILE)], b"", 1, 0)]


any_step = st.one_of(
    st.builds(wrote, st.sampled_from([b"a", b"bc", b"def"]), skip=st.integers(0, 2)),
    st.builds(
        step,
        st.just("openat"),
        st.just(abi.AT_FDCWD),
        st.sampled_from([b"/nowhere", b"/etc/passwd/x"]),
        st.just(0),
        out=st.sampled_from([None, FIRST, FIRST + 1]),
        accept=st.dictionaries(st.sampled_from([errno.ENOENT, errno.ENOTDIR]), st.sampled_from([0, 1, 2, abi.RETRY])),
        skip=st.integers(0, 1),
    ),
    st.builds(step, st.just("umask"), st.integers(0, 0o777), out=st.just(FIRST)),
    st.builds(step, st.just("write"), st.just(1), st.just([(FIRST,), 7, [b"x", (FIRST + 1,)]]), st.integers(1, 16)),
    st.builds(step, st.just("umask"), st.just((FIRST,)), out=st.just(FIRST + 1)),
    st.builds(
        step,
        st.just("read"),
        st.just((abi.STDERR,)),  # /dev/null
        st.just(("buffer", b"abc")),
        st.just(3),
        check=st.sampled_from([(b"abc", 11), (b"a", 12), (b"b", 13), (b"", 14)]),
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(any_step, max_size=8), min_size=1, max_size=3))
def test_both_loops_do_the_same(sections: list[Any]) -> None:
    # No plan has a section twice; in Python the second one would find what the first has put into its structures.
    both([[TAKE_STDOUT], *[[wrote(b"%d" % number), *steps] for number, steps in enumerate(sections)], []])
