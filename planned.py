"""Planned runs, which compare.py and sentences.py share: each is done once, by whatever worker, and what is kept of it.

    over = run_plans([plan(config) for config in configs], options)  # .result: what `train_planned` returned

All are kept in the study `compare` of --studies-dir.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import nn

import data
import observe
from regularizers import penalized_weights
from support import cluster
from support.run import RunError, differences, machine, read_rows, warn
from support.shell import Folder, as_text, between, checked, flag
from support.verdicts import SMALL
from train import Config, predict, resolved, train, trained_model

# --- plans -----------------------------------------------------------------------------------------------------------

BASE = Config(evaluations=20, histograms=0)  # what holds for all
ONE_LOOK = {"evaluations": 1, "histograms": 0}  # of a run whose end alone counts
WHERE = ("data", "data_dir", "device")  # on which data and machine, not which experiment


@checked
class PlannedOptions:
    """What compare.py and sentences.py both take."""

    data: Literal["auto", "mnist", "digits"] = "auto"  # as in train.py
    data_dir: Folder = ""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    epochs: Annotated[int, between(1, 1_000_000)] = BASE.epochs  # of every run; fewer are a quick look
    report: bool = False  # train nothing: rebuild the published tables and figures from their files
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    scheduler: str = ""  # such as tcp://host:8786, of a running `dask scheduler`, whose machines then do the work
    studies_dir: Folder = "studies"  # folder of all studies; the runs are kept in its folder compare

    def __post_init__(self):
        _ = self.config  # its own checks
        given = [one.name for one in fields(self) if one.name != "report" and getattr(self, one.name) != one.default]
        if self.report and given:
            raise ValueError(f"--report: rebuilds what is published as it is; drop {flag(given[0])}")

    @property
    def config(self) -> Config:
        """What holds for all runs."""
        return replace(BASE, epochs=self.epochs, **{name: getattr(self, name) for name in WHERE})


def prepared(options: PlannedOptions):
    """`options` with the data set and the device that are really used; warns if that is no MNIST."""
    config, dataset = resolved(options.config)
    warn(dataset)
    return replace(options, **{name: getattr(config, name) for name in WHERE})


def dataset_of(config: Config) -> data.Dataset:
    return data.load(config.data, config.data_dir)


def plan(config: Config, splits: Sequence[str] = data.SPLITS, **more) -> dict:
    """What tells a run from all others: its settings, its data, and of how many `networks` the output is averaged."""
    settings = {name: value for name, value in asdict(config).items() if name not in WHERE}
    return {"settings": settings, "splits": list(splits), "data_sha256": dataset_of(config).sha256} | more


def run_plans(payloads: Sequence[dict], options: PlannedOptions) -> list[cluster.Finished]:
    """The runs of `payloads`, made by `plan`, with what `train_planned` returned; only what is missing is run."""
    function = partial(train_planned, where={name: getattr(options, name) for name in WHERE})
    more = {"workers": options.workers, "scheduler": options.scheduler, "label": label_of, "preload": ["planned"]}
    runs = cluster.run_all(function, payloads, study_folder(options), **more)
    for kept in study_folder(options).glob("runs/*/kept.json"):
        for path in kept.parent.rglob("*.pt"):  # nobody goes on with it
            path.unlink(missing_ok=True)
    if reasons := [one.reason for one in runs if one.reason]:
        raise RunError(reasons[0])
    return runs


def study_folder(options) -> Path:
    return Path(options.studies_dir) / "compare"


def label_of(payload: dict) -> str:
    """For the name of a run's folder, as TensorBoard shows it."""
    settings = differences(Config(**payload["settings"]))
    return "_".join(f"{name}={as_text(settings[name])}" for name in settings if name not in ONE_LOOK)[:150]


def choice(options: PlannedOptions) -> list[str]:
    """The options that differ from their defaults, as words for the name of a folder."""
    wanted = [one for one in fields(options) if one.name in ("tune", "methods", "folds", "epochs")]
    given = {one.name: getattr(options, one.name) for one in wanted if getattr(options, one.name) != one.default}
    words = [name if value is True else f"{name}={as_text(value)}" for name, value in given.items()]
    if options.data == "mnist":
        return words
    return [*words, f"data={options.data}-{dataset_of(options.config).sha256[:8]}"]


def results_folder(options: PlannedOptions, study: str) -> Path:
    """One for each choice, so that no quick look touches another's files."""
    folder = Path(options.studies_dir) / study / (re.sub(r"[^\w.,=+-]+", "-", "_".join(choice(options))) or "all")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- runs ------------------------------------------------------------------------------------------------------------


def train_planned(payload: dict, folder: Path, where: dict) -> dict:
    """One planned run, in a worker, on the data and the device `where`: all that tables and figures need of it."""
    config = Config(**where, **payload["settings"])
    if dataset_of(config).sha256 != payload["data_sha256"]:
        raise RunError("the data are others than those that this run was planned with")
    if "networks" in payload:
        return averaged_networks(config, folder, payload["networks"])
    return one_network(config, folder, payload["splits"])


def one_network(config: Config, folder: Path, splits: Sequence[str] = data.SPLITS) -> dict:
    """Trains a network; returns its result and on what it ran, and more if it may see the test images.

    That is, in the result, what `calibration` says of the last weights and of those of the lowest validation cost;
    costs over the epochs; and of the last weights how large they are, what test images of each digit (row) were taken
    for (column), and the bins of a reliability diagram.
    """
    result = train(config, folder, splits, quiet=True)
    found = {"result": result, "processor": f"{result['device']}, {torch.backends.cpu.get_cpu_capability()}"}
    if "test" not in splits:
        return found
    rows = read_rows(folder)
    found["curves"] = {
        column: [row[column] for row in rows] for column in ("epoch", *(f"loss/{one}" for one in splits))
    }
    if result["status"] == "diverged":  # the last weights are not those of the last measurement
        return found
    dataset = dataset_of(config)
    for moment in ("best", "last"):
        model = trained_model(config, dataset, folder / f"{moment}.pt")
        logits, labels = outputs(config, model, "test")
        result[moment] = result[moment] | calibration(outputs(config, model, "val"), (logits, labels))
    classes = dataset.classes
    counts = torch.bincount(classes * labels + logits.argmax(dim=1), minlength=classes**2)
    found |= {"confusions": counts.reshape(classes, classes).tolist(), "reliability": reliability(logits, labels)}
    weights = torch.cat([weight.detach().flatten() for weight in penalized_weights(model)])
    found["weights"] = {"rms": observe.rms(weights), "small": (weights.abs() < SMALL).double().mean().item()}
    return found


def outputs(config: Config, model: nn.Module, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) of the images of a split, computed as in the run, so that no answer differs; and labels."""
    device = torch.device(config.device)
    images, labels = data.split_tensors(dataset_of(config), split, config.fold, device, config.fraction)
    with machine(config):
        return predict(model.to(device), images).cpu(), labels.cpu()


# --- calibration -----------------------------------------------------------------------------------------------------

CONFIDENCE_BINS = 15  # of confidence, from 0 to 1


def calibration(val: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """How far confidence is off on test, and the cost there after one temperature, fitted on validation.

    Both are logits (N, classes) and labels (N,). calibration/test is the mean over the images of the distance between
    confidence and share of right answers in its bin (Naeini et al. 2015); tempered/test the cost in nats of logits / T.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes seconds to import

    (logits, labels), t = test, temperature(*val)
    shares, classes = logits.softmax(dim=1), logits.shape[1]
    error = multiclass_calibration_error(shares, labels, num_classes=classes, n_bins=CONFIDENCE_BINS, norm="l1")
    tempered = F.cross_entropy(logits.double() / t, labels).item()
    return {"calibration/test": error.item(), "temperature": t, "tempered/test": tempered}


def temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T at which logits / T have the lowest cost (Guo et al. 2017), a convex function of 1 / T."""

    def cost(log_t: float) -> float:
        return F.cross_entropy(logits.double() * math.exp(-log_t), labels).item()

    return math.exp(minimize_scalar(cost, bounds=(-5, 7), method="bounded", options={"xatol": 1e-4}).x)


def reliability(logits: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    """By bin of the confidence: number of images, sum of their confidences, and number of right answers."""
    confidence, answers = logits.softmax(dim=1).double().max(dim=1)
    which = (confidence * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1)
    columns = [torch.ones_like(confidence), confidence, (answers == labels).double()]
    return torch.stack([torch.bincount(which, column, CONFIDENCE_BINS) for column in columns], dim=1).tolist()


# --- several networks ------------------------------------------------------------------------------------------------


def averaged_networks(config: Config, folder: Path, counts: Sequence[int]) -> dict[str, dict]:
    """By k of `counts`: test error of the mean softmax output of k networks, which differ in their seeds.

    It is itself a mean over disjoint groups of k of the max(counts) networks, in the order of their seeds.
    """
    shares, seconds = [], []
    for network in range(1, max(counts) + 1):
        one, place = replace(config, seed=config.seed + 100 * network), folder / f"network-{network}"  # no fold's seed
        result = train(one, place, quiet=True)
        if result["status"] == "diverged":
            raise cluster.Failed(f"{place}: its cost became infinite or NaN")
        logits, labels = outputs(one, trained_model(one, dataset_of(one), place / "last.pt"), "test")
        shares.append(logits.softmax(dim=1))
        seconds.append(result["seconds"])
    found = {}
    for k in counts:
        groups = [torch.stack(shares[start : start + k]).mean(0) for start in range(0, len(shares) - k + 1, k)]
        errors = [(group.argmax(dim=1) != labels).double().mean().item() for group in groups]
        found[str(k)] = {"error/test": float(np.mean(errors)), "seconds": k * float(np.mean(seconds))}
    return found
