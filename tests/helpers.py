"""What several test files share: runs read back, compared, cut off, and commands that are refused."""

import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.run import read_rows

ROOT = Path(__file__).parent.parent
EVERYTHING = {  # every method at once, and every setting that makes another model
    "fraction": 0.1, "hidden": (40, 30), "init": "he", "batch_size": 50, "lr": 3e-3, "schedule": "one-cycle",
    "dropout": 0.2, "norm": "batch", "l1": 1e-5, "l2": 1e-4, "weight_decay": 0.1,
    "noise": 0.1, "rotate": 10.0, "zoom": 0.1, "shift": 1.0, "shear": 0.1, "elastic": 8.0,
}  # fmt: skip


class Cut(Exception):
    """Ends a run where a test wants it to end."""


def cut_at(epoch):
    """For `on_evaluation`: the run falls over at the evaluation of this epoch."""

    def fall_over(row, best):
        if row["epoch"] == epoch:
            raise Cut

    return fall_over


def cut_off(train, config, folder, epoch):
    """`folder`, after the run that `train(config, folder, on_evaluation=...)` begins fell over at this evaluation."""
    with pytest.raises(Cut):
        train(config, folder, on_evaluation=cut_at(epoch))
    return folder


def weights(folder, file="last.pt"):
    return torch.load(Path(folder) / file, weights_only=True)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def events(folder):
    """What TensorBoard's own reader finds in the folder of a run, nothing left out."""
    unlimited = dict.fromkeys(("scalars", "histograms", "images", "tensors", "compressedHistograms"), 0)
    reader = EventAccumulator(str(folder), unlimited)
    reader.Reload()
    return reader


def points(folder):
    """The steps at which each tag was written, in order."""
    reader = events(folder)
    tags = reader.Tags()
    kinds = {"scalars": reader.Scalars, "histograms": reader.Histograms, "images": reader.Images}
    return {tag: [event.step for event in read(tag)] for kind, read in kinds.items() for tag in tags[kind]}


def contents(folder):
    """Every file below `folder` but the lock, with its bytes."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"}


def assert_equal_runs(a, b):
    """Two runs have the same weights, measurements and result, and the same points in TensorBoard, each once."""
    for file in ("best.pt", "last.pt"):
        assert same(weights(a, file), weights(b, file))
    timeless = [[row | {"seconds": 0} for row in read_rows(Path(folder))] for folder in (a, b)]
    assert timeless[0] == timeless[1]
    assert points(a) == points(b)
    for steps in points(a).values():
        assert steps == sorted(steps) and set(Counter(steps).values()) == {1}
    results = [json.loads((Path(folder) / "result.json").read_text()) for folder in (a, b)]
    for moment in ("best", "last"):
        assert results[0][moment] | {"seconds": 0} == results[1][moment] | {"seconds": 0}
    assert results[0]["status"] == results[1]["status"] and results[0]["step"] == results[1]["step"]


def refused(capfd, main, *arguments):
    """Exit code and what is on the screen, as one line, when `main` ends with an error: "error: ...", or tyro's box."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")  # a box that is too narrow cuts words
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    code = stop.value.code
    if isinstance(code, str):  # the interpreter prints it and exits with 1
        code, err = 1, err + code + "\n"
    if code == 2 and err.startswith("╭"):
        return code, " ".join(re.sub("[─│╭╮╰╯]", " ", out + err).split())
    assert out == "" and err.count("\n") == 1 and err.startswith("error: "), f"{out}{err}"
    return code, err


def forked(function, *arguments):
    """`function` at work in a process of its own, which need not import PyTorch again."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork a process")
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process
