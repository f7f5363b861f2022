"""Where a study is kept: Optuna's journal file, or a database that machines share; both survive what befalls them.

A journal's half line, left by a kill or a full disk, is cut off before anything is built on it. A database that is lost
is waited for. What is secret in a database's URL is never shown.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import sqlalchemy
import tenacity
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
)
from tqdm.auto import tqdm

HEARTBEAT, GRACE = 10, 40  # seconds between the signs of life in a database, and without one until a worker is dead
PATIENCE = 300  # seconds that a lost database is waited for
LONGEST = 2**26  # bytes of a journal's line; whatever is longer is none


class StudyError(Exception):
    """The study cannot go on; the message is one line for the screen. A worker's traceback is in its notes."""


@dataclass(frozen=True)
class Place:
    """Where a study is kept: runs and locks in `folder`; trials in its journal.log, or in a database that is shared."""

    folder: Path
    name: str  # of the study
    storage: str = field(default="", repr=False)  # URL of the database; it may hold a password, so it is never shown

    @property
    def journal(self) -> Path:
        return self.folder / "journal.log"

    def __str__(self) -> str:
        """The journal, or of the URL nothing but system, host, port and database: passwords hide everywhere else."""
        if not self.storage:
            return str(self.journal)
        url = _parsed(self.storage)
        port = f":{url.port}" if url.port else ""
        return f"{url.get_backend_name()}://{url.host or ''}{port}/{url.database or ''}"


def say(text: str) -> None:
    """A line on the screen, above a progress bar."""
    tqdm.write(text, file=sys.stderr)


# --- journals --------------------------------------------------------------------------------------------------------


class Journal(BaseJournalBackend):
    """Optuna's journal file, in which half a line at the end, left by a kill or a full disk, is never built on."""

    def __init__(self, path: Path):
        self.path = path
        # Optuna's usual lock, a symbolic link, hangs for ever on a relative path if its owner is killed
        self.lock = JournalFileOpenLock(str(path), grace_period=5)
        self.line, self.offset = 0, 0  # lines read so far, and where the next one begins, in bytes
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict]:
        if log_number_from != self.line:
            self.line, self.offset = 0, 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while (line := file.readline(LONGEST)).endswith(b"\n"):
                self.line, self.offset = self.line + 1, self.offset + len(line)
                if self.line > log_number_from:
                    yield self.decoded(line)
            if len(line) == LONGEST:
                self.line += 1
                raise self.damaged()

    def append_logs(self, logs: list[dict]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self.lock.acquire()
        try:
            # appended by the system itself, should two ever hold the lock; and never made anew in the middle
            opener = lambda path, flags: os.open(path, flags | os.O_APPEND)  # noqa: E731
            with open(self.path, "r+b", buffering=0, opener=opener) as file:
                end = self.cut_half_a_line(file)
                try:
                    while lines:
                        lines = lines[file.write(lines) :]
                    os.fsync(file.fileno())
                except BaseException as error:
                    file.truncate(end)
                    if isinstance(error, OSError):
                        error.filename = str(self.path)
                    raise
        finally:
            self.lock.release()

    def cut_half_a_line(self, file) -> int:
        """Where the last whole line, and then `file`, ends; StudyError if what follows was not half a line of ours."""
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            file.seek(self.offset)
            rest = file.read(LONGEST)
            half = rest[rest.rfind(b"\n") + 1 :]
            if half.strip(b"\0") and not half.startswith(b'{"op_code"'[: len(half)]):
                self.line += rest.count(b"\n") + 1
                raise self.damaged()
            end -= len(half)
            file.truncate(end)
            say(f"{self.path}: half a line at its end, {len(half)} bytes, was cut off; nothing else is lost")
        return end

    def decoded(self, line: bytes) -> dict:
        try:
            log = json.loads(line)
            if not isinstance(log["op_code"], int):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self.damaged() from None
        return log

    def damaged(self) -> StudyError:
        return StudyError(
            f"{self.path}, line {self.line}: damaged, or not a journal of Optuna's; "
            "bring the file back from a copy, or move it away and begin anew"
        )


# --- databases -------------------------------------------------------------------------------------------------------


def _parsed(storage: str) -> sqlalchemy.URL:
    """The parts of a database's URL; StudyError, without a word of it, if it is none."""
    with contextlib.suppress(Exception):
        url = sqlalchemy.make_url(storage)
        url.get_dialect()
        if "@" not in (url.host or ""):  # half a password
            return url
    raise StudyError(
        "--storage: not the URL of a database; allowed is one such as postgresql://user@host/database, "
        "with a driver that is installed, and special characters of a password written as %40"
    )


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the connection was cut, or the server is away."""
    cause = _cause(error)  # the third: Optuna asks again where the connection has just been cut
    away = isinstance(cause, OperationalError | InterfaceError | PendingRollbackError)
    return away or getattr(cause, "connection_invalidated", False)


def _out_of_reach(storage: str, error: BaseException) -> str:
    """One line for an `error` of the database; what is secret in its URL is blotted out."""
    cause = _cause(error)
    reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:300]
    url = _parsed(storage)
    for secret in (url.password, *url.query.values()):
        if secret:
            reason = reason.replace(str(secret), "***")
    if url.username:
        reason = re.sub(rf"\b{re.escape(url.username)}\b", "***", reason)
    return f"{Place(Path(), '', storage)}: out of reach ({reason})"


def _patiently(storage: str, patience: float, function: Callable, *arguments, **more):
    """The value of `function(*arguments)`, which asks a database; a lost one is waited for, `patience` seconds."""

    def tell(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and multiprocessing.parent_process() is None:
            error = state.outcome.exception()
            say(f"{_out_of_reach(storage, error)}; it is waited for, {patience:g} seconds at most")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient),
        stop=tenacity.stop_after_delay(patience),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(function, *arguments, **more)
    except (StorageInternalError, SQLAlchemyError, ImportError) as error:
        raise StudyError(f"{_out_of_reach(storage, error)}; what was finished is kept") from None


class PatientStorage(RDBStorage):
    """Optuna's storage in a database, every request of which is made again while the database is away."""


def _patient(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(self, *arguments, **more):
        return _patiently(self.url, PATIENCE, method, self, *arguments, **more)

    return call


# All requests: the public ones, and those that Optuna's cache before this storage makes. Each is one transaction.
_REQUESTS = ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id", "_get_stale_trial_ids")
for _name in (*(name for name in vars(RDBStorage) if not name.startswith("_")), *_REQUESTS):
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def _open_database(storage: str) -> PatientStorage:
    arguments = {}
    if _parsed(storage).get_driver_name() in ("psycopg", "psycopg2"):
        # a cable that was cut says nothing: without these, one waits for a quarter of an hour
        arguments = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 30_000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are experimental
        return PatientStorage(
            storage.replace("{", "{{").replace("}", "}}"),  # Optuna fills in templates
            engine_kwargs={"pool_pre_ping": True, "connect_args": arguments},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
        )


def open_storage(place: Place, patience: float = 0) -> BaseStorage:
    """The storage at `place`, which is made if need be; StudyError if it is damaged or out of reach."""
    if not place.storage:
        place.folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(place.journal)
        try:
            return JournalStorage(journal)
        except (StudyError, OSError):
            raise
        except Exception:  # whatever Optuna trips over in the line that it was given last
            raise journal.damaged() from None
    # machines that begin on an empty database at once make the same tables, and all but one fail
    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((IntegrityError, ProgrammingError, AssertionError)),
        stop=tenacity.stop_after_attempt(8),
        wait=tenacity.wait_random(0.1, 0.5),
        reraise=True,
    )
    return optuna.storages.get_storage(_patiently(place.storage, patience, again, _open_database, place.storage))
