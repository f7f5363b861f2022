import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import field
from typing import Annotated, Literal

import pytest
import tyro
from helpers import ROOT, refused
from pydantic.dataclasses import dataclass

from support.shell import between, command_line, errors_in_one_line, interrupts, parse, replacing

# --- arguments


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, between(0, 1)] = 0.5
    count: Annotated[int, between(1, 2**31 - 1)] = 1
    widths: tuple[Annotated[int, between(1, 9)], ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    place: str = ""

    def __post_init__(self):
        if self.kind == "b" and self.count > 5:
            raise ValueError("--kind b and --count do not go together")


@dataclass(frozen=True)
class Toy:
    inner: tyro.conf.OmitArgPrefixes[Inner] = field(default_factory=Inner)
    storage: str = ""


def test_arguments_become_a_dataclass():
    words = ["--rate", "0.25", "--widths", "3", "4", "--kind", "b", "--storage", "here"]
    assert parse(Toy, words) == Toy(Inner(rate=0.25, widths=(3, 4), kind="b"), storage="here")
    assert parse(Toy, []) == Toy()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--rate 1.5", "--rate 1.5: allowed is 0 to 1; give a value in that range"),
        ("--rate nan", "--rate nan: allowed is 0 to 1; give a value in that range"),
        ("--count 2147483648", "--count 2147483648: allowed is 1 to 2147483647; give a value in that range"),
        ("--widths 3 10", "--widths 10: allowed is 1 to 9; give a value in that range"),
        ("--kind c", "--kind c: allowed are a, b"),
        ("--kind b --count 6", "--kind b and --count do not go together"),
        ("--rate", "--rate: a value is missing"),
        ("--rate fast", "--rate: could not convert string to float: 'fast'"),
        ("--ratte 0.1", "--ratte: there is no such option; did you mean --rate?"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, line, capfd):
    code, found = refused(capfd, lambda argv: parse(Toy, argv), *shlex.split(arguments))
    assert code == 2 and found == f"error: {line} (--help lists the settings)\n"


def test_help_names_every_setting(capfd):
    with pytest.raises(SystemExit) as stop:
        parse(Toy, ["--help"])
    out = capfd.readouterr().out
    assert stop.value.code == 0 and "\x1b" not in out
    assert all(name in out for name in ("--rate", "--count", "--widths", "--kind {a,b}", "--storage"))


def test_a_command_line_survives_the_shell():
    settings = {"place": "a b/'c'", "rate": 0.25, "widths": (3, 4), "count": 7}
    words = shlex.split(command_line("toy.py", settings))
    assert words[:2] == ["python", "toy.py"] and parse(Inner, words[2:]) == Inner(**settings)


# --- the last line of defence


class Expected(Exception):
    pass


def raising(error):
    def main(argv):
        with errors_in_one_line(Expected):
            raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Expected("x\n  y"), "error: x y"),
        (ZeroDivisionError("a\nb"), "error: ZeroDivisionError: a b (SHOW_TRACEBACK=1 shows where)"),
        (RuntimeError("x" * 1000), f"error: RuntimeError: {'x' * 300} (SHOW_TRACEBACK=1 shows where)"),
        (MemoryError(), "error: MemoryError: (SHOW_TRACEBACK=1 shows where)"),
        (OSError(28, "Full", "f"), "error: f: Full; what was written before is kept"),
        (OSError(28, "Full"), "error: Full; what was written before is kept"),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_one_line(error, line, capfd):
    code, found = refused(capfd, raising(error))
    assert code == 1 and found == line + "\n"


def test_a_traceback_can_be_had(monkeypatch):
    monkeypatch.setenv("SHOW_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])


def test_ctrl_c_is_one_line_and_130(capfd):
    with pytest.raises(SystemExit) as stop:
        raising(KeyboardInterrupt("go on with: x"))([])
    assert stop.value.code == 130 and capfd.readouterr().err == "\ninterrupted; go on with: x\n"
    with pytest.raises(SystemExit):
        raising(KeyboardInterrupt())([])
    assert capfd.readouterr().err == "\ninterrupted\n"


def test_what_goes_well_stays_as_it_is(capfd):
    with errors_in_one_line():
        print("well")
    with pytest.raises(SystemExit) as stop, errors_in_one_line():
        sys.exit(7)
    assert stop.value.code == 7 and capfd.readouterr() == ("well\n", "")


def test_threads_of_libraries_are_silent(monkeypatch):
    """The caller meets the same error, and says it in one line."""
    said = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    hook = threading.excepthook
    with errors_in_one_line():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert said == [] and threading.excepthook is hook


def test_a_closed_pipe_is_quiet_however_the_script_ends():
    """What is printed waits in a buffer (-E: also where PYTHONUNBUFFERED is set), and comes too late to be caught."""
    for end in ("pass", "sys.exit(0)", "1 / 0"):
        code = f"import sys; from support.shell import errors_in_one_line\nwith errors_in_one_line(): print('x'); {end}"
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-E", "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert done.returncode == 1 and done.stderr == b""


def test_sigint_that_was_ignored_works_again():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stop, errors_in_one_line():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert stop.value.code == 130
    finally:
        signal.signal(signal.SIGINT, previous)


def test_the_first_ctrl_c_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as interrupted:
        assert not interrupted.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupts_are_the_main_thread_s():
    def work():
        with interrupts() as interrupted:
            seen.append(interrupted.is_set())

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


# --- files


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.parent == path.parent and beside.name.startswith(".")
        assert str(os.getpid()) in beside.name, "two processes write beside each other"
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), replacing(path) as beside:
        beside.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_file_system_says_where(tmp_path):
    with pytest.raises(OSError) as caught, replacing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "file")
