"""A run's folder: begun, locked, gone on with, and read when the run is over.

    config.json    the settings, and a digest of the data; who comes with others is refused
    last.pt        what it takes to go on: weights, optimiser, random streams, measurements
    best.pt        the weights with the lowest validation cost so far
    metrics.csv    the measurements, a row each
    result.json    what the run returned: it is over

No file is ever half-written. Nothing here knows what the settings mean.
"""

import csv
import io
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import nn
from typing_extensions import TypedDict

from support.shell import TEMPORARY, one_line, replacing

State = Mapping[str, Any]  # what has a state_dict, by name: a model, its optimizer, and whatever else
Streams = Mapping[str, torch.Generator]
Row = dict[str, int | float]  # a measurement: epoch, step, lr, seconds, and what TensorBoard shows under the same names


def complete(row: Row) -> Row:
    if lacking := {"epoch", "step", "loss/train", "loss/val", "error/train", "error/val"} - row.keys():
        raise ValueError(f"a measurement lacks {min(lacking)}")
    return row


Measurement = Annotated[Row, AfterValidator(complete)]


class Result(TypedDict):
    """What a run returns."""

    status: Literal["finished", "diverged"]
    step: int  # after how many updates it ended
    data: str
    fold: int
    seed: int
    parameters: int
    sizes: dict[Literal["train", "val", "test"], int]  # images of every split
    best: Measurement  # the measurement with the lowest validation cost
    last: Measurement
    seconds: float
    versions: dict[str, str]
    device: str


@dataclass
class Progress:
    """Where a run is."""

    epoch: Annotated[int, Field(ge=0)] = 0  # that have been trained
    rows: list[Measurement] = field(default_factory=list)  # the measurements before this epoch's
    seconds: Annotated[float, Field(ge=0)] = 0.0  # of work

    def __post_init__(self):
        epochs = [row["epoch"] for row in self.rows]
        first = [0] if self.epoch else []
        if epochs != sorted(set(epochs)) or epochs[:1] != first or any(epoch >= self.epoch for epoch in epochs):
            raise ValueError(f"the measurements before epoch {self.epoch} are those of epochs {epochs}")
        if any(row.keys() != self.rows[0].keys() for row in self.rows):
            raise ValueError("not all measurements have the same columns")


class RunError(Exception):
    """A run cannot begin or go on; the message is one line for the user."""


def read_json(path: Path, kind: type):
    """What a JSON file holds, if it is a `kind` in types, choices and ranges; else a RunError with one line."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give the folder of a run") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        reason = one_line(f"{'.'.join(map(str, fault['loc']))} {fault['msg']}")[:150]
        raise RunError(f"{path}: damaged ({reason}); begin the run anew") from None


def read_rows(folder: Path) -> list[Row]:
    """The measurements in the metrics.csv of a run."""
    path = folder / "metrics.csv"
    try:
        with path.open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give the folder of a run") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path}: damaged ({one_line(error)[:150]}); begin the run anew") from None


def write_json(path: Path, value: Mapping) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(path: Path, value: Mapping) -> None:
    buffer = io.BytesIO()  # on a full disk PyTorch, when it writes to a file, hides the reason
    torch.save(value, buffer)
    with replacing(path) as beside:
        beside.write_bytes(buffer.getbuffer())


def new_folder(runs_dir: str, name: str, settings: str) -> Path:
    """The folder `name` in `runs_dir`, or, without a name, a new one that is called after `settings` and the time."""
    if Path(name).name != name or name == "..":
        raise RunError(f"--name {name}: allowed is the name of a folder, without slashes; its place is --runs-dir")
    place = f"{runs_dir}/{name}"
    if not place.isprintable():
        raise RunError(f"{place!a}: a name that cannot be printed; choose another")
    if name:
        return Path(runs_dir) / name
    stem = f"{settings[:150]}-{time.strftime('%Y%m%d-%H%M%S')}"
    for twin in range(1, 1000):
        folder = Path(runs_dir) / (f"{stem}-{twin}" if twin > 1 else stem)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # begun in the same second
            continue
        except OSError as error:
            raise RunError(f"{folder}: cannot be made ({error.strerror}); choose another --runs-dir") from None
    raise RunError(f"{stem}: begun a thousand times in one second; choose a --name")


class Folder:
    """The folder of a run with `settings`, as a context: inside, no other process may work on the run.

    Attributes:
        path: where it is; made if it is not there.
        result: what the run returned, if it is over.

    Raises RunError with one line if the folder holds a run with other settings, or no run, or is being worked on.
    """

    def __init__(self, path: Path, settings: Mapping):
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.lock = FileLock(path / ".lock", timeout=0)
        self.result: Result | None = None

    def __enter__(self) -> "Folder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made ({error.strerror}); choose another --runs-dir") from None
        try:
            self.lock.acquire()
        except Timeout:
            raise RunError(f"{self.path}: another process is at work on this run; wait, or take another name") from None
        try:
            self.begin()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.lock.release()

    def begin(self) -> None:
        for path in self.path.glob(f".*{TEMPORARY}"):  # of a process that was killed
            path.unlink()
        if not (self.path / "config.json").exists():
            if any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise RunError(f"{self.path}: holds other things than a run; choose another --name")
            write_json(self.path / "config.json", self.settings)
        begun = read_json(self.path / "config.json", dict)
        names = [name for name in self.settings if begun.get(name) != self.settings[name]]
        if names:
            other = "; ".join(f"{name} {begun.get(name)}, not {self.settings[name]}" for name in names)
            raise RunError(f"{self.path}: begun with {one_line(other)[:300]}; take another name, or its settings")
        over = (self.path / "result.json").exists()
        self.result = read_json(self.path / "result.json", Result) if over else None

    def finish(self, result: Result) -> Result:
        write_json(self.path / "result.json", result)
        return result

    def write_rows(self, rows: Sequence[Row]) -> None:
        with replacing(self.path / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    def save_best(self, model: nn.Module, epoch: int) -> None:
        write_checkpoint(self.path / "best.pt", {"model": model.state_dict(), "epoch": epoch})

    def save(self, state: State, streams: Streams, progress: Progress) -> None:
        """Writes last.pt, all that `go_on` restores."""
        checkpoint = {name: part.state_dict() for name, part in state.items()}
        checkpoint |= {"random": random_state(streams), "progress": asdict(progress)}
        write_checkpoint(self.path / "last.pt", checkpoint)

    def go_on(self, state: State, streams: Streams, epochs: int) -> Progress:
        """Undoes `save` if the run, of `epochs` epochs, was cut off; returns where it was.

        Keys, shapes and types of all states have to be those of `state` (another shape corrupts the memory of a fused
        optimiser); else RunError with one line. No code in a foreign file is executed.
        """
        if not (self.path / "last.pt").exists():
            return Progress()
        checkpoint = read_checkpoint(self.path / "last.pt", form_of(state, streams))
        try:
            progress = read_progress(checkpoint, epochs)
            for name, part in state.items():
                part.load_state_dict(checkpoint[name])
            set_random_state(streams, checkpoint["random"])
        except Exception as error:
            raise foreign(self.path / "last.pt", error) from None
        return progress


def form_of(state: State, streams: Streams) -> dict:
    """What `Folder.save` writes, after a step of the optimiser: before, it has no state to compare with."""
    for weights in state["model"].parameters():
        weights.grad = torch.zeros_like(weights) if weights.requires_grad else None
    state["optimizer"].step()
    state["optimizer"].zero_grad()
    return {name: part.state_dict() for name, part in state.items()} | {"random": random_state(streams)}


def read_progress(checkpoint: Mapping, epochs: int) -> Progress:
    """Where the run, of `epochs` epochs, was; ValueError if it cannot have been there."""
    progress = TypeAdapter(Progress).validate_python(checkpoint["progress"])
    if progress.epoch > epochs:
        raise ValueError(f"epoch {progress.epoch} of {epochs}")
    return progress


def read_checkpoint(path: Path, form: Mapping) -> dict:
    """What was saved in `path`: all that is in `form`, with its keys, shapes and types; else RunError with one line.

    No code in a foreign file is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name, expected in form.items():
            check_form(expected, checkpoint[name], name)
        return checkpoint
    except Exception as error:  # whatever a foreign file makes the unpickler do
        raise foreign(path, error) from None


def foreign(path: Path, error: Exception) -> RunError:
    reason = f"{type(error).__name__}: {one_line(error)[:100]}"
    return RunError(f"{path}: damaged or foreign ({reason}); delete it to begin this run anew")


def random_state(streams: Streams) -> dict[str, torch.Tensor]:
    """Where all random streams are now: `streams`, and PyTorch's own, of initialisation and dropout."""
    own = {"cpu": torch.get_rng_state()}
    for kind in accelerators(streams):
        own[kind] = torch.get_device_module(kind).get_rng_state()
    return own | {name: generator.get_state() for name, generator in streams.items()}


def set_random_state(streams: Streams, state: Mapping[str, torch.Tensor]) -> None:
    """Undoes `random_state`."""
    torch.set_rng_state(state["cpu"])
    for kind in accelerators(streams):
        torch.get_device_module(kind).set_rng_state(state[kind])
    for name, generator in streams.items():
        generator.set_state(state[name])


def accelerators(streams: Streams) -> set[str]:
    return {generator.device.type for generator in streams.values()} - {"cpu"}


def check_form(expected: object, found: object, name: str) -> None:
    """ValueError unless `found` has the keys, lengths, shapes and types of `expected`."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    elif isinstance(expected, Mapping):
        same = isinstance(found, Mapping) and found.keys() == expected.keys()
    elif isinstance(expected, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(expected)
    elif isinstance(expected, int | float) and not isinstance(expected, bool):
        same = isinstance(found, int | float) and not isinstance(found, bool)
    else:
        same = type(found) is type(expected)
    if not same:
        raise ValueError(f"{name} is not what this run's would be")
    if isinstance(expected, Mapping | list | tuple):
        for key in expected if isinstance(expected, Mapping) else range(len(expected)):
            check_form(expected[key], found[key], f"{name}.{key}")
