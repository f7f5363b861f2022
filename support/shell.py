"""What a script needs around an experiment: arguments, errors in one line, Ctrl-C, files never half-written."""

import contextlib
import difflib
import os
import re
import shlex
import signal
import sys
import threading
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import tyro
from pydantic import AfterValidator, ValidationError
from tyro import _errors  # tyro's structured account of what is wrong; private, hence the exact pin

TRACEBACK = "SHOW_TRACEBACK"  # the environment variable that lets an error show where it came from
TEMPORARY = ".tmp"  # how the names of half-written files end

# --- settings --------------------------------------------------------------------------------------------------------


def between(low: float, high: float) -> AfterValidator:
    """The range of a setting, on the setting's own line, both ends allowed: `lr: Annotated[float, between(0, 1)]`."""

    def check(value):
        if not low <= value <= high:  # true for NaN as well
            raise ValueError(f"allowed is {low:.10g} to {high:.10g}; give a value in that range")
        return value

    return AfterValidator(check)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def given_flags(argv: Sequence[str]) -> list[str]:
    """The options named in `argv`, as `flag` spells them."""
    return [word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")]


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def invalid(error: ValidationError) -> str:
    """The first thing that is wrong with a dataclass's fields, in one line."""
    fault = error.errors(include_url=False)[0]
    reason = one_line(fault["ctx"]["error"] if fault["type"] == "value_error" else fault["msg"])
    if not fault["loc"]:  # two fields do not go together, says the dataclass's own __post_init__
        return reason
    return f"{flag(str(fault['loc'][0]))} {one_line(fault['input'])[:100]}: {reason[:1].lower()}{reason[1:]}"


def as_text(value: object) -> str:
    """A setting as it stands on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value).removesuffix(".0")


def command_line(script: str, settings: dict[str, object]) -> str:
    """The line for a shell that runs `script` with `settings`."""
    words = ["python", script]
    for name, value in settings.items():
        words += [flag(name), as_text(value) if isinstance(value, tuple) else shlex.quote(as_text(value))]
    return " ".join(words)


# --- arguments -------------------------------------------------------------------------------------------------------


def parse(options: type, argv: Sequence[str] | None = None):
    """An instance of the dataclass `options` from the command line; a wrong argument is one line and exit code 2."""

    def refuse(event: _errors.ParseErrorEvent) -> None:
        wrong_arguments(complaint(event, options))

    with _errors.on_parse_error(refuse):
        return tyro.cli(options, args=argv)


def wrong_arguments(message: str) -> typing.NoReturn:
    """Ends the program with one line and exit code 2."""
    print(f"error: {message} (--help lists the settings)", file=sys.stderr)
    sys.exit(2)


def refuse_given(argv: Sequence[str], refused: dict[str, str]) -> None:
    """Ends the program if an option in `argv`, even with the value of its default, is `refused`, by flag and reason."""
    for name in given_flags(argv):
        if name in refused:
            wrong_arguments(f"{name}: {refused[name]}")


def complaint(event: _errors.ParseErrorEvent, options: type) -> str:
    """What is wrong with the arguments, in one line; a value that no option has asked for may be a password."""
    match event:
        case _errors.UnrecognizedArgs(tokens=[token, *_]) if token.startswith("--"):
            name = re.match(r"[\w.-]*", token)[0]
            near = difflib.get_close_matches(name.replace("_", "-"), map(flag, field_names(options)), 1)
            return f"{name}: there is no such option" + (f"; did you mean {near[0]}?" if near else "")
        case _errors.UnrecognizedArgs(tokens=[token, *_]):
            return f"{token if token.isalnum() else 'a word'}: belongs to no option"
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{flag(argument.field.extern_name)} {value}: allowed are {', '.join(choices)}"
        case _errors.BadValue(argument=argument):
            return f"{flag(argument.field.extern_name)}: a value is missing"
        case _errors.InstantiationFailure(message=message, argument=argument):
            error = sys.exception()
            while error and not isinstance(error, ValidationError):
                error = error.__context__
            if error:
                return invalid(error)
            return f"{flag(argument.field.extern_name)}: {one_line(message)}" if argument else one_line(message)
        case _:
            return "these arguments do not go together"


def field_names(options: type) -> Iterator[str]:
    """The fields of a dataclass, and those of the dataclasses in it."""
    for name, kind in typing.get_type_hints(options).items():
        if hasattr(kind, "__dataclass_fields__"):
            yield from field_names(kind)
        else:
            yield name


# --- errors and Ctrl-C -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def errors_in_one_line(*expected: type[Exception]) -> Iterator[None]:
    """The last line of defence around a script: whatever goes wrong is one line and exit code 1; Ctrl-C is 130.

    The errors `expected` explain themselves; of all others the type is named too.
    """
    if os.environ.get(TRACEBACK):
        yield
        return
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `script &` in a shell: kill -INT is to stop it, too
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


# --- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there afterwards takes the place of `path` at once, or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        beside.unlink(missing_ok=True)
