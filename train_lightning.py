"""The same run as train.py, on Lightning.

    python train_lightning.py --dropout 0.2 --l2 1e-4

Nothing numerical is defined here: objective, optimiser, splits, batches, augmentation, moments of observation and tags
come from where train.py has them. What is left is which hook each line of the plain loop becomes.
"""

import contextlib
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from pydantic.dataclasses import dataclass

import data
import observe
import train
from model import store_grad
from support.folder import (
    Folder,
    Progress,
    Result,
    RunError,
    foreign,
    form_of,
    random_state,
    read_checkpoint,
    read_progress,
    set_random_state,
    write_checkpoint,
)
from support.shell import between, errors_in_one_line, flag, interrupts, one_line, parse
from train import Config, Diverged, Options

# Importing Lightning sets this, and every step of an optimiser then looks for a driver: 0.14 ms where there is no GPU.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, config=train.SETTINGS)
class LightningOptions(Options):
    """Train a small MLP on 5 % of MNIST with Lightning: the settings of train.py, and those of the Trainer."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"  # auto: that of --device
    devices: Annotated[int, between(1, 1024)] = 1  # of a machine, each with a process of its own
    num_nodes: Annotated[int, between(1, 1024)] = 1  # machines, on each of which this command is given
    strategy: Literal["auto", "ddp"] = "auto"  # how processes work together


# --- the experiment --------------------------------------------------------------------------------------------------


class MNISTData(LightningDataModule):
    """The splits to evaluate on and, of every batch to train on, the share of the process `rank` of `ranks`."""

    def __init__(self, config: Config, dataset: data.Dataset, device: torch.device, rank: int, ranks: int):
        super().__init__()
        self.config = config
        self.tensors = {s: data.split_tensors(dataset, s, config.fold, device, config.fraction) for s in data.SPLITS}
        self.sizes = {split: len(labels) for split, (_, labels) in self.tensors.items()}
        train.check_batches(config, self.sizes["train"])
        check_shares(config, self.sizes["train"], ranks)
        _, order, augmentation = train.random_streams(config.seed, device)
        augmentation.manual_seed(augmentation.initial_seed() + rank)  # the order is common to all processes
        self.streams = {"order": order, "augmentation": augmentation}
        self.batches = data.Batches(*self.tensors["train"], config.batch_size, order, rank, ranks)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        """All splits, since the costs on train and test are observed at the same moments."""
        return [data.Batches(*tensors, train.EVALUATION_BATCH) for tensors in self.tensors.values()]

    def test_dataloader(self):
        return data.Batches(*self.tensors["test"], train.EVALUATION_BATCH)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Augments what is trained on, and nothing else."""
        images, labels = batch
        if self.trainer.training:
            images = train.augmented(images, self.config, self.streams["augmentation"])
        return images, labels


class LitMLP(LightningModule):
    """The plain MLP and what becomes of its batches, in a run of `steps` updates."""

    def __init__(self, config: Config, dataset: data.Dataset, steps: int):
        super().__init__()
        self.config, self.classes = config, dataset.classes
        self.model = train.build_model(config, dataset)
        self.optimizer, self.scheduler = train.build_optimizer(self.model, config, steps)
        self.trained, self.rows, self.since = 0, [], time.perf_counter()  # epochs, measurements, when it began
        self.losses, self.logits = [], {}  # of this epoch's updates, and of the evaluation that is running

    def configure_optimizers(self):
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def validation_step(self, batch, batch_idx, dataloader_idx):
        images, _ = batch
        self.logits.setdefault(data.SPLITS[dataloader_idx], []).append(self.model(images))

    def on_validation_epoch_end(self):
        tensors, logits, self.logits = self.trainer.datamodule.tensors, self.logits, {}
        self.scores = {split: train.score(torch.cat(logits[split]), tensors[split][1]) for split in logits}
        step = self.trained * len(self.trainer.datamodule.batches)
        row = {"epoch": self.trained, "step": step, "lr": self.scheduler.get_last_lr()[0]}
        untrained = self.rows[0] if self.rows else None
        row |= train.measurement(self.model, self.scores, self.config, self.classes, untrained)
        row |= {"seconds": time.perf_counter() - self.since}
        row = self.trainer.strategy.broadcast(row)  # with batch norm every process has another
        if not math.isfinite(row["loss/train"] + row["loss/val"]):
            raise Diverged(step)
        self.rows = [*self.rows, row]
        scalars = {tag: value for tag, value in row.items() if tag not in ("epoch", "seconds")}
        self.log_dict(scalars | {"step": torch.tensor(step).double()})  # Lightning's own counter is one behind

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return train.objective(self.model, images, labels, self.config)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Also what the class writes in `training_epoch_end(outputs)`, which Lightning 2 took away with the outputs."""
        self.losses.append(outputs["loss"])
        if self.trainer.is_last_batch:  # `on_train_epoch_end` comes after the validation
            losses, self.losses = self.trainer.strategy.reduce(torch.stack(self.losses)), []  # all stop together
            train.check_finite(losses, self.trained * len(losses))
            self.trained += 1

    def test_step(self, batch, batch_idx):
        images, labels = batch
        scores = train.score(self.model(images), labels)
        self.log_dict({"test_loss": scores.loss, "test_error": scores.error}, batch_size=len(labels), logger=False)

    def on_save_checkpoint(self, checkpoint):
        """As in the plain run, `{"model": state_dict, "epoch": ...}`."""
        checkpoint |= {"model": self.model.state_dict(), "epoch": self.trained}


class Observation(Callback):
    """When to look, what is written then, and what it takes to go on."""

    def __init__(self, config: Config, folder: Folder, recorder: observe.Recorder | None, interrupted):
        self.threads, self.folder, self.recorder, self.interrupted = config.threads, folder, recorder, interrupted
        self.moments = observe.evaluation_epochs(config.epochs, config.evaluations)
        self.with_histograms = observe.histogram_epochs(self.moments, config.histograms)
        self.looking = contextlib.ExitStack()

    def setup(self, trainer, module, stage):
        if self.threads:
            torch.set_num_threads(self.threads)  # Lightning has changed it if it has started processes

    def on_train_start(self, trainer, module):
        """Lightning's own callbacks know neither the untrained model nor, in a folder that was moved, the best one."""
        lowest, saver, stopper = train.best(module.rows), trainer.checkpoint_callback, trainer.early_stopping_callback
        saver.kth_best_model_path = saver.format_checkpoint_name({})
        saver.best_k_models = {saver.kth_best_model_path: torch.tensor(lowest["loss/val"])}
        if stopper:
            stopper.best_score = torch.tensor(lowest["loss/val"])
            stopper.wait_count = len(module.rows) - 1 - module.rows.index(lowest)
            trainer.should_stop = stopper.wait_count >= stopper.patience

    def on_train_epoch_start(self, trainer, module):
        """Names the next evaluation: they are denser early, which no fixed `check_val_every_n_epoch` is."""
        trainer.check_val_every_n_epoch = next(epoch for epoch in self.moments if epoch > module.trained)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.recorder and batch_idx == 0 and module.trained in self.moments:
            looked_at = module.global_step, True, module.trained in self.with_histograms
            self.looking.enter_context(self.recorder.input_gradients(module.model, store_grad, *looked_at))

    def on_after_backward(self, trainer, module):
        self.looking.close()

    def on_validation_end(self, trainer, module):
        if self.recorder:
            self.folder.write_rows(module.rows)
            if module.trained in self.with_histograms:
                entropies = {split: one.entropy for split, one in module.scores.items()}
                self.recorder.histograms(module.rows[-1]["step"], module.model, entropies)
        if not module.trained:  # ModelCheckpoint saves nothing outside of `fit`
            trainer.save_checkpoint(self.folder.path / "best.pt", weights_only=True)

    def on_train_epoch_end(self, trainer, module):
        if trainer.strategy.reduce_boolean_decision(self.interrupted.is_set(), all=False):
            self.interrupted.set()  # Ctrl-C in one process is for all of them
            trainer.save_checkpoint(self.folder.path / "last.pt")
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer, module, checkpoint):
        """What the plain run keeps to go on, with a row of random streams for every process."""
        rows = [row for row in module.rows if row["epoch"] < module.trained]  # who goes on looks again
        progress = Progress(module.trained, rows, time.perf_counter() - module.since)
        streams = module.all_gather(random_state(trainer.datamodule.streams))
        streams = {name: states.reshape(trainer.world_size, -1).cpu() for name, states in streams.items()}
        checkpoint |= {"progress": asdict(progress), "random": streams}

    def on_load_checkpoint(self, trainer, module, checkpoint):
        progress = Progress(**checkpoint["progress"])
        if not module.rows:  # else `validate` has been here before `fit`
            module.trained, module.rows, module.since = progress.epoch, progress.rows, module.since - progress.seconds
            module.scheduler.load_state_dict(checkpoint["lr_schedulers"][0])  # in `validate`, Lightning does not
        # copies, since PyTorch reads a state from the start of its storage, wherever the row lies
        streams = {name: states[trainer.global_rank].clone() for name, states in checkpoint["random"].items()}
        set_random_state(trainer.datamodule.streams, streams)


class Checkpoint(ModelCheckpoint):
    FILE_EXTENSION = ".pt"


class WholeFiles(TorchCheckpointIO):
    """Lightning's own moves its files from the temporary folder: no rename where that is another file system."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        write_checkpoint(Path(path), checkpoint)


class Logger(TensorBoardLogger):
    """Writes into the run's folder itself: one event file for `validate` and `fit`, and no second file of settings."""

    NAME_HPARAMS_FILE = "config.json"

    def finalize(self, status):
        self.save()  # and leaves the file open


# --- the Trainer instead of the loop ---------------------------------------------------------------------------------


@contextlib.contextmanager
def hushed():
    """Inside, Lightning speaks neither of devices, nor of folders that exist, nor of its own deprecations."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        logging.disable(max(disabled, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(disabled)


@hushed()
def train_lightning(config: Config, folder: str | Path, quiet: bool = False, **machines) -> dict:
    """The run with the settings `config` in `folder`: begins it, goes on with it or, once it is over, only reads it.

    Takes, returns and raises what `train.train` does; `machines` are the Trainer's accelerator, devices, num_nodes and
    strategy. Of several processes the first alone writes; the others only look for last.pt, and return {}.
    """
    dataset = data.load(config.data, config.data_dir)
    config = train.resolve(config, dataset)
    if machines.get("accelerator", "auto") == "auto":
        machines["accelerator"] = {"cuda": "gpu"}.get(config.device, config.device)
    trainer = make_trainer(
        machines,
        max_epochs=config.epochs,
        plugins=[WholeFiles()],
        use_distributed_sampler=False,  # data.Batches gives every process its share
        num_sanity_val_steps=0,  # there is an evaluation of the untrained model already
        enable_progress_bar=not quiet and sys.stdout.isatty(),
        enable_model_summary=False,
    )
    first, opened = trainer.is_global_zero, Folder(Path(folder), asdict(config) | {"data_sha256": dataset.sha256})
    with opened if first else contextlib.nullcontext(), train.machine(config):
        result = opened.result or run(config, opened, dataset, trainer, quiet)
        return result | {"folder": str(folder)} if first else {}


def run(config: Config, folder: Folder, dataset: data.Dataset, trainer: Trainer, quiet: bool) -> Result | None:
    """The experiment, from its beginning or from where `folder` was left. Arguments as those of `train_lightning`."""
    first, device = trainer.is_global_zero, trainer.strategy.root_device
    rank, ranks = trainer.global_rank, trainer.world_size
    datamodule = MNISTData(config, dataset, device, rank, ranks)
    init, _, _ = train.random_streams(config.seed, device)
    torch.manual_seed(init)
    module = LitMLP(config, dataset, config.epochs * len(datamodule.batches))
    if rank:
        torch.manual_seed(init + rank)  # dropout of its own
    last = folder.path / "last.pt" if (folder.path / "last.pt").exists() else None
    trained = trained_epochs(last, module, datamodule, ranks) if last else 0

    recorder = None
    if first:
        step = trained * len(datamodule.batches)
        trainer.logger = Logger(folder.path, name="", version="", purge_step=step)
        recorder = observe.Recorder(folder.path, step, trainer.logger)
        if not last:
            train.introduce(recorder, config, datamodule.tensors["train"][0])
        if not quiet:
            train.announce(config, dataset, module.model, datamodule.sizes)

    def finish(status: str, step: int) -> Result | None:
        seconds, sizes = time.perf_counter() - module.since, datamodule.sizes
        result = train.outcome(status, step, config, dataset, module.model, sizes, module.rows, seconds, device)
        return folder.finish(result) if first else None

    to_go_on = f"go on with: python train_lightning.py --resume {shlex.quote(str(folder.path))}"
    moments = {"check_on_train_epoch_end": False}, {"save_on_train_epoch_end": False, "enable_version_counter": False}
    try:
        with interrupts() as interrupted:
            observation = Observation(config, folder, recorder, interrupted)
            stopping = [EarlyStopping("loss/val", patience=config.patience, **moments[0])] if config.patience else []
            best = Checkpoint(folder.path, "best", monitor="loss/val", save_weights_only=True, **moments[1])
            trainer.callbacks += [observation, *stopping, best, Checkpoint(folder.path, "last", **moments[1])]
            at = {"datamodule": datamodule, "ckpt_path": last, "weights_only": True}
            if trained in observation.moments:  # the untrained model, or that of last.pt, where one looks again
                trainer.validate(module, verbose=False, **at)
            trainer.fit(module, **at)
        if interrupted.is_set():
            raise SystemExit
        result = finish("finished", module.rows[-1]["step"])
        if not quiet:
            trainer.test(module, datamodule, best.format_checkpoint_name({}), verbose=False, weights_only=True)
            loss, error = (trainer.callback_metrics[name] for name in ("test_loss", "test_error"))
            if first:
                print(f"Trainer.test on best.pt: cost {loss:.4f}, error {error:.2%}")
        return result
    except Diverged as diverged:
        return finish("diverged", diverged.args[0])
    except SystemExit:  # which is also what Lightning makes of a second Ctrl-C
        if first:
            raise KeyboardInterrupt(to_go_on) from None
    finally:
        if recorder:
            recorder.close()


# --- around the Trainer ----------------------------------------------------------------------------------------------


def make_trainer(machines: Mapping, **others) -> Trainer:
    """The Trainer, which knows which process this is; RunError with one line where there can be none."""
    try:
        trainer = Trainer(**machines, logger=False, enable_checkpointing=False, **others)
    except Exception as error:  # of many types
        words = " ".join(f"{flag(name)} {value}" for name, value in machines.items())
        raise RunError(f"{words}: the Trainer refuses ({one_line(error)[:200]})") from None
    rank, environment = rank_zero_only.rank, getattr(trainer.strategy, "cluster_environment", None)
    lost = isinstance(environment, LightningEnvironment) and "MASTER_PORT" not in os.environ
    if (rank and trainer.world_size == 1) or (lost and (rank or trainer.num_nodes > 1)):
        raise RunError(
            f"process {rank} of {trainer.world_size}: the environment does not say where the first one is; "
            "set MASTER_ADDR and MASTER_PORT, or unset LOCAL_RANK, RANK and NODE_RANK"
        )
    return trainer


def check_shares(config: Config, images: int, ranks: int) -> None:
    smallest = images % config.batch_size or min(images, config.batch_size)
    if ranks > 1 and smallest < ranks * (1 + (config.norm == "batch")):
        raise RunError(
            f"--devices: {ranks} processes cannot share a batch of {smallest} of the {images} training images; "
            "take fewer of them, or another --batch-size"
        )


def trained_epochs(last: Path, module: LitMLP, datamodule: MNISTData, ranks: int) -> int:
    """Of last.pt; RunError with one line unless a run of so many processes can go on from it."""
    parts = {"model": module.model, "optimizer": module.optimizer, "scheduler": module.scheduler}
    form = form_of(parts, datamodule.streams)
    form["random"] = {name: state.expand(ranks, -1) for name, state in form["random"].items()}
    names = {"state_dict": module.state_dict(), "optimizer_states": [form["optimizer"]], "random": form["random"]}
    checkpoint = read_checkpoint(last, names | {"lr_schedulers": [form["scheduler"]]})
    try:
        return read_progress(checkpoint, module.config.epochs).epoch
    except Exception as error:
        raise foreign(last, error) from None


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError), hushed():
        options = parse(LightningOptions, argv)
        machines = {name: getattr(options, name) for name in ("accelerator", "devices", "num_nodes", "strategy")}
        trainer = partial(train_lightning, **machines)
        if make_trainer(machines | {"accelerator": "cpu"}).is_global_zero:
            train.launch(options, trainer, "train_lightning.py")
        elif options.resume:
            trainer(train.read_config(Path(options.resume)), options.resume)
        else:  # a folder without a name is new, and holds nothing
            trainer(options.config, Path(options.runs_dir, options.name or os.devnull))


if __name__ == "__main__":
    main()
