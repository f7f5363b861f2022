"""What a script needs around an experiment: arguments, errors in one line, Ctrl-C, files never half-written."""

import contextlib
import io
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import tyro


def parse(options: type, argv: list[str] | None = None):
    """An instance of the dataclass `options` from the command line; a wrong argument is one line and exit code 2."""
    report = io.StringIO()
    try:
        with contextlib.redirect_stdout(report), contextlib.redirect_stderr(report):
            return tyro.cli(options, args=argv)
    except SystemExit as stop:
        if not stop.code:
            print(report.getvalue())  # --help
            raise
        message = one_line(re.split("-{9,}", report.getvalue())[1])  # between a title and where to find help
        wrong_arguments(re.sub(r"^Error parsing \w+: ", "", message))


def wrong_arguments(message: str) -> None:
    """Ends the program with one line and exit code 2."""
    print(f"error: {message} (--help lists the settings)", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def errors_in_one_line(*errors: type[Exception]) -> Iterator[None]:
    """Ends the program with one line and exit code 1 for `errors` and those of the file system, with 130 for Ctrl-C."""
    try:
        yield
    except errors as error:
        sys.exit(f"error: {one_line(error)}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}; what was written before is kept")
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted; {one_line(interrupt)}".removesuffix("; "), file=sys.stderr)
        sys.exit(130)


def one_line(text: object) -> str:
    return " ".join(str(text).split())


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C sets the event and cuts no update in half; a second one interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield event
        return

    def handle(*_):
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there afterwards takes the place of `path` at once."""
    beside = path.with_name(path.name + ".tmp")
    yield beside
    beside.replace(path)


def write_json(path: Path, value: dict) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")
