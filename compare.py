"""Compare methods under a protocol: the same folds for all, tuned alike on other folds, with intervals and tests.

    python compare.py --tune      tunes every method on the folds 0, 1 and 2
    python compare.py             compares them, as tuned, on the folds 3 to 19
    python compare.py --report    rebuilds the published tables and figures, and trains nothing

The runs of all comparisons are shared by any number of workers and machines, and none is run twice.
"""

import base64
import json
import math
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from pydantic.dataclasses import dataclass
from scipy import stats

import data
import observe
from model import entropy
from support import report, workers
from support.folder import RunError, read_rows, write_json
from support.screen import warn_of
from support.shell import between, errors_in_one_line, flag, parse
from train import (
    SETTINGS,
    SPACE,
    Config,
    build_model,
    command,
    differences,
    predict,
    random_streams,
    resolve,
    train,
    trained_model,
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
WEAKENED = {name: (0.3, 1.1, False) for name in (*GEOMETRY, "elastic")} | {
    name: (0.1, 1.0, True) for name in ("l2", "noise")
}
# Strengths that rise and fall together, on one axis of a method's design.
TOGETHER = dict.fromkeys(GEOMETRY, "geometry")
TOGETHER_IN_EVERYTHING = dict.fromkeys((*GEOMETRY, "elastic"), "geometry") | dict.fromkeys(("l2", "noise"), "l2, noise")

POINTS = 16  # of each method's design; a power of two, for Sobol's balance
MAIN = ("baseline", "L1", "L2", "dropout", "batch norm", "everything")  # whose histograms are drawn
AVERAGED = ("baseline", "dropout", "everything")  # of which the outputs of several networks are averaged
NETWORKS, AVERAGED_FOLDS = 5, range(3, 8)
PUBLISHED = Path(__file__).parent / "figures" / "compare"
TUNING_FOLDS = (0, 1, 2)
FOLDS = range(len(TUNING_FOLDS), data.FOLDS)
BORDER = 0.05  # of a range, on its own scale: an optimum that near to an end is named
NUISANCES = ("lr", "schedule")  # tuned for every method, and part of none

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, config=SETTINGS)
class CompareOptions:
    """Compare the methods of the table in compare.py. A setting of train.py, given here, holds for all."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=lambda: Config(evaluations=12, histograms=0))
    methods: str = ""  # such as "dropout,L2": only these, and the baseline
    folds: str = "3-19"  # such as 3-7 or 3,5,8
    tune: bool = False  # do not compare, but tune the methods on folds 0, 1 and 2
    report: bool = False  # train nothing: rebuild the published tables and figures from their files
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    storage: str = field(default="", repr=False)  # URL of a database that machines share; by default a journal file
    studies_dir: str = "studies"  # folder of all studies; this one is kept in its folder compare

    def __post_init__(self):
        set_by_methods = {*NUISANCES, *(name for settings in METHODS.values() for name in settings), "fold", "seed"}
        given = set_by_methods & set(differences(self.config))
        if given:
            name = min(given)
            raise ValueError(f"{flag(name)}: every method sets its own; drop it, or change METHODS in compare.py")
        folds, methods = chosen_folds(self.folds), chosen_methods(self.methods)
        if self.tune and len(folds) < len(FOLDS):
            raise ValueError(f"--folds {self.folds}: --tune runs on the folds {TUNING_FOLDS}; drop one of the two")
        if self.report and (self.tune or self != replace(self, methods="", folds="3-19", config=BASE)):
            raise ValueError("--report: rebuilds what is published as it is; drop the other arguments")
        if len(methods) < 1:
            raise ValueError(f"--methods {self.methods}: allowed are {', '.join(METHODS)}")


BASE = Config(evaluations=12, histograms=0)


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


def chosen_methods(text: str) -> list[str]:
    """Those of --methods, and the baseline that they are compared with, in the order of the table."""
    names = {name.strip() for name in text.split(",")} if text else set(METHODS)
    if names - set(METHODS):
        raise ValueError(f"--methods {', '.join(sorted(names - set(METHODS)))}: allowed are {', '.join(METHODS)}")
    return [method for method in METHODS if method in names | {report.BASELINE}]


# --- runs ------------------------------------------------------------------------------------------------------------

MACHINE = ("data", "data_dir", "device", "threads")  # where and on which data, not which experiment


def plan(config: Config, splits: Sequence[str] = data.SPLITS, **more) -> dict:
    """What tells a run from all others: its settings and its data, on whatever machine."""
    settings = {name: value for name, value in differences(config).items() if name not in MACHINE}
    digest = data.load(config.data, config.data_dir).sha256
    return {"settings": settings, "splits": list(splits), "data_sha256": digest} | more


def config_of(payload: dict, base: Config) -> Config:
    config = replace(base, **payload["settings"])
    if data.load(config.data, config.data_dir).sha256 != payload["data_sha256"]:
        raise RunError("the data are others than those that this run was planned with")
    return config


def run_one(payload: dict, folder: Path, base: Config) -> dict:
    """Trains one planned run; returns all that the report needs of it."""
    config = config_of(payload, base)
    kept = folder / "kept.json"
    if kept.exists():  # over, but nobody heard of it
        return json.loads(kept.read_text())
    result = train(config, folder, splits=payload["splits"], quiet=True)
    found = {"result": result}
    if "test" in payload["splits"]:
        rows = read_rows(folder)
        found["curves"] = {column: [row[column] for row in rows] for column in ("epoch", "loss/train", "loss/val")}
        found |= look_at_test(config, folder)
    write_json(kept, found)
    (folder / "last.pt").unlink(missing_ok=True)  # nobody goes on with it
    return found


def look_at_test(config: Config, folder: Path) -> dict:
    """Which test images the last weights miss, as bits, and, on the first fold, histograms of weights and entropy."""
    dataset = data.load(config.data, config.data_dir)
    images, labels = data.split_tensors(dataset, "test", config.fold, torch.device("cpu"))
    torch.manual_seed(random_streams(config.seed, torch.device("cpu"))[0])
    untrained = entropy(predict(build_model(config, dataset), images))
    model = trained_model(config, dataset, folder / "last.pt")
    logits = predict(model, images)
    bits = np.packbits((logits.argmax(dim=1) != labels).numpy())
    found = {"missed": base64.b64encode(zlib.compress(bits.tobytes())).decode()}
    if config.fold == FOLDS[0]:
        seen = {f"weights/{name}": layer.weight for name, layer in observe.layers(model).items()}
        seen |= {"entropy/test": entropy(logits), "entropy/untrained": untrained}
        found["histograms"] = {tag: buckets(values) for tag, values in seen.items()}
    return found


def buckets(values: torch.Tensor) -> list[tuple[float, float, int]]:
    """A histogram: left and right end of each bucket, and how many values are in it."""
    counts, edges = np.histogram(values.detach().numpy(), bins=observe.BINS)
    rounded = [float(f"{edge:.6g}") for edge in edges]
    return [(left, right, int(n)) for left, right, n in zip(rounded, rounded[1:], counts, strict=False)]


def run_ensemble(payload: dict, folder: Path, base: Config) -> dict:
    """Trains several networks that differ in their seeds; the test error of one, in the mean, and of their mean output.

    The mean is that of the softmax outputs.
    """
    config = config_of(payload, base)
    dataset = data.load(config.data, config.data_dir)
    images, labels = data.split_tensors(dataset, "test", config.fold, torch.device("cpu"))
    outputs, seconds = [], 0.0
    for network in range(1, payload["networks"] + 1):
        one = replace(config, seed=config.seed + 100 * network)  # other seeds than those of the comparison
        place = folder / f"network-{network}"
        seconds += train(one, place, quiet=True)["seconds"]
        outputs.append(predict(trained_model(one, dataset, place / "last.pt"), images).softmax(dim=1))
    wrong = [
        (output.argmax(dim=1) != labels).double().mean().item() for output in (*outputs, torch.stack(outputs).mean(0))
    ]
    return {"one": float(np.mean(wrong[:-1])), "mean": wrong[-1], "seconds": seconds}


def run_sklearn(payload: dict, folder: Path, base: Config) -> dict:
    """scikit-learn's own multi-layer perceptron on the same images: an independent implementation.

    Its penalty is alpha / 2 * sum w**2 / batch, so alpha = 2 * batch * l2; its initialisation is Glorot's.
    """
    from sklearn.neural_network import MLPClassifier

    config = config_of(payload, base)
    dataset = data.load(config.data, config.data_dir)
    (images, labels), (test_images, test_labels) = (
        tuple(tensor.numpy() for tensor in data.split_tensors(dataset, split, config.fold, torch.device("cpu")))
        for split in ("train", "test")
    )
    network = MLPClassifier(
        config.hidden, solver="adam", batch_size=config.batch_size, learning_rate_init=config.lr, tol=0.0,
        alpha=2 * config.batch_size * config.l2, max_iter=config.epochs, n_iter_no_change=config.epochs,
        random_state=config.seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        network.fit(images.reshape(len(images), -1), labels)
    return {"error/test": float(np.mean(network.predict(test_images.reshape(len(test_images), -1)) != test_labels))}


def run_all(payloads: Sequence[dict], options: "CompareOptions", function: Callable = run_one) -> list[dict]:
    """What `function` returns for each of `payloads`, with begun and ended; only what is not there yet is run."""
    place = workers.Place(compare_folder(options), "compare", options.storage)
    found = workers.run_planned(
        place, partial(function, base=options.config), payloads, workers=options.workers, preload=["compare"]
    )
    runs = [found[workers.digest(payload)] for payload in payloads]
    return [run.result | {"begun": minute(run.begun), "ended": minute(run.ended)} for run in runs]


def minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def compare_folder(options: "CompareOptions") -> Path:
    return Path(options.studies_dir) / "compare"


# --- tuning ----------------------------------------------------------------------------------------------------------


def ranges(method: str, optima: dict[str, dict]) -> dict[str, tuple[float, float, bool]]:
    """From where to where the learning rate and the strengths of `method` are tuned, and whether logarithmically.

    `optima` are the tuned settings of the methods before it: "everything" is made of weakened parts.
    """
    names = ["lr", *(name for name, value in METHODS[method].items() if value is TUNED)]
    found = {name: SPACE[name] for name in names}
    if method == "everything":
        for name, (low, high, log) in WEAKENED.items():
            strength = next(optima[part][name] for part in PARTS[method] if name in optima[part])
            found[name] = (low * strength, high * strength, log)
    return found


def design(method: str, optima: dict[str, dict]) -> list[dict]:
    """The points of `method`: a scrambled Sobol' design of its own, over its ranges and both schedules."""
    together = TOGETHER_IN_EVERYTHING if method == "everything" else TOGETHER
    space = ranges(method, optima)
    axes = list(dict.fromkeys(["lr", "schedule", *(together.get(name, name) for name in space)]))
    sobol = stats.qmc.Sobol(len(axes), scramble=True, rng=zlib.crc32(method.encode()))
    points = []
    for point in sobol.random(POINTS):
        share = dict(zip(axes, point, strict=True))
        found = {"lr": 0.0, "schedule": "constant" if share["schedule"] < 0.5 else "one-cycle"} | METHODS[method]
        points.append(found | {name: at(space[name], share[together.get(name, name)]) for name in space})
    return points


def at(limits: tuple[float, float, bool], share: float) -> float:
    """The value at `share` of a range, with three digits."""
    low, high, log = limits
    return float(f"{low * (high / low) ** share if log else low + (high - low) * share:.3g}")


def nested(method: str, optima: dict[str, dict]) -> dict[str, dict]:
    """By part, its optimum with what `method` adds at its weakest: no combination may lose to a part."""
    space = ranges(method, optima)
    weakest = {name: at(limits, 0.0) for name, limits in space.items() if name != "lr"}
    return {part: METHODS[method] | weakest | optima[part] for part in PARTS.get(method, ())}


def tune(options: CompareOptions) -> list[dict]:
    """The rows of tuned.csv: the validation errors of every point, and the one with the lowest mean is `chosen`.

    All points run on the first fold, the better half of each method's on the second one, the better half of these on
    the third; the test set is not even read. Methods come before the combinations that they are parts of.
    """
    methods = [method for method in METHODS if method != RECIPE]
    wanted = chosen_methods(options.methods)
    needed = {part for method in wanted for part in PARTS.get(method, ())} | set(wanted)
    rows: list[dict] = []
    for stage in (
        [method for method in methods if method not in PARTS],
        [method for method in methods if method in PARTS and method != "everything"],
        ["everything"],
    ):
        optima = {row["method"]: row["settings"] for row in rows if row["chosen"]}
        begun = []
        for method in [method for method in stage if method in needed]:
            points = [("design", settings) for settings in design(method, optima)]
            points += nested(method, optima).items()
            begun += [
                {"method": method, "trial": number, "origin": origin, "settings": settings, "errors": []}
                for number, (origin, settings) in enumerate(points)
            ]
        rows += halved(begun, options)
        write_tuned(rows, options)
    return rows


def halved(rows: list[dict], options: CompareOptions) -> list[dict]:
    """`rows` with their errors on the tuning folds, as far as they came, and the best one of each method chosen.

    An error that the published tuned.csv holds already is not measured again.
    """
    known = published_errors(options)
    left = rows
    for fold in TUNING_FOLDS:
        base = replace(options.config, evaluations=1, histograms=0, fold=fold, seed=fold)
        new = [row for row in left if (point(row["method"], row["settings"]), fold) not in known]
        payloads = [plan(replace(base, **row["settings"]), ("train", "val")) for row in new]
        for row, found in zip(new, run_all(payloads, options), strict=True):
            known[point(row["method"], row["settings"]), fold] = found["result"]["last"]["error/val"]
        for row in left:
            row["errors"].append(known[point(row["method"], row["settings"]), fold])
        tried, left = left, [row for group in report.by_method(left).values() for row in better_half(group)]
    chosen = {method: best_first(group)[0] for method, group in report.by_method(tried).items()}
    return [row | {"chosen": chosen[row["method"]] is row} for row in rows]


def point(method: str, settings: dict) -> tuple:
    """What is tuned in `settings`, comparable."""
    return method, *(
        settings.get(name) for name in (*NUISANCES, *(n for n in SPACE if METHODS[method].get(n, 0) is TUNED))
    )


def published_errors(options: CompareOptions) -> dict[tuple, float]:
    """The errors in the published tuned.csv by point and fold, if these are its settings and data."""
    path = PUBLISHED / "tuned.csv"
    if not path.exists() or options.config.data != "mnist" or set(differences(options.config)) > set(differences(BASE)):
        return {}
    return {
        (point(row["method"], row), fold): row[f"val_error_fold_{fold}"]
        for row in report.read_csv(path)
        for fold in TUNING_FOLDS
        if row[f"val_error_fold_{fold}"] != ""
    }


def best_first(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: np.mean(row["errors"]))


def better_half(rows: list[dict]) -> list[dict]:
    return best_first(rows)[: math.ceil(len(rows) / 2)]


def borders(row: dict, space: dict[str, tuple[float, float, bool]]) -> str:
    """The settings of `row` that lie within BORDER of an end of their range, on the range's own scale."""
    found = []
    for name, (low, high, log) in space.items():
        low, value, high = (np.log(x) if log else x for x in (low, row["settings"][name], high))
        if not BORDER <= (value - low) / (high - low) <= 1 - BORDER:
            found.append(name)
    return " ".join(found)


def write_tuned(rows: list[dict], options: CompareOptions) -> None:
    """tuned.csv: every point, its settings, its errors, and whether it was chosen, at which borders."""
    names = [*NUISANCES, *(name for name in SPACE if name != "lr")]
    optima = {row["method"]: row["settings"] for row in rows if row["chosen"]}
    lines = []
    for row in rows:
        errors = dict(zip((f"val_error_fold_{fold}" for fold in TUNING_FOLDS), row["errors"], strict=False))
        found = {"method": row["method"], "trial": row["trial"], "origin": row["origin"]}
        found |= {name: row["settings"].get(name, "") for name in names}
        found |= {f"val_error_fold_{fold}": errors.get(f"val_error_fold_{fold}", "") for fold in TUNING_FOLDS}
        row["border"] = borders(row, ranges(row["method"], optima)) if row["chosen"] else ""
        lines.append(found | {"chosen": int(row["chosen"]), "border": row["border"]})
    folder = results_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_csv(folder / "tuned.csv", lines)


def tuned_settings(folder: Path, methods: Sequence[str]) -> dict[str, dict]:
    """What each of `methods` sets, as tuned.csv in `folder` has it."""
    path = folder / "tuned.csv"
    rows = report.read_csv(path) if path.exists() else []
    chosen = {row["method"]: row for row in rows if row["chosen"]}
    lacking = [method for method in methods if method not in chosen and method != RECIPE]
    if lacking:
        raise RunError(f"{path}: {', '.join(lacking)} not tuned; run python compare.py --tune and copy its tuned.csv")
    tuned = {name: float for name in SPACE}
    found = {}
    for method in methods:
        names = [] if method == RECIPE else [*NUISANCES, *(n for n, v in METHODS[method].items() if v is TUNED)]
        found[method] = METHODS[method] | {name: tuned.get(name, str)(chosen[method][name]) for name in names}
    return found


# --- results ---------------------------------------------------------------------------------------------------------


def without(settings: dict, part: str) -> dict:
    """The settings of "everything" with one part switched off."""
    off = Config()
    return settings | {name: getattr(off, name) for name in METHODS[part]}


def compare(options: CompareOptions) -> Path:
    """Runs what is missing and writes the files of the report; returns their folder."""
    methods, folds = chosen_methods(options.methods), chosen_folds(options.folds)
    settings = tuned_settings(PUBLISHED, methods)
    if "everything" in methods:
        parts = [part for part in PARTS["everything"] if part not in PARTS]
        settings |= {f"everything{report.WITHOUT}{part}": without(settings["everything"], part) for part in parts}
    configs = {
        (method, fold): replace(options.config, fold=fold, seed=fold, **found)
        for method, found in settings.items()
        for fold in folds
    }
    order = sorted(configs, key=lambda pair: pair[1])  # fold after fold: a look in the middle compares all methods
    runs = dict(zip(order, run_all([plan(configs[pair]) for pair in order], options), strict=True))
    folder = results_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, configs, runs)
    averaged = [(method, fold) for method in AVERAGED if method in methods for fold in AVERAGED_FOLDS if fold in folds]
    if averaged:
        payloads = [plan(configs[pair], networks=NETWORKS) for pair in averaged]
        rows = [
            {
                "method": method,
                "fold": fold,
                "networks": NETWORKS,
                "error/one": found["one"],
                "error/mean": found["mean"],
            }
            for (method, fold), found in zip(averaged, run_all(payloads, options, run_ensemble), strict=True)
        ]
        report.write_csv(folder / "ensembles.csv", rows)
    if len(methods) == len(METHODS):
        write_check(folder, folds, options)
    (folder / "tuned.csv").write_bytes((PUBLISHED / "tuned.csv").read_bytes())
    return folder


def write_results(folder: Path, configs: dict, runs: dict) -> None:
    """results.csv (a row a run), missed.npz, curves.csv (over the folds) and histograms.csv (of the first fold)."""
    rows, bins, curves, missed = [], [], [], {}
    for (method, fold), config in configs.items():
        found = runs[method, fold]
        result = found["result"]
        kept = ("epoch", *(name for name in result["last"] if name.startswith(("loss/", "error/"))))
        rows.append(
            {"method": method, "settings": settings_text(config), "fold": fold}
            | {key: result[key] for key in ("seed", "data", "status")}
            | {name: result["last"][name] for name in kept}
            | {f"best/{name}": result["best"][name] for name in kept}
            | {"seconds": round(result["seconds"], 1), "begun": found["begun"], "ended": found["ended"]}
        )
        bits = np.frombuffer(zlib.decompress(base64.b64decode(found["missed"])), np.uint8)
        missed.setdefault(method, []).append(np.unpackbits(bits)[: result["sizes"]["test"]].astype(bool))
        if method in MAIN:
            for tag, histogram in found.get("histograms", {}).items():
                columns = ("method", "tag", "left", "right", "count")
                bins += [dict(zip(columns, (method, tag, *bucket), strict=True)) for bucket in histogram]
    for method in dict.fromkeys(method for method, _ in configs):
        of_folds = [runs[pair]["curves"] for pair in configs if pair[0] == method]
        for split in ("train", "val"):
            for epoch, *costs in zip(of_folds[0]["epoch"], *(one[f"loss/{split}"] for one in of_folds), strict=False):
                spread = {"mean": np.mean(costs), "low": min(costs), "high": max(costs)}
                spread = {key: float(f"{value:.4g}") for key, value in spread.items()}
                curves.append({"method": method, "split": split, "epoch": int(epoch)} | spread)
    for name, lines in (("results", rows), ("curves", curves), ("histograms", bins)):
        if lines:
            report.write_csv(folder / f"{name}.csv", lines)
    report.write_missed(folder / "missed.npz", {method: np.array(of_folds) for method, of_folds in missed.items()})


def write_check(folder: Path, folds: Sequence[int], options: CompareOptions) -> None:
    """sklearn.csv: this repository's errors beside those of scikit-learn's network, without and with an L2 penalty."""
    rows = []
    for penalty in (0.0, 1e-4):
        configs = [replace(options.config, init="glorot", l2=penalty, fold=fold, seed=fold) for fold in folds]
        ours = run_all([plan(config) for config in configs], options)
        theirs = run_all([plan(config, sklearn=True) for config in configs], options, run_sklearn)
        rows += [
            {
                "l2": penalty,
                "fold": fold,
                "error/ours": one["result"]["last"]["error/test"],
                "error/sklearn": other["error/test"],
            }
            for fold, one, other in zip(folds, ours, theirs, strict=True)
        ]
    report.write_csv(folder / "sklearn.csv", rows)


def settings_text(config: Config) -> str:
    """What a method sets, as arguments of train.py."""
    ordinary = {name: getattr(Config(), name) for name in ("fold", "seed", "evaluations", "histograms")}
    return command(replace(config, device="auto", **ordinary)).removeprefix("python train.py").strip()


def results_folder(options: CompareOptions) -> Path:
    """One folder for each choice of settings, methods and folds, so that a quick look touches no other's files."""
    chosen = differences(
        replace(options.config, device="auto", data_dir="", **{n: getattr(BASE, n) for n in MACHINE[3:]})
    )
    chosen = {name: value for name, value in chosen.items() if getattr(BASE, name) != value}
    chosen |= {"methods": options.methods} if options.methods else {}
    chosen |= {"folds": options.folds} if options.folds != "3-19" else {}
    words = re.sub(r"[^\w.,=+-]+", "-", "_".join(f"{name}={value}" for name, value in chosen.items()))
    return compare_folder(options) / (words[:150] or "all")


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError, workers.StudyError, report.ReportError):
        options = parse(CompareOptions, argv)
        if options.report:
            print("\n".join(report.write_report(PUBLISHED, list(METHODS), PARTS)))
            return
        dataset = data.load(options.config.data, options.config.data_dir)
        warn_of(dataset.warning, len(dataset.train_labels) + len(dataset.test_labels))
        options = replace(options, config=resolve(options.config, dataset))
        if options.tune:
            for row in tune(options):
                if row["chosen"]:
                    print(f"{row['method']:24} {np.mean(row['errors']):.2%}  {row['settings']}")
                    if row["border"]:
                        print(f"{'':24} WARNING: at a border of its range: {row['border']}; widen it and tune again")
            print(f"every point: {results_folder(options) / 'tuned.csv'}")
            return
        folder = compare(options)
        print("\n".join(report.write_report(folder, list(METHODS), PARTS)))
        print(f"\nwritten to {folder}: {', '.join(sorted(path.name for path in folder.glob('*.*')))}")
        print(f"the runs: tensorboard --logdir {compare_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
