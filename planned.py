"""Planned runs, which compare.py and sentences.py share: each is done once, by whatever worker, and what is kept of it.

    found = run_all([plan(config) for config in configs], options)  # a workers.Run each, whose result is run's

All are kept in the study `compare` of --studies-dir, or in a database that machines share.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data
import observe
from model import Dropout, entropy
from regularizers import penalized_weights
from support import report, workers
from support.run import RunError, differences, machine, read_rows, write_json
from support.shell import as_text
from support.verdicts import SMALL
from train import (
    Config,
    build_model,
    predict,
    random_streams,
    train,
    trained_model,
)

# --- plans -----------------------------------------------------------------------------------------------------------

BASE = Config(evaluations=12, histograms=0)  # what holds for all
ONE_LOOK = {"evaluations": 1, "histograms": 0}  # of a run whose end alone counts
MACHINE = ("data", "data_dir", "device", "threads")  # where and on which data, not which experiment


def dataset_of(config: Config) -> data.Dataset:
    return data.load(config.data, config.data_dir)


def experiment(config: Config) -> dict:
    """Its settings other than the defaults, on whatever machine."""
    return {name: value for name, value in differences(config).items() if name not in MACHINE}


def plan(config: Config, splits: Sequence[str] = data.SPLITS, **more) -> dict:
    """What tells a run from all others: its settings and its data. `more` is its kind, see `run`."""
    return {"settings": experiment(config), "splits": list(splits), "data_sha256": dataset_of(config).sha256} | more


def run_all(payloads: Sequence[dict], options) -> list[workers.Run]:
    """What `run` returned for each of `payloads`, made by `plan`; only what is missing is run.

    Of the `options` of a script, config says on which machine and data, and workers, storage and studies_dir count.
    """
    function = partial(run, where={name: getattr(options.config, name) for name in MACHINE})
    place = workers.Place(study_folder(options), "compare", options.storage)
    runs = workers.run_planned(place, function, payloads, workers=options.workers, label=label, preload=["planned"])
    if reasons := [one.reason for one in runs if one.reason]:
        raise RunError(reasons[0])
    return runs


def study_folder(options) -> Path:
    return Path(options.studies_dir) / "compare"


def label(payload: dict) -> str:
    """For the name of a run's folder, as TensorBoard shows it."""
    settings = {name: value for name, value in payload["settings"].items() if name not in ONE_LOOK}
    return "_".join(f"{name}={as_text(value)}" for name, value in settings.items())[:150]


def other_settings(config: Config) -> list[str]:
    """What of the settings and the data is not what holds by default, as words."""
    settings = {name: value for name, value in asdict(config).items() if value != getattr(BASE, name)}
    words = [f"{name}={as_text(value)}" for name, value in settings.items() if name not in MACHINE]
    if config.data_dir:
        return [*words, f"data={Path(config.data_dir).name}-{dataset_of(config).sha256[:8]}"]
    return words if config.data == "mnist" else [*words, f"data={config.data}"]


def folder_of_choice(place: Path, words: Sequence[str]) -> Path:
    """The folder in `place` that is called after `words`; "all" without any."""
    name = re.sub(r"[^\w.,=+-]+", "-", "_".join(words)) or "all"
    if len(name) > 150:
        name = f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    folder = place / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- runs ------------------------------------------------------------------------------------------------------------


def run(payload: dict, folder: Path, where: dict) -> dict:
    """One planned run, in a worker, on the data and the device `where`: all that tables and figures need of it.

    That is kept in `folder` as well, should the worker die before it is heard.
    """
    kept = folder / "kept.json"
    if not kept.exists():
        config = Config(**where, **payload["settings"])
        if dataset_of(config).sha256 != payload["data_sha256"]:
            raise RunError("the data are others than those that this run was planned with")
        folder.mkdir(parents=True, exist_ok=True)
        if "networks" in payload:
            found = averaged_networks(config, folder, payload["networks"])
        elif "masks" in payload:
            found = averaged_masks(config, folder, payload["masks"])
        elif "sklearn" in payload:
            found = sklearn_network(config)
        else:
            found = one_network(config, folder, payload["splits"])
        write_json(kept, found)
        for path in folder.rglob("last.pt"):  # nobody goes on with it
            path.unlink()
    return json.loads(kept.read_text())


def one_network(config: Config, folder: Path, splits: Sequence[str] = data.SPLITS) -> dict:
    """Trains a network; returns its result and, if it may see the test images, its curves, answers and weights.

    Answers: which test images it missed, packed, and how many of each digit (row) it took for which (column). Weights:
    root mean square, and share of those below SMALL. On the first fold that compares also histograms of its weights,
    and of the entropy of its outputs before and after training.
    """
    result = train(config, folder, splits, quiet=True)
    found = {"result": result}
    if "test" not in splits:
        return found
    rows = read_rows(folder)
    found["curves"] = {column: [row[column] for row in rows] for column in ("epoch", "loss/train", "loss/val")}
    if result["status"] == "diverged":  # the last weights are not those of the last measurement
        return found
    dataset = dataset_of(config)
    model = trained_model(config, dataset, folder / "last.pt")
    logits, labels = outputs(config, model)
    answers = logits.argmax(dim=1)
    found["missed"] = report.packed((answers != labels).numpy())
    counts = torch.bincount(dataset.classes * labels + answers, minlength=dataset.classes**2)
    found["confusions"] = counts.reshape(dataset.classes, dataset.classes).tolist()
    weights = torch.cat([weight.detach().flatten() for weight in penalized_weights(model)])
    found["weights"] = {"rms": observe.rms(weights), "small": (weights.abs() < SMALL).double().mean().item()}
    if config.fold == data.COMPARISON_FOLDS[0]:
        torch.manual_seed(random_streams(config.seed, torch.device("cpu"))[0])
        untrained, _ = outputs(config, build_model(config, dataset))
        seen = {f"weights/{name}": layer.weight.detach().cpu() for name, layer in observe.layers(model).items()}
        seen |= {"entropy/test": entropy(logits), "entropy/untrained": entropy(untrained)}
        found["histograms"] = {tag: report.buckets(values.numpy(), observe.BINS) for tag, values in seen.items()}
    return found


def outputs(config: Config, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) of the test images, computed as in the run itself, so that no answer differs; and labels."""
    device = torch.device(config.device)
    images, labels = data.split_tensors(dataset_of(config), "test", config.fold, device)
    with machine(config):
        return predict(model.to(device), images).cpu(), labels.cpu()


def averaged_networks(config: Config, folder: Path, counts: Sequence[int]) -> dict[str, dict]:
    """By k of `counts`: test error of the mean softmax output of k networks, which differ in their seeds.

    It is itself a mean over the n groups of k that max(counts) networks make, with their `deviation`.
    """
    shares, seconds = [], []
    for network in range(1, max(counts) + 1):
        config_of_one = replace(config, seed=config.seed + 100 * network)  # other seeds than those of the folds
        share, _, took, labels = trained_outputs(config_of_one, folder / f"network-{network}")
        shares.append(share)
        seconds.append(took)
    found = {}
    for k in counts:
        groups = [shares[start : start + k] for start in range(0, len(shares) - k + 1, k)]
        errors = [wrong(torch.stack(group).mean(0), labels) for group in groups]
        found[str(k)] = {"error/test": float(np.mean(errors)), "seconds": k * float(np.mean(seconds))}
        found[str(k)] |= {"deviation": float(np.std(errors, ddof=1)) if len(errors) > 1 else None, "n": len(errors)}
    return found


def averaged_masks(config: Config, folder: Path, counts: Sequence[int]) -> dict[str, dict]:
    """By count: test error of the mean softmax output over so many masks of dropout; 0 is the network as usual."""
    usual, model, seconds, labels = trained_outputs(config, folder)
    images, _ = data.split_tensors(dataset_of(config), "test", config.fold, torch.device(config.device))
    for module in model.modules():
        module.training = isinstance(module, Dropout)
    torch.manual_seed(config.seed)
    with torch.no_grad(), machine(config):
        drawn = [model(images).softmax(dim=1).cpu() for _ in range(max(counts))]
    shares = {count: torch.stack(drawn[:count]).mean(0) if count else usual for count in counts}
    more = {"seconds": seconds, "deviation": None, "n": 1}
    return {str(count): {"error/test": wrong(share, labels)} | more for count, share in shares.items()}


def trained_outputs(config: Config, folder: Path):
    """Trains a network; softmax outputs (N, classes) for the test images, the network, seconds, and labels (N,)."""
    result = train(config, folder, quiet=True)
    if result["status"] == "diverged":
        raise workers.Failed(f"{folder}: its cost became infinite or NaN")
    model = trained_model(config, dataset_of(config), folder / "last.pt")
    logits, labels = outputs(config, model)
    return logits.softmax(dim=1), model, result["seconds"], labels


def wrong(shares: torch.Tensor, labels: torch.Tensor) -> float:
    return (shares.argmax(dim=1) != labels).double().mean().item()


def sklearn_network(config: Config) -> dict:
    """scikit-learn's own multi-layer perceptron on the same images: an independent implementation.

    Its penalty is alpha / 2 * sum w**2 / batch, so alpha = 2 * batch * l2; its initialisation is Glorot's.
    """
    from sklearn.neural_network import MLPClassifier

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = data.split_tensors(dataset_of(config), name, config.fold, torch.device("cpu"), config.fraction)
        return images.flatten(1).numpy(), labels.numpy()

    images, labels = split("train")
    network = MLPClassifier(
        config.hidden, solver=config.optimizer, momentum=config.momentum, nesterovs_momentum=False, tol=0.0,
        batch_size=min(config.batch_size, len(images)), learning_rate_init=config.lr, max_iter=config.epochs,
        n_iter_no_change=config.epochs, alpha=2 * config.batch_size * config.l2, random_state=config.seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        network.fit(images, labels)
    images, labels = split("test")
    return {"error/test": float(np.mean(network.predict(images) != labels))}
