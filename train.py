"""Train a small MLP on 5 % of MNIST, regularised and observed: the plain PyTorch loop.

    python train.py --dropout 0.2 --l2 1e-4
    tensorboard --logdir runs

Evidence: the first line errs on 5.94 % of the test images after 1000 epochs; without them on 7.41 %.
Settings, objective, evaluation, loop, command line: to be read downwards. A run's folder is support/run.py's business.
"""

import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from pydantic import Field
from torch import nn
from tqdm.auto import tqdm

import data
import observe
from augment import augment
from data import FOLDS, FRACTIONS  # within Config `data` is a setting
from model import MLP, entropy, store_grad
from regularizers import l1_penalty, l2_penalty, penalized_weights
from support import run
from support.run import Row, RunError
from support.shell import Folder, between, checked, errors_in_one_line, interrupts, parse, wrong_arguments

# --- settings --------------------------------------------------------------------------------------------------------


@checked
class Config:
    """The settings of one experiment. Off is a value: the defaults are the class's recipe."""

    # data
    data: Literal["auto", "mnist", "digits"] = "auto"  # auto: MNIST, or scikit-learn's digits where it cannot be had
    data_dir: Folder = ""  # folder of four IDX files, plain or .gz, to use instead
    fold: Annotated[int, between(0, FOLDS - 1)] = 0  # with which twentieth of the training images to begin
    fraction: Annotated[float, between(*FRACTIONS)] = 0.05  # of the images to learn from; the others validate
    # model
    hidden: Annotated[tuple[Annotated[int, between(1, 10_000)], ...], Field(min_length=1)] = (100, 100, 100)  # widths
    init: Literal["default", "glorot", "he"] = "default"  # of the weights, uniform; default is PyTorch's
    # training
    seed: Annotated[int, between(0, 2**31 - 1)] = 0  # of initialisation and dropout, order of batches, augmentation
    epochs: Annotated[int, between(1, 1_000_000)] = 1000  # passes over the training images; 100 is a quick look
    batch_size: Annotated[int, between(1, 1_000_000)] = 300  # images in an update; batch norm wants 30 or more
    optimizer: Literal["adam", "sgd"] = "adam"  # AdamW, which is Adam without weight decay, or SGD
    momentum: Annotated[float, between(0, 0.9999)] = 0.0  # of SGD; try 0.9
    lr: Annotated[float, between(1e-10, 1e10)] = 1e-3  # learning rate; with one-cycle its peak, try 5e-3; with sgd 0.1
    schedule: Literal["constant", "one-cycle"] = "constant"  # of the learning rate; one-cycle is the steadier one
    patience: Annotated[int, between(0, 1_000_000)] = 0  # early stopping: evaluations without a lower validation cost
    # regularisation
    dropout: Annotated[float, between(0, 0.99)] = 0.0  # probability that a hidden activation is dropped; try 0.1 to 0.3
    norm: Literal["none", "batch", "layer"] = "none"  # normalisation between a hidden linear layer and its ReLU
    l1: Annotated[float, between(0, 1000)] = 0.0  # strength of the penalty sum |w|; try 1e-5
    l2: Annotated[float, between(0, 1000)] = 0.0  # strength of the penalty sum w**2; try 1e-4 to 1e-3
    weight_decay: Annotated[float, between(0, 1000)] = 0.0  # an update takes lr * weight_decay * w off w, as in AdamW
    # augmentation, drawn for every image of every batch
    noise: Annotated[float, between(0, 100)] = 0.0  # deviation of Gaussian noise on the pixels, in [0, 1]; try 0.3
    rotate: Annotated[float, between(0, 180)] = 0.0  # degrees, either way; try 15: beyond 90 a 6 may become a 9
    zoom: Annotated[float, between(0, 0.9)] = 0.0  # factor between 1 - zoom and 1 + zoom; try 0.2
    shift: Annotated[float, between(0, 1000)] = 0.0  # pixels along each axis, either way; try 2
    shear: Annotated[float, between(0, 10)] = 0.0  # slope, either way; try 0.2
    elastic: Annotated[float, between(0, 10_000)] = 0.0  # pixels, alpha of elastic distortion; Simard et al. 2003: 34
    # machine and observation
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU if there is one
    threads: Annotated[int, between(0, 1024)] = 1  # of PyTorch on a CPU; 0 for its own choice
    matmul: Literal["highest", "high", "medium"] = "highest"  # precision of float32 matrix products, where it matters
    evaluations: Annotated[int, between(1, 1_000_000)] = 30  # of all splits, after the untrained one; denser early
    histograms: Annotated[int, between(0, 1000)] = 20  # how many of these with histograms; 0 for none

    def __post_init__(self):
        if self.data_dir and self.data != "auto":
            raise ValueError(f"--data {self.data} and --data-dir {self.data_dir} exclude each other; give one of them")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"--momentum {self.momentum}: Adam has its own; drop it, or take --optimizer sgd")


AUGMENTATIONS = ("noise", "rotate", "zoom", "shift", "shear", "elastic")


def resolved(config: Config) -> tuple[Config, data.Dataset]:
    """`config` with the data set and the device that are really used, and the data set."""
    dataset = data.load(config.data, config.data_dir)
    used = {"data_dir": str(Path(config.data_dir).resolve())} if config.data_dir else {"data": dataset.name}
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(kind for kind in present if present[kind]) if config.device == "auto" else config.device
    if not present[device]:
        raise RunError(f"--device {device}: this machine has none; use --device auto")
    return replace(config, **used, device=device), dataset


# --- model, optimiser, objective: shared with Lightning --------------------------------------------------------------


def random_streams(seed: int, device: torch.device) -> tuple[int, torch.Generator, torch.Generator]:
    """Independent streams: a seed for initialisation and dropout, and generators for batch order and augmentation."""
    init, order, augmentation = (int(word) for word in np.random.SeedSequence(seed).generate_state(3, np.uint64))
    # the order is drawn on the CPU, so that it is the same on every device
    return init, torch.Generator().manual_seed(order), torch.Generator(device).manual_seed(augmentation)


def build_model(config: Config, dataset: data.Dataset) -> nn.Module:
    """The MLP of `config`, initialised from PyTorch's own stream, from which dropout goes on drawing."""
    return MLP(dataset.in_features, dataset.classes, config.hidden, config.norm, config.dropout, config.init)


def trained_model(config: Config, dataset: data.Dataset, path: Path) -> nn.Module:
    """The MLP of `config` with the weights in `path`, a best.pt or last.pt; RunError if they are another run's."""
    model = build_model(config, dataset)
    model.load_state_dict(run.read_checkpoint(path, run.identity_of(config, dataset, model))["model"])
    return model


def build_optimizer(model: nn.Module, config: Config, steps: int):
    """The optimiser for `steps` updates, and the schedule of its learning rate, to be stepped after each update.

    What decays is what L1 and L2 penalise. SGD with weight decay d is SGD with an L2 penalty of d / 2; AdamW is not.
    """
    decaying = penalized_weights(model)
    others = [weights for weights in model.parameters() if all(weights is not one for one in decaying)]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    if config.schedule == "constant":
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    cycled = config.optimizer == "adam" or config.momentum > 0  # momentum goes down while the learning rate goes up
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps, cycle_momentum=cycled)


def augmented(images: torch.Tensor, generator: torch.Generator, config: Config) -> torch.Tensor:
    """`images` (N, H, W) as training sees them: with the augmentations of `config`, if any."""
    return augment(images, generator, **{name: getattr(config, name) for name in AUGMENTATIONS})


def objective(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, config: Config) -> torch.Tensor:
    """What training minimises: the mean cross-entropy of a batch, in nats, plus the penalties."""
    loss = F.cross_entropy(model(images), labels)
    if config.l1:
        loss = loss + config.l1 * l1_penalty(model)
    if config.l2:
        loss = loss + config.l2 * l2_penalty(model)
    return loss


class Diverged(Exception):
    """The cost became infinite or NaN; the argument is after how many updates."""


# --- evaluation ------------------------------------------------------------------------------------------------------

EVALUATION_BATCH = 1000  # images: as many as fit into a core's cache


class Scores(NamedTuple):
    """How good a model is on a split."""

    loss: float  # mean cross-entropy, in nats
    error: float  # share of the images with a wrong answer
    entropy: torch.Tensor  # (N,) of every output, in nats


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (N, classes) of `images` (N, ...), in evaluation mode; leaves the mode as it was."""
    mode = model.training
    model.eval()
    logits = torch.cat([model(batch.clone()) for batch in images.split(EVALUATION_BATCH)])  # a copy it may change
    model.train(mode)
    return logits


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Scores:
    """The scores of `model`, in evaluation mode, on all images."""
    logits = predict(model, images)
    loss = F.cross_entropy(logits, labels).item()
    error = (logits.argmax(dim=1) != labels).sum().item() / len(labels)
    return Scores(loss, error, entropy(logits))


@torch.no_grad()
def measurement(
    model: nn.Module, scores: dict[str, Scores], config: Config, classes: int, untrained: Row | None
) -> Row:
    """What is written down of one evaluation, under the names that it has in TensorBoard.

    Args:
        scores: by split.
        untrained: the measurement before training, if this is a later one.
    """
    row = {f"loss/{split}": one.loss for split, one in scores.items()}
    row |= {f"error/{split}": one.error for split, one in scores.items()}
    row |= {f"mean_entropy/{split}": one.entropy.mean().item() for split, one in scores.items()}
    row |= {"mean_entropy/untrained": (untrained or row)["mean_entropy/val"], "mean_entropy/uniform": math.log(classes)}
    row |= {"penalty/l1": config.l1 * l1_penalty(model).item() if config.l1 else 0.0}
    row |= {"penalty/l2": config.l2 * l2_penalty(model).item() if config.l2 else 0.0}
    return row | {f"weight_rms/{name}": observe.rms(layer.weight) for name, layer in observe.layers(model).items()}


def best(rows: Sequence[Row]) -> Row:
    """The measurement with the lowest validation cost. Test is reported, and never chosen by."""
    return min(rows, key=lambda row: row["loss/val"])


def record(rows: list[Row], folder: run.RunFolder, recorder: observe.Recorder, model: nn.Module, scores=None) -> None:
    """Writes the last of `rows` wherever it belongs: metrics.csv, TensorBoard, best.pt; histograms with `scores`."""
    row = rows[-1]
    folder.write_rows(rows)
    recorder.scalars(row)
    if scores:
        recorder.histograms(row["step"], model, {split: one.entropy for split, one in scores.items()})
    if row is best(rows):
        folder.save_best(model, row["epoch"])


# --- the plain loop --------------------------------------------------------------------------------------------------


def train(
    config: Config,
    folder: str | Path,
    splits: Sequence[str] = data.SPLITS,
    quiet: bool = False,
    make_model: Callable[[Config, data.Dataset], nn.Module] = build_model,
    on_evaluation: Callable[[Row, Row], None] | None = None,
) -> dict:
    """The run with the settings `config` in `folder`: begins it, goes on with it or, once it is over, only reads it.

    Args:
        config: its settings.
        folder: of this run alone; another process that comes while it is at work is refused.
        splits: which splits are read and measured; train and val are needed.
        quiet: print nothing and show no progress.
        make_model: makes the network: images (N, H, W) in, raw logits (N, classes) out.
        on_evaluation: called with each new measurement and the best one; what it raises ends the run.

    Returns what result.json holds, and the run's `folder`.

    Raises:
        data.DataError, RunError: with one line for the user; RunError if the folder is that of another run.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved; the message says how to go on.
    """
    config, dataset = resolved(config)
    device = torch.device(config.device)
    tensors = {split: data.split_tensors(dataset, split, config.fold, device, config.fraction) for split in splits}
    sizes = {split: len(labels) for split, (_, labels) in tensors.items()}
    init, order, augmentation = random_streams(config.seed, device)
    batches = data.Batches(*tensors["train"], config.batch_size, order)
    torch.manual_seed(init)
    model = make_model(config, dataset)
    if any(isinstance(weights, nn.UninitializedParameter) for weights in model.parameters()):
        predict(model, torch.zeros(1, *dataset.train_images.shape[1:]))  # lazy layers learn their sizes
    model = model.to(device)
    optimizer, scheduler = build_optimizer(model, config, config.epochs * len(batches))
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    streams = {"order": order, "augmentation": augmentation}

    with run.machine(config), run.opened_run(Path(folder), run.identity_of(config, dataset, model)) as opened:
        if opened.result:
            return opened.result
        run.check_batches(config, sizes["train"])
        progress = opened.go_on(state, streams)
        rows, since = progress.rows, time.perf_counter() - progress.seconds
        if not quiet:
            run.announce(config, dataset, model, sizes)

        moments = observe.evaluation_epochs(config.epochs, config.evaluations)
        with_histograms = observe.histogram_epochs(moments, config.histograms)
        recorder = observe.Recorder(opened.path, progress.epoch * len(batches))
        if not rows:
            recorder.introduce(asdict(config), tensors["train"][0], partial(augmented, config=config), AUGMENTATIONS)

        bar = tqdm(total=config.epochs, initial=progress.epoch, unit="epoch", smoothing=0, disable=quiet or None)
        status, step = "finished", 0
        try:
            with interrupts() as interrupted, bar:
                for epoch in range(progress.epoch, config.epochs + 1):  # once more than it trains: the last only looks
                    step = epoch * len(batches)
                    if epoch and (epoch in moments or interrupted.is_set()):  # to go on is to look again
                        recorder.flush()  # TensorBoard's thread writes late; what is saved must have been shown
                        opened.save(state, streams, run.Progress(epoch, rows, time.perf_counter() - since))
                    if interrupted.is_set():
                        raise KeyboardInterrupt(f"go on with: python train.py --resume {shlex.quote(str(folder))}")
                    if epoch in moments:
                        model.eval()  # in training mode, whoever reads a weight of spectral_norm's changes it
                        scores = {split: evaluate(model, *tensors[split]) for split in splits}
                        row = {"epoch": epoch, "step": step, "lr": optimizer.param_groups[0]["lr"]}
                        row |= measurement(model, scores, config, dataset.classes, rows[0] if rows else None)
                        row |= {"seconds": time.perf_counter() - since}
                        if not math.isfinite(row["loss/train"] + row["loss/val"]):
                            raise Diverged(step)
                        rows = [*rows, row]
                        record(rows, opened, recorder, model, scores if epoch in with_histograms else None)
                        bar.set_postfix({split: f"{row[f'loss/{split}']:.3f}" for split in splits})
                        if on_evaluation:
                            on_evaluation(row, best(rows))
                        if config.patience and len(rows) - 1 - rows.index(best(rows)) >= config.patience:
                            break
                    if epoch == config.epochs:
                        break

                    model.train()
                    losses = []
                    for images, labels in batches:
                        looked_at = epoch in moments and not losses
                        with recorder.input_gradients(model, store_grad, step, looked_at, epoch in with_histograms):
                            loss = objective(model, augmented(images, augmentation, config), labels, config)
                            loss.backward()
                        optimizer.step()
                        optimizer.zero_grad()
                        scheduler.step()
                        losses.append(loss.detach())
                    finite = torch.stack(losses).isfinite()  # once an epoch: to read a cost is to wait for the device
                    if not finite.all():
                        raise Diverged(step + int(finite.int().argmin()))
                    bar.update()
        except Diverged as diverged:
            if not rows:
                raise RunError("the untrained network's cost is infinite or NaN; mend make_model") from None
            status, step = "diverged", diverged.args[0]
        finally:
            recorder.close()
        end = {"status": status, "step": step, "best": best(rows), "last": rows[-1]}
        return opened.finish(dataset, sizes, device, **end, seconds=time.perf_counter() - since)


# --- the command line ------------------------------------------------------------------------------------------------


@checked
class TrainOptions:
    """Train a small MLP on 5 % of MNIST: the settings of the experiment, and where the run is kept."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    runs_dir: Folder = "runs"  # folder of all runs
    name: str = ""  # of the run's folder; by default what differs from the defaults, and the time
    resume: Folder = ""  # folder of a run to go on with, under its own settings


def read_config(folder: Path) -> Config:
    """The settings of the run in `folder`; RunError with one line if there are none."""
    path = folder / "config.json"
    saved = run.read_json(path)
    try:
        return Config(**{name: saved[name] for name in asdict(Config())} | {"hidden": tuple(saved["hidden"])})
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: damaged, or no run of this version ({error}); begin it anew") from None


def launch(options: TrainOptions, trainer: Callable[..., dict], script: str) -> None:
    """Runs `options` with `trainer`, prints the summary and ends the program: with 1 if the cost diverged."""
    if options.resume:
        if TrainOptions(options.config, options.runs_dir, options.name) != TrainOptions():
            wrong_arguments(f"--resume {options.resume}: has settings of its own; drop the other arguments")
        folder = Path(options.resume)
        config, dataset = resolved(read_config(folder))
    else:
        config, dataset = resolved(options.config)
        run.warn(dataset)  # before and after: one of the two will be seen
        folder = run.new_folder(options.runs_dir, options.name, run.run_name(config))
    result = trainer(config, folder)
    run.summarize(result, config, script)
    run.warn(dataset)
    sys.exit(result["status"] == "diverged")


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError):
        launch(parse(TrainOptions, argv), train, "train.py")


if __name__ == "__main__":
    main()
