"""A run's folder, written so that it can be gone on with and never be taken for another run's.

    config.json    the run's identity: its settings, a digest of its data, and the parameters of its network
    last.pt        what it takes to go on: weights, optimiser, schedule, random streams, measurements
    best.pt        the weights with the lowest validation cost so far
    metrics.csv    the measurements, a row each
    result.json    what the run returned: it is over

last.pt, best.pt and result.json repeat the identity, and whoever reads one of them compares. No file is half-written.
"""

import contextlib
import csv
import io
import json
import math
import platform
import re
import shlex
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

import data
from regularizers import gaussian_deviation, laplace_scale
from support.shell import as_text, flag, replacing

State = Mapping[str, Any]  # what has a state_dict, by name: a model, its optimizer, and whatever else
Streams = Mapping[str, torch.Generator]
Row = dict[str, int | float]  # a measurement: epoch, step, lr, seconds, and what TensorBoard shows under the same names


class RunError(Exception):
    """A run cannot begin or go on; the message is one line for the user."""


@dataclass
class Progress:
    """Where a run is."""

    epoch: int = 0  # that have been trained
    rows: list[Row] = field(default_factory=list)  # the measurements before this epoch's
    seconds: float = 0.0  # of work


# --- identity --------------------------------------------------------------------------------------------------------


def identity_of(config, dataset, model: nn.Module) -> dict:
    """What tells a run from all others: settings, data, and names and shapes of what the network has learned."""
    network = {name: list(values.shape) for name, values in model.named_parameters()}
    return json.loads(json.dumps(asdict(config) | {"data_sha256": dataset.sha256, "network": network}))


def check_identity(path: Path, found: object, expected: Mapping) -> None:
    """RunError, which says what differs, unless the file `path` belongs to the run that is expected."""
    if not isinstance(found, Mapping):
        raise RunError(f"{path}: does not say which run it belongs to; take another folder, or move the file away")
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if names:
        long = {"data_sha256": "other data", "network": "another network"}
        other = "; ".join(long.get(name, f"{name} {found.get(name)}, not {expected.get(name)}") for name in names)
        own = ", and one of your own through train(..., make_model=...)" * ("network" in names)
        hint = f"it goes on under its own settings{own}; else take another name"
        raise RunError(f"{path}: is of a run with {other}; {hint}")


# --- files -----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """The object in a JSON file; RunError with one line if there is none."""
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give the folder of a run") from None
    except ValueError:
        pass
    raise RunError(f"{path}: damaged; begin the run anew, under another name")


def read_rows(folder: Path) -> list[Row]:
    """The measurements in the metrics.csv of a run."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def read_checkpoint(path: Path, identity: Mapping) -> dict:
    """What was saved in `path` by the run with this identity, else RunError; no code in a foreign file is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at the checksums
                raise ValueError(f"wrong checksum of {damaged}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; give the folder of a run") from None
    except Exception:  # whatever a foreign file makes the unpickler do
        raise RunError(f"{path}: damaged; delete it to begin the run anew") from None
    check_identity(path, checkpoint.get("identity") if isinstance(checkpoint, dict) else None, identity)
    return checkpoint


def write_json(path: Path, value: Mapping) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(path: Path, value: Mapping) -> None:
    buffer = io.BytesIO()  # on a full disk PyTorch, when it writes to a file, hides the reason
    torch.save(value, buffer)
    with replacing(path) as beside:
        beside.write_bytes(buffer.getbuffer())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process works in `folder`, which is made; RunError if one does, or if it cannot be locked."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is at work here; wait until it has finished") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "its file system has no locks, as some network drives"
        hint = "choose another --runs-dir, or --studies-dir"
        raise RunError(f"{folder}: cannot be used ({reason}); {hint}") from None
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """The folder of the run with `identity`; RunError if it holds another run.

    Attributes:
        path: where it is.
        result: what the run returned, if it is over; then the folder is only read.
    """

    def __init__(self, path: Path, identity: dict):
        self.path, self.identity, self.result = path, identity, None
        config, result = path / "config.json", path / "result.json"
        if config.exists():
            check_identity(config, read_json(config), identity)
        if result.exists():
            found = read_json(result)
            check_identity(result, found.pop("identity", None), identity)
            self.result = found | {"folder": str(path)}

    def write_rows(self, rows: list[Row]) -> None:
        with replacing(self.path / "metrics.csv") as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    def save_best(self, model: nn.Module, epoch: int) -> None:
        best = {"model": model.state_dict(), "epoch": epoch, "identity": self.identity}
        write_checkpoint(self.path / "best.pt", best)

    def save(self, state: State, streams: Streams, progress: Progress) -> None:
        """Writes last.pt, all that `go_on` restores."""
        checkpoint = {name: part.state_dict() for name, part in state.items()}
        checkpoint |= {"random": random_state(streams), "progress": asdict(progress), "identity": self.identity}
        write_checkpoint(self.path / "last.pt", checkpoint)

    def go_on(self, state: State, streams: Streams) -> Progress:
        """Undoes `save` if the run was cut off; returns where it was."""
        path = self.path / "last.pt"
        if not path.exists():
            return Progress()
        checkpoint = read_checkpoint(path, self.identity)
        try:
            for name, part in state.items():
                part.load_state_dict(checkpoint[name])
            set_random_state(streams, checkpoint["random"])
            return Progress(**checkpoint["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise RunError(f"{path}: no checkpoint of this script; go on with the one that wrote it") from None

    def finish(self, dataset, sizes: Mapping[str, int], device: torch.device, **end) -> dict:
        """Writes result.json: how the run ended (status, step, best, last, seconds), what was trained, and on what."""
        result = end | {"data": dataset.name, "fold": self.identity["fold"], "seed": self.identity["seed"]}
        parameters = sum(math.prod(shape) for shape in self.identity["network"].values())
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        result |= {"sizes": sizes, "parameters": parameters, "versions": versions, "device": name}
        write_json(self.path / "result.json", result | {"identity": self.identity})
        return result | {"folder": str(self.path)}


@contextlib.contextmanager
def opened_run(path: Path, identity: dict) -> Iterator[RunFolder]:
    """The folder of a run, which is made; inside, no other process works on it, unless it is over and only read."""
    folder = RunFolder(path, identity)
    if folder.result:
        yield folder
        return
    with alone(path):
        folder = RunFolder(path, identity)  # again: it may have begun, or ended, before the lock was ours
        if not folder.result:
            for half_written in path.glob(".*.tmp"):
                half_written.unlink()
            found = {one.name for one in path.iterdir() if not one.name.startswith(".")}
            if found and not found & {"config.json", "last.pt", "result.json"}:
                raise RunError(f"{path}: holds other things than a run; choose another --name")
            write_json(path / "config.json", identity)
        yield folder


def new_folder(runs_dir: str, name: str, settings: str) -> Path:
    """The folder `name` in `runs_dir`, or, without a name, one that is called after `settings` and the time."""
    if Path(name).name != name or name == "..":
        raise RunError(f"--name {name}: allowed is the name of a folder, without slashes; its place is --runs-dir")
    return Path(runs_dir, name or f"{settings}-{time.strftime('%Y%m%d-%H%M%S')}")


# --- random streams and the machine ----------------------------------------------------------------------------------


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


@contextlib.contextmanager
def machine(config) -> Iterator[None]:
    """Threads and precision of the matrix products of a run; afterwards they are what they were."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_flush_denormal(True)  # an over-fitted network makes denormal numbers, which are slow on a CPU
    torch.set_num_threads(config.threads or before[0])
    torch.set_float32_matmul_precision(config.matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def check_batches(config, images: int) -> None:
    if config.norm == "batch" and 1 in (config.batch_size, images % config.batch_size):
        raise RunError(
            f"--batch-size {config.batch_size}: a batch of the {images} training images would hold one alone, "
            "which batch norm cannot normalise; choose another size"
        )


def processor() -> str:
    """The CPU's name; on Linux with family and model, for a cloud's CPUs may all be called alike."""
    info = Path("/proc/cpuinfo")
    found = dict(re.findall(r"(?m)^([\w ]+?)\s*: (.*)$", info.read_text().split("\n\n")[0]) if info.exists() else ())
    if {"model name", "cpu family", "model"} <= found.keys():
        return f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    return platform.processor() or platform.machine()


# --- names and the screen --------------------------------------------------------------------------------------------


def differences(config) -> dict[str, object]:
    """The settings in which `config` differs from the defaults; the device, and MNIST itself, are none."""
    ordinary = asdict(type(config)(device=config.device, data="mnist" if config.data == "mnist" else "auto"))
    return {name: value for name, value in asdict(config).items() if value != ordinary[name]}


def command(config, script: str = "train.py") -> str:
    """The line for a shell that runs `config`."""
    words = ["python", script]
    for name, value in differences(config).items():
        words += [flag(name), as_text(value) if isinstance(value, tuple) else shlex.quote(as_text(value))]
    return " ".join(words)


def run_name(config) -> str:
    """What differs from the defaults, for the name of a folder, abbreviated where it is long."""
    found = {name: Path(value).name if name == "data_dir" else value for name, value in differences(config).items()}
    words = [(name, as_text(value).replace(" ", "-")) for name, value in found.items()] or [("recipe", "")]
    name = "_".join("=".join(word).strip("=") for word in words)
    return name if len(name) <= 44 else "_".join(f"{name[:3]}{value}" for name, value in words)[:44].rstrip("_-")


def announce(config, dataset, model: nn.Module, sizes: Mapping[str, int]) -> None:
    """What is about to run, and the priors that its penalties are."""
    warn(dataset)
    images = ", ".join(f"{count} {split}" for split, count in sizes.items())
    parameters = sum(weights.numel() for weights in model.parameters())
    print(f"{dataset.name}, fold {config.fold}: {images}; {parameters} parameters, on {config.device}")
    if config.l1:
        print(f"l1 {config.l1:g} is a Laplace prior of scale b = {laplace_scale(config.l1, sizes['train']):.4g}")
    if config.l2:
        sigma = gaussian_deviation(config.l2, sizes["train"])
        print(f"l2 {config.l2:g} is a Gaussian prior of deviation sigma = {sigma:.4g}")


def warn(dataset) -> None:
    """Says, so that nobody can miss it, that these are the digits of scikit-learn, and why; nothing if all is well."""
    if dataset.warning:
        images = len(dataset.train_labels) + len(dataset.test_labels)
        what = f"WARNING: this is NOT MNIST, but the {images} handwritten digits of scikit-learn, because"
        print("!" * 100, what, dataset.warning, "!" * 100, sep="\n", file=sys.stderr)


def summarize(result: Mapping, config, script: str) -> None:
    """The end of a run: its best and its last measurement, where it is kept, and what to do next."""
    splits = result["sizes"]
    print("\n" + " " * 34 + "".join(f"{split + ' cost':>14}   error" for split in splits))
    for name, row in (("lowest validation cost, epoch", result["best"]), ("last epoch,", result["last"])):
        cells = "".join(f"{row[f'loss/{split}']:14.4f}{row[f'error/{split}']:8.2%}" for split in splits)
        print(f"{name} {row['epoch']}".ljust(34) + cells)
    if result["status"] == "diverged":
        print(f"the cost was infinite or NaN after {result['step']} updates; try a lower --lr than {config.lr:g}")
    print(f"{result['status']} after {result['seconds']:.0f} s, kept in {result['folder']}")
    print(f"look at it:         tensorboard --logdir {shlex.quote(str(Path(result['folder']).parent))}")
    print("its costs:          http://localhost:6006/?tagFilter=loss/&smoothing=0#timeseries")
    print(f"on another fold:    {command(replace(config, fold=(config.fold + 1) % data.FOLDS), script)}")
