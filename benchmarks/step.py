"""What a training step, augmentation and a whole run cost, beside the hardware's limits and the usual ways.

    python benchmarks/step.py

One process, one thread, timed by the processor's clock, which stands still while other programs have the core. They
still take the caches and the memory; so the contenders of a table take turns, and every ratio is taken within one round
of turns. All figures are medians over the rounds.
"""

import itertools
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import compare
import data
import train
from augment import SIMARD_SIGMA
from support.run import RunError, machine, warn
from support.shell import errors_in_one_line, parse
from train_lightning import LitMLP, MNISTData

CPU = torch.device("cpu")
# What importing Lightning sets: every step of an optimiser then looks for a driver, 0.14 ms where there is no GPU.
LIGHTNING = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

# Strengths hardly change what a step costs, so these need not be the tuned ones.
STRENGTHS = {
    "l1": 1e-5, "l2": 1e-4, "weight_decay": 0.01, "dropout": 0.2, "noise": 0.2,
    "rotate": 15.0, "zoom": 0.15, "shift": 2.0, "shear": 0.15, "elastic": 34.0,
}  # fmt: skip
METHODS = {
    method: {name: STRENGTHS[name] if value is compare.TUNED else value for name, value in settings.items()}
    for method, settings in compare.METHODS.items()
    if method != compare.RECIPE  # whose step is the plain network's
}
WHOLE_RUNS = (compare.PLAIN, "dropout + L2", "everything")  # the second is the README's main job


@dataclass(frozen=True)
class BenchmarkOptions:
    """Time a training step, augmentation and whole runs beside the hardware's limits and the usual ways."""

    data: Literal["auto", "mnist", "digits"] = "auto"  # auto: MNIST, or scikit-learn's digits where it cannot be had
    quick: bool = False  # one step of everything: that it works, not how fast


class Problem(NamedTuple):
    """What all contenders have in common."""

    dataset: data.Dataset
    images: torch.Tensor  # (N, H, W), to train on
    labels: torch.Tensor  # (N,)
    config: train.Config  # the plain network

    @property
    def rows(self) -> int:
        """Images in a batch."""
        return min(self.config.batch_size, len(self.labels))

    @property
    def steps(self) -> int:
        """In an epoch."""
        return math.ceil(len(self.labels) / self.config.batch_size)


Contender = Callable[[int], float]  # trains for so many epochs, and returns the seconds of the processor that it took
Table = dict[str, dict[str, float]]  # by row and column


def timed(work: Callable[[int], None]) -> Contender:
    def turn(epochs: int) -> float:
        start = time.process_time()
        work(epochs)
        return time.process_time() - start

    return turn


# --- the contenders --------------------------------------------------------------------------------------------------


def products(problem: Problem, matmul: Callable, convert: Callable) -> Contender:
    """The matrix products of a step, into buffers made beforehand: nothing that trains can take less.

    `matmul(a, b, out=c)` multiplies what `convert` makes of a tensor.
    """
    sizes = [problem.dataset.in_features, *problem.config.hidden, problem.dataset.classes]

    def random(shapes) -> list:
        return [convert(torch.rand(*shape)) for shape in shapes]

    weights, weight_gradients = (random((o, i) for i, o in itertools.pairwise(sizes)) for _ in range(2))
    activations, gradients = (random((problem.rows, size) for size in sizes) for _ in range(2))

    @timed
    def turn(epochs: int) -> None:
        for _ in range(epochs * problem.steps):
            for layer, weight in enumerate(weights):
                matmul(activations[layer], weight.T, out=activations[layer + 1])
            for layer in reversed(range(len(weights))):
                matmul(gradients[layer + 1].T, activations[layer], out=weight_gradients[layer])
                if layer:  # nobody needs the gradient of the pixels
                    matmul(gradients[layer + 1], weights[layer], out=gradients[layer])

    return turn


def ours(problem: Problem, **settings) -> Contender:
    """The steps of train.run, as they are between two evaluations."""
    config = replace(problem.config, **settings)
    init, order, augmentation = train.random_streams(config.seed, CPU)
    torch.manual_seed(init)
    model = train.build_model(config, problem.dataset)
    batches = data.Batches(problem.images, problem.labels, config.batch_size, order)
    optimizer, scheduler = train.build_optimizer(model, config, config.epochs * len(batches))

    @timed
    def turn(epochs: int) -> None:
        with machine(config):
            for _ in range(epochs):
                losses = []
                for images, labels in batches:
                    loss = train.objective(model, train.augmented(images, augmentation, config), labels, config)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()
                    losses.append(loss.detach())
                torch.stack(losses).isfinite().all().item()

    return turn


def usual_loader(problem: Problem) -> DataLoader:
    return DataLoader(TensorDataset(problem.images, problem.labels), problem.config.batch_size, shuffle=True)


def usual_loop(problem: Problem) -> Contender:
    """The loop of most tutorials: a DataLoader, Adam, the loss read at every step."""
    model = train.build_model(problem.config, problem.dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.config.lr)
    loader = usual_loader(problem)

    @timed
    def turn(epochs: int) -> None:
        total = 0.0
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                total += loss.item()

    return turn


class UsualLightning(lightning.LightningModule):
    """The LightningModule of most tutorials."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.model, self.lr = train.build_model(problem.config, problem.dataset), problem.config.lr

    def training_step(self, batch, _):
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Stopwatch(lightning.Callback):
    """Keeps the seconds from the first step to the last."""

    def on_train_start(self, trainer, module):
        self.seconds = -time.process_time()

    def on_train_end(self, trainer, module):
        self.seconds += time.process_time()


def fit(epochs: int, module: lightning.LightningModule, batches: Iterable | lightning.LightningDataModule) -> float:
    """Seconds that Lightning's Trainer takes with nothing switched on."""
    stopwatch = Stopwatch()
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", limit_val_batches=0, callbacks=[stopwatch], **off)
    with patch.dict(os.environ, LIGHTNING):
        trainer.fit(module, batches)
    return stopwatch.seconds


def scikit_learn(problem: Problem) -> Contender:
    """scikit-learn's own multilayer perceptron, in NumPy, without the L2 penalty that it has by default."""
    images, labels = problem.images.flatten(1).numpy(), problem.labels.numpy()

    @timed
    def turn(epochs: int) -> None:
        model = MLPClassifier(problem.config.hidden, solver="adam", alpha=0.0, batch_size=problem.rows)
        model.set_params(max_iter=epochs, n_iter_no_change=epochs + 1).fit(images, labels)

    return turn


# --- taking turns ----------------------------------------------------------------------------------------------------


def take_turns(contenders: dict[str, Contender], rounds: int, count: int) -> dict[str, list[float]]:
    """The seconds that each of the contenders took for `count` in each of the rounds."""
    times = {name: [] for name in contenders}
    for turn in contenders.values():
        turn(1)  # warms up
    for _ in range(rounds):
        for name, turn in contenders.items():
            times[name].append(turn(count))
    return times


def median_ratio(values: list[float], references: list[float]) -> float:
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


def show(title: str, table: Table) -> None:
    columns = list(next(iter(table.values())))
    print(f"\n{title:36}" + "".join(f"{column:>12}" for column in columns))
    for name, cells in table.items():
        print(f"{name:36}" + "".join(f"{cells[column]:12.2f}" for column in columns), flush=True)


# --- the tables ------------------------------------------------------------------------------------------------------


def step_table(problem: Problem, rounds: int, epochs: int) -> Table:
    """ms a step of every contender, and how many times as long as the matrix products of PyTorch and of NumPy."""
    config, dataset = problem.config, problem.dataset
    limits = {f"{name}'s matrix products alone": f"x {name}'s" for name in ("PyTorch", "NumPy")}
    ways = (torch.matmul, lambda tensor: tensor), (np.matmul, torch.Tensor.numpy)
    contenders = {name: products(problem, *way) for name, way in zip(limits, ways, strict=True)}
    contenders |= {name: ours(problem, **settings) for name, settings in METHODS.items()}
    contenders |= {
        "plain, --matmul medium": ours(problem, matmul="medium"),
        "DataLoader, Adam, .item()": usual_loop(problem),
        "Lightning's Trainer, DataLoader": lambda epochs: fit(epochs, UsualLightning(problem), usual_loader(problem)),
        "train_lightning.py, in memory": lambda epochs: fit(epochs, LitMLP(config, dataset), MNISTData(config)),
        "scikit-learn's MLPClassifier": scikit_learn(problem),
    }
    times = take_turns(contenders, rounds, epochs)
    table = {}
    for name, values in times.items():
        table[name] = {"ms": statistics.median(values) * 1000 / (epochs * problem.steps)}
        table[name] |= {column: median_ratio(values, times[limit]) for limit, column in limits.items()}
    show(f"a step on {problem.rows} images", table)
    return table


def augmentation_table(problem: Problem, rounds: int, count: int) -> Table:
    """ms for a batch, here and with torchvision's transforms, which draw once a call and so need a loop over images."""
    images, side = problem.images[: problem.rows], problem.images.shape[-1]
    parts = {"geometry": METHODS["geometric"], "noise": METHODS["noise"], "elastic": METHODS["elastic"]}
    parts["all"] = {name: value for part in parts.values() for name, value in part.items()}
    how = parts["all"]
    zoom, shift, shear = how["zoom"], how["shift"] / side, math.degrees(math.atan(how["shear"]))
    bilinear = v2.InterpolationMode.BILINEAR
    transforms = {
        "geometry": v2.RandomAffine(how["rotate"], (shift, shift), (1 - zoom, 1 + zoom), shear, bilinear),
        # its alpha counts half pixels, and its blur cannot reach farther than the images do
        "elastic": v2.ElasticTransform(2 * how["elastic"], min(SIMARD_SIGMA, (side - 1) / 4)),
        "noise": v2.GaussianNoise(sigma=how["noise"], clip=False),
    }
    transforms["all"] = v2.Compose(list(transforms.values()))

    def batched(config: train.Config) -> Contender:
        generator = torch.Generator().manual_seed(0)
        return timed(lambda batches: [train.augmented(images, generator, config) for _ in range(batches)])

    def one_by_one(transform: v2.Transform) -> Contender:
        """One batch, however many are asked for: it takes as long as a hundred of the others."""
        return timed(lambda _: torch.stack([transform(image) for image in images.unsqueeze(1)]))

    table = {}
    for name, settings in parts.items():
        contenders = {"ms": batched(replace(problem.config, **settings)), "torchvision": one_by_one(transforms[name])}
        times = take_turns(contenders, rounds, count)
        times["ms"] = [seconds / count for seconds in times["ms"]]
        table[name] = {column: statistics.median(values) * 1000 for column, values in times.items()}
        table[name]["x ours"] = median_ratio(times["torchvision"], times["ms"])
    show(f"augmenting {problem.rows} images", table)
    return table


def run_table(problem: Problem, rounds: int, epochs: int) -> Table:
    """Seconds of whole runs of train.train, evaluations and files included, and of bare steps of the plain network."""

    def whole(settings: dict) -> Contender:
        @timed
        def turn(epochs: int) -> None:
            with tempfile.TemporaryDirectory() as folder:
                train.train(replace(problem.config, epochs=epochs, **settings), folder, quiet=True)

        return turn

    contenders = {"plain steps alone": ours(problem)} | {name: whole(METHODS[name]) for name in WHOLE_RUNS}
    times = take_turns(contenders, rounds, epochs)
    table = {}
    for name, values in times.items():
        table[name] = {"s": statistics.median(values), "x plain": median_ratio(values, times[compare.PLAIN])}
    show(f"a whole run, {epochs} epochs", table)
    return table


# --- the command line ------------------------------------------------------------------------------------------------

TABLES = {  # in how many rounds, and how much in a turn: the shorter, the less a machine changes between contenders
    "augmentation": (augmentation_table, 10, 10),
    "step": (step_table, 30, 3),
    "run": (run_table, 2, 1000),
}


def describe(problem: Problem) -> None:
    """Which processor, which BLAS, and which instructions each of them uses, as far as they tell."""
    processor = torch.cpu.get_capabilities()
    name = processor.get("cpu_name", processor.get("architecture", "unknown"))
    kernels = torch.backends.cpu.get_cpu_capability()
    print(f"{problem.dataset.name}, one thread, {name}; PyTorch {torch.__version__}, its own kernels in {kernels}")
    for library in threadpool_info():
        if library["user_api"] == "blas":
            kernels = library.get("architecture", "of its own choice")
            print(f"{library['internal_api']} {library['version']}, kernels: {kernels} ({library['filepath']})")


def main(argv: list[str] | None = None) -> dict[str, Table]:
    """Prints the tables, and returns them."""
    with errors_in_one_line(data.DataError, RunError):
        options = parse(BenchmarkOptions, argv)
        dataset = data.load(options.data)
        warn(dataset)
        config = train.Config(data=dataset.name, device="cpu", threads=1)
        problem = Problem(dataset, *data.split_tensors(dataset, "train", config.fold, CPU), config)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        # Lightning recommends worker processes, scikit-learn more epochs; NumPy is to take one thread, too
        with machine(config), threadpool_limits(1), patch.dict(os.environ), warnings.catch_warnings(action="ignore"):
            for name in LIGHTNING:
                os.environ.pop(name, None)
            describe(problem)
            lengths = {name: (1, 1) if options.quick else length for name, (_, *length) in TABLES.items()}
            return {name: table(problem, *lengths[name]) for name, (table, *_) in TABLES.items()}


if __name__ == "__main__":
    main()
