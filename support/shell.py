"""What a script needs around an experiment: arguments, errors in one line, Ctrl-C, files never half-written."""

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pydantic
import tyro

TRACEBACK = "SHOW_TRACEBACK"  # the environment variable that lets an error show where it came from
LONG_DASHES = "\u2013", "\u2014"  # what PDF files make of two short ones
STOP = threading.Event()  # for the threads of a worker, which no signal reaches: set when they are to save and stop

# --- settings and arguments ------------------------------------------------------------------------------------------


def checked(cls: type) -> type:
    """A frozen dataclass that checks its types, choices and ranges; what is wrong is a ValueError of one line."""
    made = pydantic.dataclasses.dataclass(frozen=True, config={"strict": True, "extra": "forbid"})(cls)
    init = made.__init__

    @functools.wraps(init)
    def say_in_one_line(self, *values, **named):
        try:
            init(self, *values, **named)
        except pydantic.ValidationError as error:
            fault = error.errors(include_url=False)[0]
            reason = one_line(fault["ctx"]["error"] if fault["type"] == "value_error" else fault["msg"])
            name = f"{flag(str(fault['loc'][0]))} {one_line(fault['input'])[:100]}: " if fault["loc"] else ""
            raise ValueError(name + reason) from None

    made.__init__ = say_in_one_line
    return made


def between(low: float, high: float) -> pydantic.AfterValidator:
    """The range of a setting, on the setting's own line, both ends allowed: `lr: Annotated[float, between(0, 1)]`."""

    def check_range(value):
        if not low <= value <= high:  # true for NaN as well
            raise ValueError(f"allowed is {low:.10g} to {high:.10g}; give a value in that range")
        return value

    return pydantic.AfterValidator(check_range)


Folder = Annotated[str, pydantic.AfterValidator(os.path.expanduser)]  # a shell leaves the ~ of --out=~/x as it is


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_text(value: object) -> str:
    """A setting as it stands on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value).removesuffix(".0")


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def parse(options: type, argv: Sequence[str] | None = None):
    """An instance of the dataclass `options` from the command line; tyro says what is wrong, with exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = [word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for word in words:  # three mistakes follow of which tyro cannot say what to write instead
        if word.startswith(LONG_DASHES):
            wrong_arguments(f"{word}: begins with a long dash; write --{word.lstrip(''.join(LONG_DASHES))}")
    if twice := [name for name in given if given.count(name) > 1]:
        wrong_arguments(f"{twice[0]}: given twice; keep one of them (several values go behind one)")
    if found := re.search(r"--hidden[ =](\d+(?: *, *\d+)+)", " ".join(words)):
        wrong_arguments(f"--hidden {found[1]}: write --hidden {' '.join(found[1].replace(',', ' ').split())}")
    return tyro.cli(options, args=words)


def wrong_arguments(message: str) -> typing.NoReturn:
    """Ends the program with one line and exit code 2."""
    print(f"error: {message} (--help lists the settings)", file=sys.stderr)
    sys.exit(2)


# --- errors and Ctrl-C -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def errors_in_one_line(*expected: type[Exception]) -> Iterator[None]:
    """The last line of defence around a script: whatever goes wrong is one line and exit code 1; Ctrl-C is 130.

    The errors `expected` explain themselves; of all others the type is named too.
    """
    if os.environ.get(TRACEBACK):
        yield
        return
    hook, threading.excepthook = threading.excepthook, lambda _: None  # what a library's thread hits, the caller will
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here a closed pipe can still be caught
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted; {one_line(interrupt)}".removesuffix("; "), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except expected as error:
        sys.exit(f"error: {one_line(error)}")
    except OSError as error:
        place = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or one_line(error)
        sys.exit(f"error: {place}; what was written before is kept")
    except Exception as error:
        sys.exit(one_line(f"error: {type(error).__name__}: {one_line(error)[:300]} ({TRACEBACK}=1 shows where)"))
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C or SIGTERM sets the event and cuts no update in half; a second one ends as usual."""
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield STOP
        return
    event, usual = threading.Event(), {}

    def handle(*_):
        event.set()
        for number in usual:
            signal.signal(number, usual[number])

    usual |= {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number in usual:
            signal.signal(number, usual[number])


# --- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there afterwards takes the place of `path` at once, or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        beside.unlink(missing_ok=True)
