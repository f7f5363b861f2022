"""support/shell.py: wrong arguments, errors in one line, Ctrl-C, files never half-written."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from helpers import refused

from support import shell
from support.shell import Folder, between, checked, errors_in_one_line, interrupts, parse, replacing

# --- arguments


@checked
class Inner:
    rate: Annotated[float, between(0, 1)] = 0.5
    hidden: tuple[Annotated[int, between(1, 999)], ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    place: Folder = ""

    def __post_init__(self):
        if self.kind == "b" and self.rate > 0.9:
            raise ValueError("--kind b and --rate do not go together")


@checked
class Toy:
    inner: tyro.conf.OmitArgPrefixes[Inner] = field(default_factory=Inner)
    runs_dir: Folder = "runs"


def test_arguments_become_a_dataclass_and_a_leading_tilde_the_home_directory():
    found = parse(Toy, ["--rate", "0.25", "--hidden", "3", "4", "--kind", "b", "--runs-dir=~/x", "--place", "~"])
    assert (found.inner.rate, found.inner.hidden, found.inner.kind) == (0.25, (3, 4), "b")
    assert (Path(found.inner.place), Path(found.runs_dir)) == (Path.home(), Path.home() / "x")
    assert parse(Toy, []) == Toy()


WRONG = {
    "--rate 1.5": "--rate 1.5: allowed is 0 to 1; give a value in that range",
    "--rate nan": "--rate nan: allowed is 0 to 1; give a value in that range",
    "--hidden 3 1000": "--hidden 1000: allowed is 1 to 999; give a value in that range",
    "--kind c": "'c' for argument '--kind'. Expected one of ('a', 'b')",
    "--kind b --rate 0.95": "--kind b and --rate do not go together",
    "--rate": "Missing value for argument '--rate'",
    "--rate fast": "--rate: could not convert string to float: 'fast'",
    "--ratte 0.1": "Unrecognized options: --ratte, 0.1 Perhaps you meant: --rate FLOAT",
    "--hidden 100,50": "error: --hidden 100,50: write --hidden 100 50 (--help lists the settings)",
    "--hidden=100, 50": "error: --hidden 100, 50: write --hidden 100 50",
    "\u2013rate 0.1": "error: \u2013rate: begins with a long dash; write --rate",
    "\u2014runs-dir x": "error: \u2014runs-dir: begins with a long dash; write --runs-dir",
    "--rate 0.1 --kind a --rate=0.2": "error: --rate: given twice; keep one of them",
    "--runs_dir x --runs-dir x": "error: --runs-dir: given twice; keep one of them",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_argument_says_what_is_wrong_and_what_is_allowed(arguments, capfd):
    code, found = refused(capfd, lambda argv: parse(Toy, argv), *arguments.split())
    assert code == 2 and WRONG[arguments] in found, found


# --- the last line of defence


class Expected(Exception):
    pass


def raising(error):
    def main(argv=()):
        with errors_in_one_line(Expected):
            raise error

    return main


def test_whatever_goes_wrong_is_one_line(capfd, monkeypatch):
    for error, line in (
        (Expected("x\n  y"), "error: x y"),
        (ZeroDivisionError("a\nb"), "error: ZeroDivisionError: a b (SHOW_TRACEBACK=1 shows where)"),
        (RuntimeError("x" * 1000), f"error: RuntimeError: {'x' * 300} (SHOW_TRACEBACK=1 shows where)"),
        (OSError(28, "Full", "f"), "error: f: Full; what was written before is kept"),
        (OSError(28, "Full"), "error: Full; what was written before is kept"),
    ):
        assert refused(capfd, raising(error)) == (1, line + "\n")
    for interrupt, line in ((KeyboardInterrupt("go on"), "interrupted; go on"), (KeyboardInterrupt(), "interrupted")):
        with pytest.raises(SystemExit) as stop:
            raising(interrupt)()
        assert stop.value.code == 130 and capfd.readouterr().err == f"\n{line}\n"
    monkeypatch.setenv("SHOW_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())()


def test_threads_of_libraries_are_silent(monkeypatch):
    """The caller meets the same error, and says it in one line."""
    said = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    with errors_in_one_line():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert said == [] and threading.excepthook == said.append


@pytest.mark.parametrize("end", ["pass", "1 / 0"])
def test_a_closed_pipe_is_quiet_however_the_script_ends(end):
    """What is printed waits in a buffer (-E: also where PYTHONUNBUFFERED is set), and comes too late to be caught."""
    code = f"import sys; from support.shell import errors_in_one_line\nwith errors_in_one_line(): print('x'); {end}"
    reader, writer = os.pipe()
    os.close(reader)
    words, root = [sys.executable, "-E", "-c", code], Path(shell.__file__).parent.parent
    done = subprocess.run(words, cwd=root, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == b""


posix = pytest.mark.skipif(sys.platform == "win32", reason="there os.kill ends a process, whatever the signal")


@posix
@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_the_first_ctrl_c_or_sigterm_waits_and_the_second_does_not(first):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts() as interrupted:
        assert not interrupted.is_set()
        os.kill(os.getpid(), getattr(signal, first))
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# --- files


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.parent == path.parent and beside.name.startswith(".")
        assert str(os.getpid()) in beside.name, "two processes write beside each other"
    assert path.read_text() == "new"
    with pytest.raises(OSError) as caught, replacing(path) as beside:
        beside.write_text("half")
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path), "a full disk does not say where"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
