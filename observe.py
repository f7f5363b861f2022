"""What goes to TensorBoard, and when.

One run is one folder with one set of tags (README, "What the tags mean"). What is written at step k belongs to the
weights after k updates. Looking draws no random number and changes no weight.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

BINS = 64  # of a histogram; TensorBoard draws 30
EVENT_FILES = "events.out.tfevents.*"
LAYERS = {nn.Linear: "linear", nn.Conv2d: "conv"}  # what is looked at, numbered from the pixels on
CHARTS = ("loss", "error", "mean_entropy", "gradient_rms", "weight_rms")  # in the order in which one reads them


def evaluation_epochs(epochs: int, evaluations: int) -> list[int]:
    """0 and up to `evaluations` more epochs, the last included, in geometric progression: denser early.

    The validation cost falls and turns within the first few dozen of a thousand epochs.
    """
    chosen = [0]
    for left in range(min(evaluations, epochs), 0, -1):
        previous = max(chosen[-1], 1)
        chosen.append(max(chosen[-1] + 1, round(previous * (epochs / previous) ** (1 / left))))
    return chosen


def histogram_epochs(evaluation_epochs: list[int], histograms: int) -> list[int]:
    """At most `histograms` + 1 of the evaluations, the first and the last included, evenly spread; none for 0."""
    last = len(evaluation_epochs) - 1
    count = min(histograms, last)
    return [evaluation_epochs[round(i * last / count)] for i in range(count + 1)] if histograms else []


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with a weight matrix or kernels, as linear1, linear2 ..., conv1 ..., from the pixels on."""
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        if kind := LAYERS.get(type(module)):
            found[f"{kind}{sum(name.startswith(kind) for name in found) + 1}"] = module
    return found


def rms(values: torch.Tensor) -> float:
    """Root of the mean square."""
    return values.square().mean().sqrt().item()


class Recorder:
    """Writes one run's event file in `folder`; what is there from `step` on, a run that was cut off has to do again.

    A `logger` of Lightning's brings a SummaryWriter of its own, made at the same step.
    """

    def __init__(self, folder: Path, step: int = 0, logger=None):
        step_aside(folder)
        self.writer = logger.experiment if logger else SummaryWriter(folder, purge_step=step)

    def settings(self, settings: Mapping) -> None:
        """Once a run: the settings for the hparams tab and as text, and which curves share a chart."""
        plain = {
            name: value if isinstance(value, float | int | str) else str(value) for name, value in settings.items()
        }
        # add_hparams would open a second run below this one, and add_scalars a run a curve
        _, start, _ = hparams(plain, {})
        self.writer.file_writer.add_summary(start)
        table = "\n".join(f"| {name} | {value} |" for name, value in plain.items())
        self.writer.add_text("config", f"| setting | value |\n|---|---|\n{table}", 0)
        self.writer.add_custom_scalars({"together": {tag: ["Multiline", [f"^{tag}/"]] for tag in CHARTS}})

    def scalars(self, row: Mapping[str, float]) -> None:
        """One measurement: the keys are the tags."""
        for tag, value in row.items():
            if tag not in ("epoch", "step", "seconds"):
                self.writer.add_scalar(tag, value, row["step"])

    def histograms(self, step: int, model: nn.Module, entropies: Mapping[str, torch.Tensor]) -> None:
        """The weights of every layer, and the entropy (N,) of every output, by split."""
        for name, layer in layers(model).items():
            self.histogram(f"weights/{name}", layer.weight, step)
        for split, values in entropies.items():
            self.histogram(f"entropy/{split}", values, step)
        if step == 0:  # under a name of its own: the random model that the others are held beside
            self.histogram("entropy/untrained", entropies["val"], step)

    @contextlib.contextmanager
    def input_gradients(
        self, model: nn.Module, store_grad: Callable, step: int, looked_at: bool, histograms: bool
    ) -> Iterator[None]:
        """Around the forward and backward pass that follow step `step`: the gradient at the input of every layer.

        It is what `store_grad`, hooked to every layer from outside, keeps; nothing happens unless `looked_at`.
        """
        inputs: dict[str, torch.Tensor] = {}

        def hook_of(name: str):
            def hook(_, arguments: tuple[torch.Tensor]) -> torch.Tensor:
                inputs[name] = store_grad(arguments[0].view_as(arguments[0]))  # a view: the images stay as they are
                return inputs[name]

            return hook

        watched = layers(model) if looked_at else {}
        hooks = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in watched.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name, layer_input in inputs.items():
            self.writer.add_scalar(f"gradient_rms/{name}", rms(layer_input.grad), step)
            if histograms:
                self.histogram(f"input_gradient/{name}", layer_input.grad, step)

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        self.writer.add_histogram(tag, values.detach().cpu().numpy(), step, bins=BINS)

    def images(self, images: torch.Tensor) -> None:
        """Rows (R, C, H, W) of grey images as one picture."""
        from torchvision.utils import make_grid  # two seconds that only an augmented run has to wait

        rows, columns, height, width = images.shape
        grid = make_grid(images.clamp(0, 1).view(rows * columns, 1, height, width), nrow=columns, pad_value=0.5)
        self.writer.add_image("images/augmented", grid, 0)

    def flush(self) -> None:
        """Returns once all that was written is in the file."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def step_aside(folder: Path) -> None:
    """Dates back event files that are not older than a second, so that the next one comes after them.

    TensorBoard reads the files of a run in the order of their names, which begin with the second.
    """
    now = int(time.time())
    for age, path in enumerate(sorted(folder.glob(EVENT_FILES), reverse=True), start=1):
        if name := re.fullmatch(r"(.*tfevents\.)(\d+)(\..*)", path.name):
            head, stamp, rest = name.groups()
            path.rename(path.with_name(f"{head}{min(int(stamp), now - age):010d}{rest}"))
