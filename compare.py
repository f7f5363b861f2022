"""Compare methods under a protocol: the same folds for all, tuned alike on other folds, with intervals and tests.

    python compare.py --tune      tunes every method on the folds 0, 1 and 2
    python compare.py             compares them, as tuned, on the folds 3 to 19
    python compare.py --report    rebuilds the published tables and figures, and trains nothing

The runs of all comparisons are shared by any number of workers and machines, and none is run twice.
"""

import hashlib
import json
import math
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from pydantic.dataclasses import dataclass
from scipy import stats
from torch import nn

import data
import observe
from model import entropy
from support import report, statistics, workers
from support.folder import RunError, read_rows, write_json
from support.shell import as_text, between, errors_in_one_line, flag, parse, wrong_arguments
from train import (
    SETTINGS,
    SPACE,
    Config,
    build_model,
    command,
    differences,
    machine,
    predict,
    random_streams,
    resolve,
    train,
    trained_model,
    warn,
)

# --- the methods -----------------------------------------------------------------------------------------------------

TUNED = None  # stands for a strength that is tuned, like the learning rate and its schedule of every method
GEOMETRY = dict.fromkeys(("rotate", "zoom", "shift", "shear"), TUNED)  # which rise and fall together
RECIPE = "the class's recipe"  # nothing is tuned

# What a method sets; all else is at its default.
METHODS = {
    RECIPE: {},
    "baseline": {},
    "He initialisation": {"init": "he"},
    "L1": {"l1": TUNED},
    "L2": {"l2": TUNED},
    "weight decay": {"weight_decay": TUNED},
    "dropout": {"dropout": TUNED},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": "layer"},
    "noise": {"noise": TUNED},
    "geometric": GEOMETRY,
    "elastic": {"elastic": TUNED},
    "dropout + L2": {"dropout": TUNED, "l2": TUNED},
    "batch norm + L2": {"norm": "batch", "l2": TUNED},
    "layer norm + L2": {"norm": "layer", "l2": TUNED},
    "batch norm + dropout": {"norm": "batch", "dropout": TUNED},
    "He + L2": {"init": "he", "l2": TUNED},
    "batch norm + geometric": {"norm": "batch", **GEOMETRY},
    "everything": {"norm": "batch", "l2": TUNED, "noise": TUNED, **GEOMETRY, "elastic": TUNED},
}
PARTS = {
    "dropout + L2": ("dropout", "L2"),
    "batch norm + L2": ("batch norm", "L2"),
    "layer norm + L2": ("layer norm", "L2"),
    "batch norm + dropout": ("batch norm", "dropout"),
    "He + L2": ("He initialisation", "L2"),
    "batch norm + geometric": ("batch norm", "geometric"),
    "everything": ("batch norm", "L2", "noise", "geometric", "elastic", "batch norm + L2", "batch norm + geometric"),
}
# "Everything" is its parts as tuned, weakened: between which shares of each one's own optimum, and on which scale.
WEAKENED = dict.fromkeys((*GEOMETRY, "elastic"), (0.3, 1.1, False)) | dict.fromkeys(("l2", "noise"), (0.1, 1.0, True))
# Strengths that rise and fall together, on one axis of a method's design.
TOGETHER = dict.fromkeys(GEOMETRY, "geometry")
TOGETHER_IN_EVERYTHING = dict.fromkeys((*GEOMETRY, "elastic"), "geometry") | dict.fromkeys(("l2", "noise"), "l2, noise")

POINTS = 16  # of each method's design; a power of two, for Sobol's balance
MAIN = ("baseline", "L1", "L2", "dropout", "batch norm", "everything")  # whose histograms are drawn
AVERAGED = ("baseline", "dropout", "everything")  # of which the outputs of several networks are averaged
NETWORKS, AVERAGED_FOLDS = 5, range(3, 8)
PUBLISHED = Path(__file__).parent / "figures" / "compare"
TUNED_FILE = PUBLISHED.parent / "tuning" / "tuned.csv"  # what --tune has found so far, and what is compared
TUNING_FOLDS = (0, 1, 2)
FOLDS = range(len(TUNING_FOLDS), data.FOLDS)
BORDER = 0.05  # of a range, on its own scale: an optimum that near to an end is named
NUISANCES = ("lr", "schedule")  # tuned for every method, and part of none

# --- settings --------------------------------------------------------------------------------------------------------

BASE = Config(evaluations=12, histograms=0)  # what holds for all methods


@dataclass(frozen=True, config=SETTINGS)
class CompareOptions:
    """Compare the methods of the table in compare.py. A setting of train.py, given here, holds for all."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=lambda: BASE)
    methods: str = ""  # such as "dropout,L2": only these, and the baseline
    folds: str = "3-19"  # such as 3-7 or 3,5,8
    tune: bool = False  # do not compare, but tune the methods on folds 0, 1 and 2
    report: bool = False  # train nothing: rebuild the published tables and figures from their files
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    storage: str = field(default="", repr=False)  # URL of a database that machines share; by default a journal file
    studies_dir: str = "studies"  # folder of all studies; this one is kept in its folder compare

    def __post_init__(self):
        chosen_methods(self.methods)
        chosen_folds(self.folds)


def chosen_methods(text: str) -> list[str]:
    """Those of --methods, and the baseline that they are compared with, in the order of the table."""
    names = {name.strip() for name in text.split(",")} if text else set(METHODS)
    if unknown := names - set(METHODS):
        raise ValueError(f"--methods {', '.join(sorted(unknown))}: allowed are {', '.join(METHODS)}")
    return [method for method in METHODS if method in names | {statistics.BASELINE}]


def chosen_folds(text: str) -> list[int]:
    low, high = FOLDS[0], FOLDS[-1]
    folds = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not ends or not low <= int(ends[1]) <= int(ends[2] or ends[1]) <= high:
            raise ValueError(f"--folds {text}: allowed are {low} to {high}, such as 3-7 or 3,5,8; the others tune")
        folds |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    if len(folds) < 2:
        raise ValueError(f"--folds {text}: one fold has no interval; give 2 or more")
    return sorted(folds)


def refuse_what_is_ignored(options: CompareOptions, argv: Sequence[str]) -> None:
    """Ends the program if one of the arguments, even with the value of its default, would change nothing."""
    given = [word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    if options.report and len(given) > 1:
        wrong_arguments("--report: rebuilds what is published as it is; drop the other arguments")
    methods = {*NUISANCES, *(name for settings in METHODS.values() for name in settings)}
    refused = {flag(name): "every method sets its own; drop it, or change METHODS in compare.py" for name in methods}
    refused |= dict.fromkeys(("--fold", "--seed"), "the folds are those of --folds, each with its number as seed")
    if options.tune:
        own = f"--tune runs on the folds {TUNING_FOLDS} and looks at the end only; drop one of the two"
        refused |= dict.fromkeys(("--folds", *map(flag, ONE_LOOK)), own)
    for name in given:
        if name in refused:
            wrong_arguments(f"{name}: {refused[name]}")


# --- runs ------------------------------------------------------------------------------------------------------------

MACHINE = ("data", "data_dir", "device", "threads")  # where and on which data, not which experiment
ONE_LOOK = {"evaluations": 1, "histograms": 0}  # of a run whose end alone counts


def dataset_of(config: Config) -> data.Dataset:
    return data.load(config.data, config.data_dir)


def experiment(config: Config) -> dict:
    """Its settings other than the defaults, on whatever machine."""
    return {name: value for name, value in differences(config).items() if name not in MACHINE}


def plan(config: Config, splits: Sequence[str] = data.SPLITS, **more) -> dict:
    """What tells a run from all others: its settings and its data. `more` is its kind, see `run`."""
    return {"settings": experiment(config), "splits": list(splits), "data_sha256": dataset_of(config).sha256} | more


def run_all(payloads: Sequence[dict], options, script: str = "compare", function: Callable | None = None) -> list:
    """A `workers.Run` for each of `payloads`: what `run`, or `function` of another script, returned.

    Only what is missing is run. `options` are those of the script.
    """
    place = workers.Place(study_folder(options, script), script, options.storage)
    where = {name: getattr(options.config, name) for name in MACHINE}
    function = partial(function or run, where=where)
    runs = workers.run_planned(place, function, payloads, workers=options.workers, label=label, preload=[script])
    if reasons := [one.reason for one in runs if one.reason]:
        raise RunError(reasons[0])
    return runs


def label(payload: dict) -> str:
    """For the name of a run's folder, as TensorBoard shows it."""
    settings = {name: value for name, value in payload["settings"].items() if name not in ONE_LOOK}
    return "_".join(f"{name}={as_text(value)}" for name, value in settings.items())[:150]


def run(payload: dict, folder: Path, where: dict) -> dict:
    """One planned run, in a worker, on the data and the device `where`: all that the report needs of it."""

    def measured(config: Config) -> dict:
        if "networks" in payload:
            return averaged_networks(config, folder, payload["networks"])
        if "sklearn" in payload:
            return sklearn_network(config)
        return one_network(config, folder, payload["splits"])

    return once(payload, folder, where, measured)


def once(payload: dict, folder: Path, where: dict, measured: Callable[[Config], dict]) -> dict:
    """What `measured` returns for the settings of `payload`, on the data and the device `where`.

    That is kept in `folder` as well, should the worker die before it is heard.
    """
    kept = folder / "kept.json"
    if not kept.exists():
        config = Config(**where, **payload["settings"])
        if dataset_of(config).sha256 != payload["data_sha256"]:
            raise RunError("the data are others than those that this run was planned with")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(kept, measured(config))
        for path in folder.rglob("last.pt"):  # nobody goes on with it
            path.unlink()
    return json.loads(kept.read_text())


def one_network(config: Config, folder: Path, splits: Sequence[str]) -> dict:
    """Trains a network; returns its result and, if it may see the test images, its curves and what it misses.

    On the first fold also histograms of its weights, and of the entropy of its outputs before and after training.
    """
    result = train(config, folder, splits, quiet=True)
    found = {"result": result}
    if "test" not in splits:
        return found
    rows = read_rows(folder)
    found["curves"] = {column: [row[column] for row in rows] for column in ("epoch", "loss/train", "loss/val")}
    if result["status"] == "diverged":  # the last weights are not those of the last measurement
        return found
    model = trained_model(config, dataset_of(config), folder / "last.pt")
    logits, labels = outputs(config, model)
    found["missed"] = report.packed((logits.argmax(dim=1) != labels).numpy())
    if config.fold == FOLDS[0]:
        torch.manual_seed(random_streams(config.seed, torch.device("cpu"))[0])
        untrained, _ = outputs(config, build_model(config, dataset_of(config)))
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

    It is itself a mean over as many groups of k as max(counts) networks make; `one` are the errors of each network.
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


# --- tuning ----------------------------------------------------------------------------------------------------------


def tuned_names(method: str) -> list[str]:
    """The settings of `method` that are tuned."""
    strengths = [name for name, value in METHODS[method].items() if value is TUNED]
    return [] if method == RECIPE else [*NUISANCES, *strengths]


def ranges(method: str, optima: dict[str, dict]) -> dict[str, tuple[float, float, bool]]:
    """From where to where the learning rate and the strengths of `method` are tuned, and whether logarithmically.

    `optima` are the tuned settings of the methods before it: "everything" is made of weakened parts.
    """
    found = {name: SPACE[name] for name in tuned_names(method) if name in SPACE}
    if method == "everything":
        for name, (low, high, log) in WEAKENED.items():
            strength = next(optima[part][name] for part in PARTS[method] if name in optima[part])
            found[name] = (low * strength, high * strength, log)
    return found


def design(method: str, optima: dict[str, dict]) -> list[dict]:
    """The points of `method`: a scrambled Sobol' design of its own, over its ranges and both schedules."""
    together = TOGETHER_IN_EVERYTHING if method == "everything" else TOGETHER
    space = ranges(method, optima)
    axes = list(dict.fromkeys([*NUISANCES, *(together.get(name, name) for name in space)]))
    sobol = stats.qmc.Sobol(len(axes), scramble=True, rng=zlib.crc32(method.encode()))
    points = []
    for shares in sobol.random(POINTS):
        share = dict(zip(axes, shares, strict=True))
        found = {name: at(limits, share[together.get(name, name)]) for name, limits in space.items()}
        points.append(METHODS[method] | found | {"schedule": "constant" if share["schedule"] < 0.5 else "one-cycle"})
    return points


def at(limits: tuple[float, float, bool], share: float) -> float:
    """The value at `share` of a range, with three digits."""
    low, high, log = limits
    return float(f"{low * (high / low) ** share if log else low + (high - low) * share:.3g}")


def within(method: str) -> Sequence[str]:
    """The methods that `method` adds to: its parts, or of one that is no combination the baseline."""
    return PARTS.get(method, () if method in (RECIPE, statistics.BASELINE) else (statistics.BASELINE,))


def nested(method: str, optima: dict[str, dict]) -> dict[str, dict]:
    """By method within it, the optimum of that one with what `method` adds at its weakest.

    So no method may lose to what it adds to because the two met at other learning rates.
    """
    weakest = {name: at(limits, 0.0) for name, limits in ranges(method, optima).items()}
    return {part: METHODS[method] | weakest | optima[part] for part in within(method)}


def tune(options: CompareOptions) -> list[dict]:
    """The rows of tuned.csv: the validation errors of every point, and the one with the lowest mean is `chosen`.

    Methods come after those within them. The test set is not even read.
    """
    needed = {method for method in chosen_methods(options.methods) if method != RECIPE}
    needed |= {part for method in needed for part in within(method)}
    rows: list[dict] = []
    for stage in range(1 + max(map(depth, needed))):
        optima = {row["method"]: row["settings"] for row in rows if row["chosen"]}
        tried = []
        for method in [method for method in METHODS if method in needed and depth(method) == stage]:
            points = [("design", settings) for settings in design(method, optima)]
            for trial, (origin, settings) in enumerate([*points, *nested(method, optima).items()]):
                tried.append({"method": method, "trial": trial, "origin": origin, "settings": settings})
        halve(tried, options)
        for row in tried:
            row["border"] = borders(row["settings"], ranges(row["method"], optima)) if row["chosen"] else ""
        rows += tried
        report.write_tuned(results_folder(options) / "tuned.csv", rows, [*NUISANCES, *SPACE], TUNING_FOLDS)
    return rows


def depth(method: str) -> int:
    """0 for the baseline; more for a method than for any within it."""
    return max((1 + depth(part) for part in within(method)), default=0)


def halve(rows: list[dict], options: CompareOptions) -> None:
    """Adds the `errors` of `rows` on the tuning folds, as far as they come, and which one of each method is `chosen`.

    All run on the first fold, the better half of each method's on the second one, the better half of these on the
    third. An error that the published tuned.csv holds already is not measured again.
    """
    known = published_errors(options)
    for row in rows:
        row |= {"errors": [], "chosen": False}
    left = rows
    for fold in TUNING_FOLDS:
        base = replace(options.config, **ONE_LOOK, fold=fold, seed=fold)
        new = [row for row in left if (point(row["method"], row["settings"]), fold) not in known]
        payloads = [plan(replace(base, **row["settings"]), ("train", "val")) for row in new]
        for row, found in zip(new, run_all(payloads, options), strict=True):
            known[point(row["method"], row["settings"]), fold] = found.result["result"]["last"]["error/val"]
        for row in left:
            row["errors"].append(known[point(row["method"], row["settings"]), fold])
        groups = [
            sorted(group, key=lambda row: np.mean(row["errors"])) for group in statistics.by_method(left).values()
        ]
        left = [row for group in groups for row in group[: math.ceil(len(group) / 2)]]
    for group in groups:
        group[0]["chosen"] = True


def point(method: str, settings: dict) -> tuple:
    """What is tuned in `settings`, comparable."""
    return method, *(settings.get(name) for name in tuned_names(method))


def published_errors(options: CompareOptions) -> dict[tuple, float]:
    """The errors in the published tuned.csv by point and fold, if these are its settings and data."""
    mine, published = (experiment(replace(config, **ONE_LOOK)) for config in (options.config, BASE))
    if options.config.data != "mnist" or mine != published or not TUNED_FILE.exists():
        return {}
    return {
        (point(row["method"], row), fold): row[f"val_error_fold_{fold}"]
        for row in report.read_csv(TUNED_FILE)
        for fold in TUNING_FOLDS
        if row["method"] in METHODS and row[f"val_error_fold_{fold}"] != ""
    }


def borders(settings: dict, space: dict[str, tuple[float, float, bool]]) -> str:
    """The names of the `settings` that lie within BORDER of an end of their range, on the range's own scale."""
    found = []
    for name, (low, high, log) in space.items():
        low, value, high = (np.log(x) if log else x for x in (low, settings[name], high))
        if not BORDER <= (value - low) / (high - low) <= 1 - BORDER:
            found.append(name)
    return " ".join(found)


def tuned_settings(methods: Sequence[str]) -> dict[str, dict]:
    """What each of `methods` sets, as tuned in the published tuned.csv."""
    rows = report.read_csv(TUNED_FILE) if TUNED_FILE.exists() else []
    chosen = {row["method"]: row for row in rows if row["chosen"]}
    found = {}
    for method in methods:
        tuned = {name: chosen.get(method, {}).get(name, "") for name in tuned_names(method)}
        if "" in tuned.values():
            raise RunError(
                f"{TUNED_FILE}: {method} is not tuned; run python compare.py --tune, copy its tuned.csv there"
            )
        found[method] = METHODS[method] | tuned
    return found


# --- results ---------------------------------------------------------------------------------------------------------


def without(settings: dict, part: str) -> dict:
    """The `settings` of "everything" with one part switched off."""
    return settings | {name: getattr(BASE, name) for name in METHODS[part]}


def compare(options: CompareOptions) -> Path:
    """Runs what is missing and writes the files of the report; returns their folder."""
    methods, folds = chosen_methods(options.methods), chosen_folds(options.folds)
    settings = tuned_settings(methods)
    if "everything" in methods:
        parts = [part for part in PARTS["everything"] if part not in PARTS]
        settings |= {f"everything{statistics.WITHOUT}{part}": without(settings["everything"], part) for part in parts}
    configs = {
        (method, fold): replace(options.config, fold=fold, seed=fold, **found)
        for method, found in settings.items()
        for fold in folds
    }
    order = sorted(configs, key=lambda pair: pair[1])  # fold after fold: a look in the middle compares all methods
    found = dict(zip(order, run_all([plan(configs[pair]) for pair in order], options), strict=True))
    folder = results_folder(options)
    runs = [
        {"method": method, "fold": fold, "settings": settings_text(config)}
        | found[method, fold].result
        | {"begun": found[method, fold].begun, "ended": found[method, fold].ended}
        for (method, fold), config in configs.items()
    ]
    report.write_runs(folder, runs, MAIN)
    if len(methods) == len(METHODS):  # else it is a quick look
        for name, rows in (("ensembles", ensembles(configs, options)), ("sklearn", check(folds, options))):
            if rows:
                report.write_csv(folder / f"{name}.csv", rows)
    report.write_text(folder / "tuned.csv", TUNED_FILE.read_text(encoding="utf-8"))
    return folder


def ensembles(configs: dict[tuple[str, int], Config], options: CompareOptions) -> list[dict]:
    """The rows of ensembles.csv: the error of one network, and of the mean output of several, by method and fold."""
    pairs = [(method, fold) for method, fold in configs if method in AVERAGED and fold in AVERAGED_FOLDS]
    found = run_all([plan(configs[pair], networks=[1, NETWORKS]) for pair in pairs], options)
    return [
        {"method": method, "fold": fold, "networks": NETWORKS}
        | {f"error/{name}": over.result[str(k)]["error/test"] for name, k in (("one", 1), ("mean", NETWORKS))}
        for (method, fold), over in zip(pairs, found, strict=True)
    ]


def check(folds: Sequence[int], options: CompareOptions) -> list[dict]:
    """The rows of sklearn.csv: errors here and of scikit-learn's network, without and with an L2 penalty, by fold."""
    configs = [
        replace(options.config, init="glorot", l2=penalty, fold=fold, seed=fold)
        for penalty in (0.0, 1e-4)
        for fold in folds
    ]
    ours = run_all([plan(config) for config in configs], options)
    theirs = run_all([plan(config, sklearn=True) for config in configs], options)
    return [
        {"l2": config.l2, "fold": config.fold}
        | {"error/ours": one.result["result"]["last"]["error/test"], "error/sklearn": other.result["error/test"]}
        for config, one, other in zip(configs, ours, theirs, strict=True)
    ]


def settings_text(config: Config) -> str:
    """What a method sets, as arguments of train.py."""
    ordinary = {name: getattr(Config(), name) for name in ("fold", "seed", *ONE_LOOK)}
    return command(replace(config, device="auto", **ordinary)).removeprefix("python train.py").strip()


def study_folder(options, script: str = "compare") -> Path:
    return Path(options.studies_dir) / script


def results_folder(options: CompareOptions) -> Path:
    """One for each choice of settings, data, methods and folds, so that no quick look touches another's files."""
    chosen = [f"methods={options.methods}"] if options.methods else []
    chosen += [f"folds={options.folds}"] if chosen_folds(options.folds) != list(FOLDS) else []
    words = ["tuning"] * options.tune + other_settings(options.config) + chosen
    return folder_of_choice(study_folder(options), words)


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


# --- the command line ------------------------------------------------------------------------------------------------


def tuned_table(rows: Sequence[dict], options: CompareOptions) -> list[str]:
    """Lines for the screen: what was chosen for every method, and what of it lies at a border."""
    cells = []
    for row in rows:
        if row["chosen"]:
            settings = settings_text(replace(options.config, **row["settings"]))
            cells.append([row["method"], f"{100 * np.mean(row['errors']):.2f}", row["border"], settings])
    lines = report.text_table(["method", "val %", "at a border", "settings of train.py"], cells)
    warning = "WARNING: a setting was chosen at a border of its range; widen SPACE or WEAKENED, and tune again"
    return [*lines, *([warning] if any(row["border"] for row in rows) else [])]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with errors_in_one_line(data.DataError, RunError, workers.StudyError, statistics.ReportError):
        options = parse(CompareOptions, argv)
        refuse_what_is_ignored(options, argv)
        if options.report:
            print("\n".join(report.write_report(PUBLISHED, list(METHODS), PARTS)))
            return
        dataset = dataset_of(options.config)
        warn(dataset)
        options = replace(options, config=resolve(options.config, dataset))
        if options.tune:
            print("\n".join(tuned_table(tune(options), options)))
            print(f"\nevery point: {results_folder(options) / 'tuned.csv'}")
            return
        folder = compare(options)
        print("\n".join(report.write_report(folder, list(METHODS), PARTS)))
        print(f"\ntables and figures: {folder}")
        print(f"the runs:           tensorboard --logdir {study_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
