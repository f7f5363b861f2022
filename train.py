"""Train a small MLP on 5 % of MNIST, regularised and observed: the plain PyTorch loop.

python train.py --dropout 0.2 --l2 1e-4
tensorboard --logdir runs
"""

import csv
import json
import math
import platform
import shlex
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

import data
import observe
from augment import augment
from model import MLP, entropy
from regularizers import gaussian_deviation, l1_penalty, l2_penalty, laplace_scale, penalized_weights
from shell import errors_in_one_line, interrupts, one_line, parse, replacing, write_json, wrong_arguments

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """The settings of one experiment. Off is a value: the defaults are the baseline."""

    # data
    data: Literal["auto", "mnist", "digits"] = "auto"  # auto: MNIST, or scikit-learn's digits where it cannot be had
    data_dir: str = ""  # folder of four IDX files, plain or .gz, to use instead
    fold: int = 0  # which twentieth of the training images to learn from; the other 19 validate
    # training
    seed: int = 0  # of initialisation and dropout, of the order of batches, of augmentation
    epochs: int = 1000  # passes over the training images
    batch_size: int = 300  # images in an update
    lr: float = 1e-3  # learning rate of Adam; with one-cycle its peak
    schedule: Literal["constant", "one-cycle"] = "constant"  # of the learning rate
    init: Literal["default", "glorot", "he"] = "default"  # of the weights, uniform; default is PyTorch's
    # regularisation
    dropout: float = 0.0  # probability that a hidden activation is dropped
    norm: Literal["none", "batch", "layer"] = "none"  # normalisation between a hidden linear layer and its ReLU
    l1: float = 0.0  # strength of the penalty sum |w|
    l2: float = 0.0  # strength of the penalty sum w**2
    weight_decay: float = 0.0  # decoupled, as in AdamW: every update also takes lr * weight_decay * w off w
    # augmentation, drawn for every image of every batch
    noise: float = 0.0  # standard deviation of Gaussian noise on the pixels, which are in [0, 1]
    rotate: float = 0.0  # degrees, either way
    zoom: float = 0.0  # factor between 1 - zoom and 1 + zoom
    shift: float = 0.0  # pixels along each axis, either way
    shear: float = 0.0  # slope, either way
    elastic: float = 0.0  # amplitude in pixels of an elastic distortion; Simard et al. (2003) use 34
    # machine and observation
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU if there is one
    matmul: Literal["highest", "high", "medium"] = "highest"  # precision of float32 matrix products
    evaluations: int = 30  # measurements of all splits after the untrained one, denser early
    histograms: int = 20  # how many of these with histograms; 0 for none

    def __post_init__(self):
        check_ranges(self, RANGES)
        if self.data_dir and self.data != "auto":
            raise ValueError(f"--data {self.data} and --data-dir {self.data_dir} exclude each other; give one of them")


RANGES = {
    "fold": (0, data.FOLDS - 1),
    "seed": (0, 2**31 - 1),
    "epochs": (1, 1e6),
    "batch_size": (1, 1e6),
    "lr": (1e-10, 1e10),
    "dropout": (0, 0.99),
    "l1": (0, 1e3),
    "l2": (0, 1e3),
    "weight_decay": (0, 1e3),
    "noise": (0, 100),
    "rotate": (0, 180),
    "zoom": (0, 0.9),
    "shift": (0, 1e3),
    "shear": (0, 10),
    "elastic": (0, 1e4),
    "evaluations": (1, 1e6),
    "histograms": (0, 1e3),
}
AUGMENTATIONS = ("noise", "rotate", "zoom", "shift", "shear", "elastic")


def check_ranges(settings: object, ranges: dict[str, tuple[float, float]]) -> None:
    """ValueError with one line if an attribute of `settings` is not between its two bounds."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:  # false for NaN as well
            raise ValueError(f"{flag(name)} {value}: allowed is {low:g} to {high:g}; give a value in that range")


@dataclass(frozen=True)
class Options:
    """Train a small MLP on 5 % of MNIST: the settings of the experiment, and where the run is kept."""

    config: tyro.conf.OmitArgPrefixes[Config] = Config()
    runs_dir: str = "runs"  # folder of all runs
    name: str = ""  # of the run's folder; by default what differs from the defaults, and the time
    resume: str = ""  # folder of a run to go on with, under its own settings


class RunError(Exception):
    """The run cannot begin or go on; the message is one line for the user."""


class Diverged(Exception):
    """The cost became infinite or NaN; the argument is after how many updates."""


# --- the experiment, shared with Lightning ---------------------------------------------------------------------------


def random_streams(seed: int, device: torch.device) -> tuple[int, torch.Generator, torch.Generator]:
    """Independent streams: a seed for initialisation and dropout, and generators for batch order and augmentation."""
    init, order, augmentation = (int(word) for word in np.random.SeedSequence(seed).generate_state(3, np.uint64))
    # the order is drawn on the CPU, so that it is the same on every device
    return init, torch.Generator().manual_seed(order), torch.Generator(device).manual_seed(augmentation)


def build_model(config: Config, dataset: data.Dataset, init: int) -> MLP:
    """The MLP of `config`, initialised from the stream that `init` seeds; dropout goes on drawing from that one."""
    torch.manual_seed(init)
    return MLP(dataset.in_features, dataset.classes, norm=config.norm, dropout=config.dropout, init=config.init)


def build_optimizer(model: MLP, config: Config, steps: int):
    """AdamW for `steps` updates, and the scheduler to be stepped after each: None for a constant learning rate.

    Without weight decay AdamW is Adam. What decays is what L1 and L2 penalise, and nothing else.
    """
    decaying = penalized_weights(model)
    others = [parameter for parameter in model.parameters() if all(parameter is not one for one in decaying)]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    if config.schedule == "constant":
        return optimizer, None
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps)


def augmented(images: torch.Tensor, config: Config, generator: torch.Generator) -> torch.Tensor:
    """`images` (N, H, W) as training sees them: with the augmentations of `config`, if any."""
    return augment(images, generator, **{name: getattr(config, name) for name in AUGMENTATIONS})


def objective(model: MLP, images, labels, config: Config, inputs: list | None = None) -> torch.Tensor:
    """What training minimises: the mean cross-entropy of a batch, in nats, plus the penalties."""
    loss = F.cross_entropy(model(images, inputs), labels)
    if config.l1:
        loss = loss + config.l1 * l1_penalty(model)
    if config.l2:
        loss = loss + config.l2 * l2_penalty(model)
    return loss


def train_step(model: MLP, optimizer, scheduler, images, labels, config: Config, inputs: list | None = None):
    """One update; returns the objective before it, still on the device, since to read it is to wait for it."""
    loss = objective(model, images, labels, config, inputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if scheduler:
        scheduler.step()
    return loss.detach()


EVALUATION_BATCH = 1000  # images: as many as fit into a core's cache


@torch.no_grad()
def evaluate(model: MLP, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """The `score` of `model`, in evaluation mode, on all images; leaves the mode as it was."""
    mode = model.training
    model.eval()
    logits = torch.cat([model(batch) for batch, _ in data.Batches(images, labels, EVALUATION_BATCH)])
    model.train(mode)
    return score(logits, labels)


def score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """Cross-entropy in nats and error as a fraction, means over all images, and the entropy (N,) of every output."""
    loss = F.cross_entropy(logits, labels).item()
    error = (logits.argmax(dim=1) != labels).sum().item() / len(labels)
    return loss, error, entropy(logits)


# --- the run's folder, shared with Lightning -------------------------------------------------------------------------

MEASURES = [f"{split}_{measure}" for measure in ("loss", "error") for split in ("val", "test", "train")]


class Run:
    """One run: its data, its folder, and the measurements that are written there.

    Given `resume`, the folder of a run that was cut off, the settings written there replace `config`.

    Attributes:
        config: the settings, with the data set and the device that are really used.
        tensors: images (N, H, W) and labels (N,) of every split in `splits`.
        rows: the measurements so far, which are the rows of metrics.csv.
    """

    def __init__(self, config: Config, runs_dir: str = "runs", name: str = "", resume: str = "", splits=data.SPLITS):
        if resume:
            config = read_config(Path(resume))
        self.dataset = data.load(config.data, config.data_dir)
        self.config = config = resolve(config, self.dataset)
        self.device = torch.device(config.device)
        self.tensors = {split: data.split_tensors(self.dataset, split, config.fold, self.device) for split in splits}
        self.images = len(self.tensors["train"][1])
        if config.norm == "batch" and 1 in (config.batch_size, self.images % config.batch_size):
            raise RunError(
                f"--batch-size {config.batch_size}: a batch of the {self.images} training images would hold one alone, "
                "which batch norm cannot normalise; choose another size"
            )
        self.steps_per_epoch = math.ceil(self.images / config.batch_size)
        self.evaluation_epochs = observe.evaluation_epochs(config.epochs, config.evaluations)
        self.histogram_epochs = observe.histogram_epochs(self.evaluation_epochs, config.histograms)
        self.folder = Path(resume) if resume else new_folder(config, Path(runs_dir), name)
        if not resume:
            write_json(self.folder / "config.json", asdict(config))

    def start(self, model: MLP, state: dict | None = None) -> None:
        """Begins the run of `model`, or goes on from the `state_dict` of one that was cut off."""
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.since = time.perf_counter() - (state["seconds"] if state else 0.0)
        self.rows: list[dict] = state["rows"] if state else []
        self.untrained: torch.Tensor | None = state["untrained"] if state else None
        observe.rewind(self.folder, state["event_files"] if state else {})
        self.recorder = observe.Recorder(self.folder)
        if not state:
            self.recorder.describe(asdict(self.config), MEASURES)
            if any(getattr(self.config, name) for name in AUGMENTATIONS):
                self.recorder.images(augmentation_examples(self.tensors["train"][0][:10], self.config))

    def state_dict(self) -> dict:
        """What `start` needs to go on from here."""
        seconds, event_files = time.perf_counter() - self.since, self.recorder.flush()
        return {"rows": self.rows, "untrained": self.untrained, "seconds": seconds, "event_files": event_files}

    def due(self, epoch: int) -> bool:
        """Whether the weights after `epoch` epochs are to be measured, and have not been."""
        return epoch in self.evaluation_epochs and (not self.rows or self.rows[-1]["epoch"] < epoch)

    def measure(self, model: MLP, epoch: int, lr: float) -> dict:
        """Evaluates `model` on all splits and records it."""
        scores = {split: evaluate(model, images, labels) for split, (images, labels) in self.tensors.items()}
        return self.record(model, epoch, lr, scores)

    def record(self, model: MLP, epoch: int, lr: float, scores: dict[str, tuple[float, float, torch.Tensor]]) -> dict:
        """Writes down the `scores` of each split, and histograms if it is their turn; returns the row."""
        row = {"epoch": epoch, "step": epoch * self.steps_per_epoch}
        for split, (loss, error, entropies) in scores.items():
            row |= {f"{split}_loss": loss, f"{split}_error": error, f"{split}_entropy": entropies.mean().item()}
        if not math.isfinite(row["train_loss"] + row["val_loss"]):
            raise Diverged(row["step"])
        with torch.no_grad():
            row["l1"] = self.config.l1 * l1_penalty(model).item()
            row["l2"] = self.config.l2 * l2_penalty(model).item()
        row |= {"lr": lr, "seconds": time.perf_counter() - self.since}
        if not self.rows:  # the weights are those of initialisation: the random model that the others are compared with
            self.untrained = scores["val"][2]
        self.rows.append(row)
        self.recorder.scalars(row, self.untrained.mean().item(), self.dataset.classes)
        if epoch in self.histogram_epochs:
            entropies = {split: entropies for split, (_, _, entropies) in scores.items()}
            self.recorder.histograms(row["step"], model.linears, entropies, self.untrained)
        with replacing(self.folder / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(self.rows)
        return row

    def best(self) -> dict:
        """The row with the lowest validation cost. Test is reported, and never chosen by."""
        return min(self.rows, key=lambda row: row["val_loss"])

    def finish(self, status: str = "finished", **more) -> dict:
        """Writes result.json and the metrics of the hparams tab; returns the result, and the run's `folder`."""
        result = {
            "data": self.dataset.name,
            "status": status,
            "fold": self.config.fold,
            "seed": self.config.seed,
            "parameters": self.parameters,
            "sizes": {split: len(labels) for split, (_, labels) in self.tensors.items()},
            "best": {key: value for key, value in self.best().items() if key in ("epoch", *MEASURES)},
            "last": {key: value for key, value in self.rows[-1].items() if key in ("epoch", *MEASURES)},
            "seconds": time.perf_counter() - self.since,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type,
            **more,
        }
        self.recorder.summary(self.rows[-1]["step"], result)
        self.recorder.flush()
        write_json(self.folder / "result.json", result)
        return result | {"folder": str(self.folder)}


def resolve(config: Config, dataset: data.Dataset) -> Config:
    """`config` with the data set and the device that are really used, and with the absolute path of --data-dir."""
    if config.data_dir:
        config = replace(config, data_dir=str(Path(config.data_dir).resolve()))
    else:
        config = replace(config, data=dataset.name)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if config.device == "auto":
        return replace(config, device=next(device for device in present if present[device]))
    if not present[config.device]:
        raise RunError(f"--device {config.device}: this machine has none; use --device auto")
    return config


def augmentation_examples(images: torch.Tensor, config: Config) -> torch.Tensor:
    """`images` (N, H, W), and seven augmented versions of each: (8, N, H, W). Disturbs no stream of the run."""
    generator = torch.Generator(images.device).manual_seed(config.seed)
    return torch.stack([images, *(augmented(images, config, generator) for _ in range(7))])


def differences(config: Config) -> dict[str, str]:
    """The settings in which `config` differs from the defaults, as text; the device, and MNIST itself, are none."""
    ordinary = asdict(Config(device=config.device, data="mnist" if config.data == "mnist" else "auto"))
    return {name: str(value).removesuffix(".0") for name, value in asdict(config).items() if value != ordinary[name]}


def command(config: Config, script: str = "train.py") -> str:
    """The line for a shell that runs `config`."""
    settings = [f"{flag(name)} {shlex.quote(value)}" for name, value in differences(config).items()]
    return " ".join(["python", script, *settings])


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def new_folder(config: Config, runs_dir: Path, name: str) -> Path:
    """Makes the folder of a run that is called `name`, or after its settings and the time."""
    if name and Path(name).name != name:
        raise RunError(f"--name {name}: allowed is the name of a folder, without slashes; its place is --runs-dir")
    if not name:
        settings = {key: Path(value).name if key == "data_dir" else value for key, value in differences(config).items()}
        words = "_".join(f"{key}={value}" for key, value in settings.items()) or "baseline"
        name = f"{words[:150]}-{time.strftime('%Y%m%d-%H%M%S')}"
        twins = len(list(runs_dir.glob(f"{name}*")))
        name += f"-{twins + 1}" if twins else ""
    folder = runs_dir / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RunError(f"{folder}: exists already; choose another --name, or go on with --resume {folder}") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}); choose another --runs-dir") from None
    return folder


def read_json(path: Path) -> dict:
    """The object in a JSON file that a run wrote; RunError with one line if there is none."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give the folder of a run") from None
    except ValueError as error:
        raise RunError(f"{path}: damaged ({one_line(error)}); begin the run anew") from None
    return value


def finished_result(folder: str) -> dict | None:
    """What the run in `folder` returned, if it is over."""
    path = Path(folder) / "result.json"
    return read_json(path) | {"folder": folder} if path.exists() else None


def read_config(folder: Path) -> Config:
    """The settings of the run in `folder`; RunError with one line if there are none."""
    settings = read_json(folder / "config.json")
    try:
        return Config(**settings)
    except (ValueError, TypeError) as error:
        raise RunError(f"{folder / 'config.json'}: damaged ({one_line(error)}); begin the run anew") from None


# --- the plain loop --------------------------------------------------------------------------------------------------


def train(
    config: Config,
    runs_dir: str = "runs",
    name: str = "",
    resume: str = "",
    splits: tuple[str, ...] = data.SPLITS,
    quiet: bool = False,
    on_evaluation: Callable[[dict, dict], None] | None = None,
) -> dict:
    """Runs one experiment; returns what result.json holds, and the run's `folder`.

    Args:
        config: its settings.
        runs_dir, name, resume: as in Options.
        splits: which splits are read and measured; train and val are needed.
        quiet: print nothing and show no progress.
        on_evaluation: called with each new row of metrics.csv and the best one; what it raises ends the run.

    Raises:
        data.DataError, RunError: with one line for the user.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved; the message says how to go on.
    """
    torch.set_flush_denormal(True)  # an over-fitted network makes denormal numbers, which are slow on a CPU
    if resume and (result := finished_result(resume)):
        return result
    run = Run(config, runs_dir, name, resume, splits)
    config = run.config
    init, order, augmentation = random_streams(config.seed, run.device)
    batches = data.Batches(*run.tensors["train"], config.batch_size, order)
    model = build_model(config, run.dataset, init).to(run.device)
    optimizer, scheduler = build_optimizer(model, config, config.epochs * run.steps_per_epoch)
    state = {"model": model, "optimizer": optimizer} | ({"scheduler": scheduler} if scheduler else {})
    streams = {"order": order, "augmentation": augmentation}
    epoch, run_state = load_checkpoint(run, state, streams) if (run.folder / "last.pt").exists() else (0, None)
    run.start(model, run_state)
    if not quiet:
        announce(run)

    bar = tqdm(total=config.epochs, initial=epoch, unit="epoch", disable=quiet or None)  # None: where it is no terminal
    try:
        with interrupts() as interrupted, bar:
            while True:
                if run.due(epoch):
                    row = run.measure(model, epoch, optimizer.param_groups[0]["lr"])
                    bar.set_postfix({split: f"{row[f'{split}_loss']:.3f}" for split in splits})
                    if row is run.best():
                        save_checkpoint(run, "best.pt", epoch, {"model": model})
                    save_checkpoint(run, "last.pt", epoch, state, streams)
                    if on_evaluation:
                        on_evaluation(row, run.best())
                if epoch == config.epochs:
                    return run.finish()
                if interrupted.is_set():
                    save_checkpoint(run, "last.pt", epoch, state, streams)
                    raise KeyboardInterrupt(f"go on with: python train.py --resume {run.folder}")

                model.train()
                losses = []
                for images, labels in batches:
                    inputs = [] if epoch in run.histogram_epochs and not losses else None
                    images = augmented(images, config, augmentation)
                    losses.append(train_step(model, optimizer, scheduler, images, labels, config, inputs))
                    if inputs:
                        run.recorder.input_gradients(epoch * run.steps_per_epoch, inputs)
                check_finite(torch.stack(losses), epoch * run.steps_per_epoch)
                epoch += 1
                bar.update()
    except Diverged as diverged:
        return run.finish("diverged", step=diverged.args[0])
    finally:
        run.recorder.close()


def check_finite(losses: torch.Tensor, step: int) -> None:
    """Raises Diverged if one of `losses` (N,), the costs of the N updates that follow `step`, is infinite or NaN."""
    finite = losses.isfinite()  # looked at once an epoch: to read a cost is to wait for the device
    if not finite.all():
        raise Diverged(step + int(finite.int().argmin()))


def save_checkpoint(run: Run, file: str, epoch: int, state: dict, streams: dict | None = None) -> None:
    """Writes the state_dict of all in `state`; with the random `streams` also what it takes to go on from there."""
    checkpoint = {name: part.state_dict() for name, part in state.items()}
    checkpoint |= {"epoch": epoch, "config": asdict(run.config)}
    if streams:
        checkpoint |= {"random": random_state(run.device, streams), "run": run.state_dict()}
    with replacing(run.folder / file) as path:
        torch.save(checkpoint, path)


def load_checkpoint(run: Run, state: dict, streams: dict[str, torch.Generator]) -> tuple[int, dict]:
    """Undoes `save_checkpoint`: restores `state` and `streams` from last.pt; returns the epoch and the run's state.

    A damaged or foreign file is a RunError with one line.
    """
    checkpoint = read_checkpoint(run)
    try:
        epoch, run_state = checkpoint["epoch"], checkpoint["run"]
        if epoch not in range(run.config.epochs + 1) or not run_state["rows"]:
            raise ValueError(f"epoch {epoch} of {run.config.epochs}, {len(run_state['rows'])} measurements")
        for name, part in state.items():
            part.load_state_dict(checkpoint[name])
        set_random_state(run.device, streams, checkpoint["random"])
        return epoch, run_state
    except Exception as error:  # whatever foreign contents make the modules do
        raise foreign_checkpoint(run, error) from None


def read_checkpoint(run: Run) -> dict:
    """The contents of last.pt; a damaged or foreign file is a RunError with one line, and no code in it is executed."""
    path = run.folder / "last.pt"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["config"] != asdict(run.config):
            raise ValueError("saved under other settings than those in config.json")
        return checkpoint
    except Exception as error:  # whatever a foreign file makes the unpickler do
        raise foreign_checkpoint(run, error) from None


def foreign_checkpoint(run: Run, error: Exception) -> RunError:
    reason = f"{type(error).__name__}: {one_line(error)[:100]}"
    return RunError(f"{run.folder / 'last.pt'}: damaged or foreign ({reason}); delete it to begin this run anew")


def random_state(device: torch.device, streams: dict[str, torch.Generator]) -> dict[str, torch.Tensor]:
    """Where all random streams are now: `streams`, and the one of initialisation and dropout."""
    state = {name: generator.get_state() for name, generator in streams.items()} | {"cpu": torch.get_rng_state()}
    return state if device.type == "cpu" else state | {"device": torch.get_device_module(device).get_rng_state()}


def set_random_state(device: torch.device, streams: dict[str, torch.Generator], state: dict) -> None:
    """Undoes `random_state`."""
    for name, generator in streams.items():
        generator.set_state(state[name])
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])


# --- the command line ------------------------------------------------------------------------------------------------


def announce(run: Run) -> None:
    """What is about to run, and the priors that the penalties are."""
    warn(run.dataset)
    sizes = ", ".join(f"{len(labels)} {split}" for split, (_, labels) in run.tensors.items())
    print(f"{run.dataset.name}, fold {run.config.fold}: {sizes}; {run.parameters} parameters, on {run.device.type}")
    scale, deviation = laplace_scale(run.config.l1, run.images), gaussian_deviation(run.config.l2, run.images)
    print(f"priors: Laplace of scale b = {scale:.4g} (l1 {run.config.l1:g}), ", end="")
    print(f"Gaussian of deviation sigma = {deviation:.4g} (l2 {run.config.l2:g}); inf is flat")


def warn(dataset: data.Dataset) -> None:
    """Says, so that nobody can miss it, that this is not the data set that was hoped for."""
    if dataset.warning:
        rule, images = "!" * 100, len(dataset.train_labels) + len(dataset.test_labels)
        what = f"WARNING: this is NOT MNIST, but the {images} handwritten digits of scikit-learn, because"
        print(rule, what, dataset.warning, rule, sep="\n", file=sys.stderr)


def summarize(result: dict, config: Config, script: str) -> None:
    """The end of a run: best and last, three splits, where it is kept, and what to do next."""
    print("\n" + " " * 16 + "".join(f"{split + ' cost':>14}   error" for split in result["sizes"]))
    for moment in ("best", "last"):
        row = result[moment]
        cells = "".join(f"{row[f'{split}_loss']:14.4f}{row[f'{split}_error']:8.2%}" for split in result["sizes"])
        print(f"{moment}, epoch{row['epoch']:5d}{cells}")
    if result["status"] == "diverged":
        print(f"the cost was infinite or NaN after {result['step']} updates; try a lower --lr than {config.lr:g}")
    print(f"{result['status']} after {result['seconds']:.0f} s, kept in {result['folder']}")
    print(f"look at it:         tensorboard --logdir {shlex.quote(str(Path(result['folder']).parent))}")
    print(f"on another fold:    {command(replace(config, fold=(config.fold + 1) % data.FOLDS), script)}")


def refuse_settings(options: Options) -> None:
    """With --resume there is nothing to set: exit code 2."""
    if options.resume and (options.config, options.runs_dir, options.name) != (Config(), "runs", ""):
        wrong_arguments(f"--resume {options.resume} goes on under that run's own settings; drop the other arguments")


def conclude(result: dict, options: Options, script: str = "train.py") -> None:
    """Ends the program with the summary of a run of `script`."""
    summarize(result, read_config(Path(result["folder"])), script)
    if result["data"] == "digits" and not options.resume:
        warn(data.load(options.config.data, options.config.data_dir))
    sys.exit(result["status"] == "diverged")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    refuse_settings(options)
    with errors_in_one_line(data.DataError, RunError):
        conclude(train(options.config, options.runs_dir, options.name, options.resume), options)


if __name__ == "__main__":
    main()
