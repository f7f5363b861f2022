"""The same run as train.py, on Lightning: which hook each line of the plain loop becomes.

    python train_lightning.py --dropout 0.2 --l2 1e-4

Nothing numerical is defined here. "Instead of" says which lines of train.py a hook stands for.
"""

import contextlib
import logging
import math
import shlex
import sys
import time
import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

import data
import observe
import train
from model import store_grad
from support import run
from support.shell import between, checked, errors_in_one_line, parse
from train import Config, Diverged


@checked
class LightningOptions(train.TrainOptions):
    """Train a small MLP on 5 % of MNIST with Lightning: the settings of train.py, and of the Trainer."""

    devices: Annotated[int, between(1, 1024)] = 1  # each with a process of its own, on its share of every batch


class MNISTData(LightningDataModule):
    """The splits of `config`, and the random streams that training draws from."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    def prepare_data(self):
        """Fetches what is not there yet; Lightning calls it in one process only."""
        data.load(self.config.data, self.config.data_dir)

    def setup(self, stage):
        """Cuts the splits, in every process. Instead of `tensors = ...` to `batches = ...`."""
        config, device = self.config, self.trainer.strategy.root_device
        dataset = data.load(config.data, config.data_dir)
        self.tensors = {s: data.split_tensors(dataset, s, config.fold, device, config.fraction) for s in data.SPLITS}
        self.sizes = {split: len(labels) for split, (_, labels) in self.tensors.items()}
        run.check_batches(config, self.sizes["train"])
        _, order, augmentation = train.random_streams(config.seed, device)
        self.streams = {"order": order, "augmentation": augmentation}
        share = self.trainer.global_rank, self.trainer.world_size  # of several processes
        self.batches = data.Batches(*self.tensors["train"], config.batch_size, order, *share)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        """Each split as one batch, which `evaluate` cuts into smaller ones."""
        return [data.Batches(*self.tensors[split], self.sizes[split]) for split in data.SPLITS]

    def test_dataloader(self):
        return data.Batches(*self.tensors["test"], self.sizes["test"])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Instead of `augmented(images, ...)`: what is trained on, and nothing else."""
        if not self.trainer.training:
            return batch
        images, labels = batch
        return train.augmented(images, self.streams["augmentation"], self.config), labels

    def state_dict(self):
        """Kept in every checkpoint. Instead of `streams` in `opened.save(...)`."""
        return run.random_state(self.streams)

    def load_state_dict(self, state_dict):
        """Instead of `streams` in `opened.go_on(...)`."""
        run.set_random_state(self.streams, state_dict)


class LitMLP(LightningModule):
    """The plain MLP; Lightning calls its methods where train.py has a loop."""

    def __init__(self, config: Config, dataset: data.Dataset):
        super().__init__()
        self.config, self.dataset = config, dataset
        self.model = train.build_model(config, dataset)
        self.identity = run.identity_of(config, dataset, self.model)
        self.rows, self.scores = [], {}  # measurements; of the last evaluation, by split
        self.since = time.perf_counter()  # when the run began

    @property
    def trained(self) -> int:
        """Epochs so far. Instead of `epoch`; Lightning's `current_epoch` is one behind while it validates."""
        return self.global_step // len(self.trainer.datamodule.batches)

    def configure_optimizers(self):
        """The optimiser, and its schedule, which steps after each of epochs * batches updates.

        Returns {"optimizer": ..., "lr_scheduler": {"scheduler": ..., "interval": "step"}}.
        Instead of `optimizer, scheduler = build_optimizer(...)` and `scheduler.step()`.
        """
        steps = self.config.epochs * len(self.trainer.datamodule.batches)
        optimizer, scheduler = train.build_optimizer(self.model, self.config, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch, batch_idx):
        """The objective, a scalar, of a batch: images (N, H, W) and labels (N,).

        Instead of `loss = objective(...)`; Lightning does `backward`, `step` and `zero_grad`, and sets the modes.
        """
        images, labels = batch
        return train.objective(self.model, images, labels, self.config)

    def validation_step(self, batch, batch_idx, dataloader_idx):
        """Instead of `scores = ...`."""
        self.scores[data.SPLITS[dataloader_idx]] = train.evaluate(self.model, *batch)

    def on_validation_epoch_end(self):
        """Instead of `row = ...` to `rows = ...`; `log_dict` writes to TensorBoard and feeds the callbacks.

        A training cost that became infinite shows here, not at its update.
        """
        row = {"epoch": self.trained, "step": self.global_step, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        untrained = self.rows[0] if self.rows else None
        row |= train.measurement(self.model, self.scores, self.config, self.dataset.classes, untrained)
        row |= {"seconds": time.perf_counter() - self.since}
        if not math.isfinite(row["loss/train"] + row["loss/val"]):
            raise Diverged(self.global_step)
        self.rows.append(row)
        scalars = {tag: value for tag, value in row.items() if tag not in ("epoch", "seconds")}
        self.log_dict(scalars | {"step": torch.tensor(self.global_step).double()})  # Lightning's own step is one behind

    def test_step(self, batch, batch_idx):
        """Shows cost and error of best.pt on the test images."""
        scores = train.evaluate(self.model, *batch)
        self.log_dict({"test_loss": scores.loss, "test_error": scores.error})

    def on_save_checkpoint(self, checkpoint):
        """Beside what Lightning keeps, what train.py keeps."""
        self.logger.experiment.flush()  # what is saved must have been shown
        progress = run.Progress(self.trained, self.rows, time.perf_counter() - self.since)
        checkpoint |= {"identity": self.identity, "model": self.model.state_dict()}
        checkpoint |= {"epoch": self.trained, "progress": asdict(progress)}

    def on_load_checkpoint(self, checkpoint):
        """Instead of `progress = opened.go_on(...)`."""
        if not self.rows:  # else `test` loads best.pt
            _, self.rows, seconds = checkpoint["progress"].values()
            self.since -= seconds


class Observation(Callback):
    """When to look, and what is kept of it beside scalars and best.pt. Instead of `moments` and `recorder`."""

    def __init__(self, config: Config, folder: run.RunFolder, recorder: observe.Recorder, quiet: bool):
        self.folder, self.recorder, self.quiet = folder, recorder, quiet
        self.moments = observe.evaluation_epochs(config.epochs, config.evaluations)
        self.with_histograms = observe.histogram_epochs(self.moments, config.histograms)
        self.looking = contextlib.ExitStack()

    def on_train_start(self, trainer, module):
        """Looks at the untrained model, or again at that of last.pt: Lightning validates after an epoch only."""
        if trainer.is_global_zero and not module.rows:
            images, draw = trainer.datamodule.tensors["train"][0], partial(train.augmented, config=module.config)
            self.recorder.introduce(asdict(module.config), images, draw, train.AUGMENTATIONS)
        if trainer.is_global_zero and not self.quiet:
            run.announce(module.config, module.dataset, module.model, trainer.datamodule.sizes)
        validation, trainer.validating = trainer.fit_loop.epoch_loop.val_loop, True
        validation.run()
        validation.reset()  # else Lightning believes that the epoch of last.pt is not over
        trainer.training = True

    def on_train_epoch_start(self, trainer, module):
        """Names the next evaluation: they are denser early, which no fixed `check_val_every_n_epoch` is."""
        trainer.check_val_every_n_epoch = next(epoch for epoch in self.moments if epoch > module.trained)
        looked_at = module.trained in self.moments, module.trained in self.with_histograms
        gradients = self.recorder.input_gradients(module.model, store_grad, module.global_step, *looked_at)
        self.looking.enter_context(gradients)

    def on_after_backward(self, trainer, module):
        """Ends `with recorder.input_gradients(...)`."""
        self.looking.close()

    def on_validation_start(self, trainer, module):
        """Instead of `opened.save(...)`: to go on is to look again."""
        if module.trained:
            trainer.save_checkpoint(self.folder.path / "last.pt")

    def on_validation_end(self, trainer, module):
        """Instead of `record(...)`."""
        if trainer.is_global_zero:
            self.folder.write_rows(module.rows)
        if module.trained in self.with_histograms:
            entropies = {split: one.entropy for split, one in module.scores.items()}
            self.recorder.histograms(module.global_step, module.model, entropies)


class Best(ModelCheckpoint):
    """Writes best.pt, that of the untrained model as well, and finds it again if the folder was moved."""

    FILE_EXTENSION = ".pt"

    def on_train_start(self, trainer, module):
        self._last_global_step_saved = -1  # which is 0 in Lightning, as if the untrained model were saved
        if module.rows:
            self.best_model_path = self.kth_best_model_path = self.format_checkpoint_name({})
            self.best_k_models = {self.best_model_path: torch.tensor(train.best(module.rows)["loss/val"])}


class WholeFiles(TorchCheckpointIO):
    """Lightning's own moves its files from the temporary folder: no rename where that is another file system."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        run.write_checkpoint(Path(path), checkpoint)


def train_lightning(config: Config, folder: str | Path, quiet: bool = False, devices: int = 1) -> dict:
    """The run with the settings `config` in `folder`: begins it, goes on with it or, once it is over, only reads it.

    Takes, returns and raises what `train.train` does. Of the processes of several `devices` the first alone writes.
    """
    warnings.filterwarnings("ignore", module=r"lightning\.")  # it speaks of devices and of folders that exist
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config, dataset = train.resolved(config)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "use_distributed_sampler"), False)
    off |= {"num_sanity_val_steps": 0, "enable_progress_bar": not quiet and sys.stdout.isatty()}
    where = {"accelerator": config.device, "devices": devices}
    trainer = Trainer(**where, max_epochs=config.epochs, plugins=WholeFiles(), **off)
    device, first = trainer.strategy.root_device, trainer.is_global_zero
    torch.manual_seed(train.random_streams(config.seed, device)[0])
    module, datamodule = LitMLP(config, dataset), MNISTData(config)
    place = Path(folder), module.identity
    whole = run.opened_run(*place) if first else contextlib.nullcontext(run.RunFolder(*place))
    with run.machine(config), whole as opened:
        if opened.result:
            return opened.result
        last = opened.path / "last.pt"
        saved = run.read_checkpoint(last, module.identity) if last.exists() else {"global_step": 0}
        if "global_step" not in saved:
            raise run.RunError(f"{last}: of a run that train.py began; go on with that, or take another --name")
        trainer.logger = TensorBoardLogger(opened.path, name="", version="", purge_step=saved["global_step"])
        trainer.logger.save = lambda: None  # a second file of settings
        recorder = observe.Recorder(opened.path, saved["global_step"], trainer.logger)
        when = {"save_on_train_epoch_end": False, "enable_version_counter": False}  # after the validation
        trainer.callbacks += [Best(opened.path, "best", "loss/val", save_weights_only=True, **when)]
        if config.patience:
            trainer.callbacks += [EarlyStopping("loss/val", patience=config.patience, check_on_train_epoch_end=False)]
        trainer.callbacks += [Observation(config, opened, recorder, quiet)]
        try:
            trainer.fit(module, datamodule, ckpt_path=last if last.exists() else None, weights_only=True)
            trainer.logger = None  # TensorBoard has these values already
            trainer.test(module, datamodule, ckpt_path="best", weights_only=True, verbose=not quiet)
            end = {"status": "finished", "step": module.global_step}
        except Diverged as diverged:
            end = {"status": "diverged", "step": diverged.args[0]}
        except SystemExit:  # what Lightning makes of Ctrl-C; last.pt is of the latest evaluation
            words = f"go on with: python train_lightning.py --resume {shlex.quote(str(folder))}"
            raise KeyboardInterrupt(words) from None
        if not first:
            sys.exit()
        end |= {"best": train.best(module.rows), "last": module.rows[-1], "seconds": time.perf_counter() - module.since}
        return opened.finish(dataset, datamodule.sizes, device, **end)


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, run.RunError):
        options = parse(LightningOptions, argv)
        if options.devices > 1 and not options.resume:  # all processes are to find the same folder
            options = replace(options, name=options.name or run.run_name(options.config))
        train.launch(options, partial(train_lightning, devices=options.devices), "train_lightning.py")


if __name__ == "__main__":
    main()
