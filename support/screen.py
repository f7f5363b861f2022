"""What a run says on the screen when it is over, and when its data are not what was hoped for."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path


def warn_of(warning: str, images: int) -> None:
    """Says, so that nobody can miss it, that these are the digits of scikit-learn, and why; nothing if all is well."""
    if warning:
        rule = "!" * 100
        what = f"WARNING: this is NOT MNIST, but the {images} handwritten digits of scikit-learn, because"
        print(rule, what, warning, rule, sep="\n", file=sys.stderr)


def summarize(result: Mapping, lr: float, next_command: str) -> None:
    """The end of a run: its best and its last measurement, where it is kept, and what to do next."""
    splits = result["sizes"]
    print("\n" + " " * 34 + "".join(f"{split + ' cost':>14}   error" for split in splits))
    for name, row in (("lowest validation cost, epoch", result["best"]), ("last epoch,", result["last"])):
        cells = "".join(f"{row[f'loss/{split}']:14.4f}{row[f'error/{split}']:8.2%}" for split in splits)
        print(f"{name} {row['epoch']}".ljust(34) + cells)
    if result["status"] == "diverged":
        print(f"the cost was infinite or NaN after {result['step']} updates; try a lower --lr than {lr:g}")
    print(f"{result['status']} after {result['seconds']:.0f} s, kept in {result['folder']}")
    print(f"look at it:         tensorboard --logdir {shlex.quote(str(Path(result['folder']).parent))}")
    print(f"on another fold:    {next_command}")
