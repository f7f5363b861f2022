"""The same run as train.py, on Lightning: which hook each line of the plain loop becomes.

    python train_lightning.py --dropout 0.2 --l2 1e-4

Nothing numerical is defined here. "Instead of" says which lines of train.py a hook stands for.
"""

import contextlib
import logging
import math
import os
import shlex
import sys
import time
import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

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
from support.shell import between, checked, errors_in_one_line, interrupts, parse, wrong_arguments
from train import Config, Diverged


@checked
class LightningOptions(train.TrainOptions):
    """Train a small MLP on 5 % of MNIST with Lightning: the settings of train.py, and those of the Trainer."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"  # auto: that of --device
    devices: Annotated[int, between(1, 1024)] = 1  # of a machine, each with a process of its own
    num_nodes: Annotated[int, between(1, 1024)] = 1  # machines, on each of which this command is given
    strategy: Literal["auto", "ddp"] = "auto"  # how processes work together


class MNISTData(LightningDataModule):
    """The splits of `config`, and the random streams that training draws from."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.tensors = config, {}

    def prepare_data(self):
        """Fetches what is not there yet; Lightning calls it in one process only."""
        data.load(self.config.data, self.config.data_dir)

    def setup(self, stage):
        """Cuts the splits, in every process. Instead of `tensors = ...` to `batches = ...`."""
        if self.tensors:  # `validate`, `fit` and `test` each call it
            return
        config, device = self.config, self.trainer.strategy.root_device
        dataset = data.load(config.data, config.data_dir)
        self.tensors = {s: data.split_tensors(dataset, s, config.fold, device, config.fraction) for s in data.SPLITS}
        self.sizes = {split: len(labels) for split, (_, labels) in self.tensors.items()}
        run.check_batches(config, self.sizes["train"])
        _, order, augmentation = train.random_streams(config.seed, device)
        self.streams = {"order": order, "augmentation": augmentation}
        share = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        self.batches = data.Batches(*self.tensors["train"], config.batch_size, order, **share)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        """Each split as one batch, which `evaluate` cuts into smaller ones."""
        return [data.Batches(*self.tensors[split], self.sizes[split]) for split in data.SPLITS]

    def test_dataloader(self):
        return data.Batches(*self.tensors["test"], self.sizes["test"])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Instead of `augmented(images, ...)`: what is trained on, and nothing else."""
        images, labels = batch
        if self.trainer.training:
            images = train.augmented(images, self.config, self.streams["augmentation"])
        return images, labels

    def state_dict(self):
        """Kept in every checkpoint. Instead of `streams` in `opened.save(...)`."""
        return run.random_state(self.streams)

    def load_state_dict(self, state_dict):
        run.set_random_state(self.streams, state_dict)


class LitMLP(LightningModule):
    """The plain MLP; Lightning calls its methods where train.py has a loop."""

    def __init__(self, config: Config, dataset: data.Dataset):
        super().__init__()
        self.config, self.classes = config, dataset.classes
        self.model = train.build_model(config, dataset)
        self.identity = run.identity_of(config, dataset, self.model)
        self.trained, self.rows, self.since = 0, [], time.perf_counter()  # epochs, measurements, when it began
        self.losses, self.scores = [], {}  # of this epoch's updates; of the last evaluation, by split

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

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Instead of `losses.append(...)` and `check_finite(...)`."""
        self.losses.append(outputs["loss"])
        if self.trainer.is_last_batch:  # `on_train_epoch_end` comes after the validation
            losses, self.losses = self.trainer.strategy.reduce(torch.stack(self.losses)), []  # all ranks stop together
            train.check_finite(losses, self.trained * len(losses))
            self.trained += 1

    def validation_step(self, batch, batch_idx, dataloader_idx):
        """Instead of `scores = ...`."""
        self.scores[data.SPLITS[dataloader_idx]] = train.evaluate(self.model, *batch)

    def on_validation_epoch_end(self):
        """Instead of `row = ...` to `record(...)`; `log_dict` writes to TensorBoard and feeds the callbacks."""
        if self.trainer.optimizers or not self.trained:  # `validate` has none; after a checkpoint the rate is known
            optimizer, *_ = self.trainer.optimizers or self.configure_optimizers().values()
            self.lr = optimizer.param_groups[0]["lr"]
        step = self.trained * len(self.trainer.datamodule.batches)
        row = {"epoch": self.trained, "step": step, "lr": self.lr}
        row |= train.measurement(self.model, self.scores, self.config, self.classes, next(iter(self.rows), None))
        row |= {"seconds": time.perf_counter() - self.since}
        row = self.trainer.strategy.broadcast(row)  # with batch norm every rank has another, and all are to agree
        if not math.isfinite(row["loss/train"] + row["loss/val"]):
            raise Diverged(step)
        self.rows = [*self.rows, row]
        scalars = {tag: value for tag, value in row.items() if tag not in ("epoch", "seconds")}
        self.log_dict(scalars | {"step": torch.tensor(step).double()})  # Lightning's own counter is one behind

    def test_step(self, batch, batch_idx):
        """Shows cost and error of best.pt on the test images."""
        scores = train.evaluate(self.model, *batch)
        self.log_dict({"test_loss": scores.loss, "test_error": scores.error})

    def on_save_checkpoint(self, checkpoint):
        """Beside what Lightning keeps, what train.py keeps."""
        rows = [row for row in self.rows if row["epoch"] < self.trained]  # to go on is to look again
        progress = asdict(run.Progress(self.trained, rows, time.perf_counter() - self.since))
        checkpoint |= {"identity": self.identity, "model": self.model.state_dict()}
        checkpoint |= {"epoch": self.trained, "progress": progress}

    def on_load_checkpoint(self, checkpoint):
        if not self.rows:  # else `validate` has been here before `fit`
            self.trained, self.rows, seconds = checkpoint["progress"].values()
            self.since, self.lr = self.since - seconds, checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]


class Observation(Callback):
    """When to look, and the histograms. Instead of `moments` and `recorder`."""

    def __init__(self, config: Config, folder: run.RunFolder, recorder: observe.Recorder, interrupted):
        self.folder, self.recorder, self.interrupted = folder, recorder, interrupted
        self.moments = observe.evaluation_epochs(config.epochs, config.evaluations)
        self.with_histograms = observe.histogram_epochs(self.moments, config.histograms)
        self.looking = contextlib.ExitStack()

    def on_train_start(self, trainer, module):
        """Tells Lightning's own callbacks of the measurements so far; they miss those of `validate`."""
        lowest, saver = train.best(module.rows), trainer.checkpoint_callback
        loss = torch.tensor(lowest["loss/val"])
        saver.kth_best_model_path = saver.best_model_path = saver.format_checkpoint_name({})
        saver.best_k_models = {saver.best_model_path: loss}
        for stopper in trainer.early_stopping_callbacks:
            stopper.best_score, stopper.wait_count = loss, len(module.rows) - 1 - module.rows.index(lowest)
            trainer.should_stop = stopper.wait_count >= stopper.patience

    def on_train_epoch_start(self, trainer, module):
        """Names the next evaluation: they are denser early, which no fixed `check_val_every_n_epoch` is."""
        trainer.check_val_every_n_epoch = next(epoch for epoch in self.moments if epoch > module.trained)
        if module.trained in self.moments:
            looked_at = module.global_step, True, module.trained in self.with_histograms
            self.looking.enter_context(self.recorder.input_gradients(module.model, store_grad, *looked_at))

    def on_after_backward(self, trainer, module):
        self.looking.close()

    def on_validation_end(self, trainer, module):
        """Instead of `record(...)`; ModelCheckpoint writes best.pt, but nothing outside of `fit`."""
        if not module.trained:
            trainer.save_checkpoint(self.folder.path / "best.pt", weights_only=True)
        if trainer.is_global_zero:
            self.folder.write_rows(module.rows)
        if module.trained in self.with_histograms:
            entropies = {split: one.entropy for split, one in module.scores.items()}
            self.recorder.histograms(module.rows[-1]["step"], module.model, entropies)
        self.recorder.flush()

    def on_train_epoch_end(self, trainer, module):
        """Instead of `if interrupted.is_set()`."""
        if trainer.strategy.reduce_boolean_decision(self.interrupted.is_set(), all=False):  # Ctrl-C is for all ranks
            self.interrupted.set()
            trainer.save_checkpoint(self.folder.path / "last.pt")
            trainer.should_stop = True


class Checkpoint(ModelCheckpoint):
    FILE_EXTENSION = ".pt"


class WholeFiles(TorchCheckpointIO):
    """Lightning's own moves its files from the temporary folder: no rename where that is another file system."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        run.write_checkpoint(Path(path), checkpoint)


class Logger(TensorBoardLogger):
    """One event file for `validate` and `fit`, and no second file of settings."""

    def save(self): ...

    def finalize(self, status): ...


def train_lightning(config: Config, folder: str | Path, quiet: bool = False, **machines) -> dict:
    """The run with the settings `config` in `folder`: begins it, goes on with it or, once it is over, only reads it.

    Takes, returns and raises what `train.train` does; `machines` are the Trainer's accelerator, devices, num_nodes and
    strategy. Of several processes the first alone writes and returns.
    """
    warnings.filterwarnings("ignore", module=r"lightning\.")  # it speaks of devices and of folders that exist
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config, dataset = run.resolved(config)
    if machines.get("accelerator", "auto") == "auto":
        machines["accelerator"] = config.device
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "use_distributed_sampler"), False)
    off |= {"num_sanity_val_steps": 0, "enable_progress_bar": not quiet and sys.stdout.isatty()}
    trainer = Trainer(max_epochs=config.epochs, plugins=[WholeFiles()], **machines, **off)
    first, device = trainer.is_global_zero, trainer.strategy.root_device
    torch.manual_seed(train.random_streams(config.seed, device)[0])
    module, datamodule = LitMLP(config, dataset), MNISTData(config)
    opened = run.RunFolder(Path(folder), module.identity)
    with run.machine(config), opened if first else contextlib.nullcontext(opened.read()):
        if opened.result:
            return opened.result | {"folder": str(folder)}
        last = opened.path / "last.pt" if (opened.path / "last.pt").exists() else None
        saved = run.read_checkpoint(last, module.identity) if last else {"epoch": 0, "global_step": 0}
        if "global_step" not in saved:
            raise run.RunError(f"{last}: of a run that train.py began; go on with that, or take another --name")
        trainer.logger = Logger(opened.path, name="", version="", purge_step=saved["global_step"])
        recorder = observe.Recorder(opened.path, saved["global_step"], trainer.logger)
        datamodule.trainer = trainer
        datamodule.setup("fit")
        if first and not last:
            train.introduce(recorder, config, datamodule.tensors["train"][0])
        if first and not quiet:
            run.announce(config, dataset, module.model, datamodule.sizes)
        at = {"datamodule": datamodule, "weights_only": True}
        when = {"save_on_train_epoch_end": False, "enable_version_counter": False}  # after the validation
        try:
            with interrupts() as interrupted:
                trainer.callbacks += [observation := Observation(config, opened, recorder, interrupted)]
                if config.patience:
                    stopper = EarlyStopping("loss/val", patience=config.patience, check_on_train_epoch_end=False)
                    trainer.callbacks += [stopper]
                trainer.callbacks += [Checkpoint(opened.path, "best", "loss/val", save_weights_only=True, **when)]
                trainer.callbacks += [Checkpoint(opened.path, "last", **when)]
                if saved["epoch"] in observation.moments:  # the untrained model, or that of last.pt: one looks again
                    trainer.validate(module, ckpt_path=last, verbose=False, **at)
                trainer.fit(module, ckpt_path=last, **at)
            if interrupted.is_set():
                raise SystemExit
            trainer.logger = None  # TensorBoard has these values already
            trainer.test(module, ckpt_path="best", verbose=not quiet, **at)
            status, step = "finished", module.rows[-1]["step"]
        except Diverged as diverged:
            status, step = "diverged", diverged.args[0]
        except SystemExit:  # which is also what Lightning makes of a second Ctrl-C
            words = f"go on with: python train_lightning.py --resume {shlex.quote(str(folder))}"
            raise KeyboardInterrupt(words) from None
        finally:
            recorder.close()
        if not first:
            sys.exit()
        end = {"status": status, "step": step, "best": train.best(module.rows), "last": module.rows[-1]}
        end |= {"seconds": time.perf_counter() - module.since}
        result = run.outcome(config, dataset, module.model, datamodule.sizes, device, **end)
        return opened.finish(result) | {"folder": str(folder)}


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, run.RunError):
        options = parse(LightningOptions, argv)
        machines = {name: getattr(options, name) for name in ("accelerator", "devices", "num_nodes", "strategy")}
        ranks, tasks = options.devices * options.num_nodes, os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks not in ("1", str(ranks)):
            wrong_arguments(f"--devices {options.devices}: srun started {tasks} processes; give --devices {tasks}")
        if ranks > 1 and not options.resume:  # all of them are to find the same folder
            options = replace(options, name=options.name or run.run_name(options.config))
        train.launch(options, partial(train_lightning, **machines), "train_lightning.py")


if __name__ == "__main__":
    main()
