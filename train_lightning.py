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
from collections.abc import Mapping
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
from support.run import (
    RunError,
    RunFolder,
    announce,
    check_batches,
    circumstances,
    identity_of,
    machine,
    random_state,
    read_checkpoint,
    resolved,
    set_random_state,
    write_checkpoint,
)
from support.shell import between, checked, errors_in_one_line, flag, interrupts, one_line, parse
from train import Config, Diverged, TrainOptions

# Importing Lightning sets this, and every step of an optimiser then looks for a driver: 0.14 ms where there is no GPU.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


@checked
class LightningOptions(TrainOptions):
    """Train a small MLP on 5 % of MNIST with Lightning: the settings of train.py, and those of the Trainer."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"  # auto: that of --device
    devices: Annotated[int, between(1, 1024)] = 1  # of a machine, each with a process of its own
    num_nodes: Annotated[int, between(1, 1024)] = 1  # machines, on each of which this command is given
    strategy: Literal["auto", "ddp"] = "auto"  # how processes work together


# --- data ------------------------------------------------------------------------------------------------------------


class MNISTData(LightningDataModule):
    """The splits of `config`, and the random streams that training draws from."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.tensors = config, {}

    def prepare_data(self):
        """In one process only: fetches what is not there yet."""
        data.load(self.config.data, self.config.data_dir)

    def setup(self, stage):
        """In every process: cuts the splits. Instead of `tensors = ...` to `batches = ...`."""
        if self.tensors:  # `validate`, `fit` and `test` each call it
            return
        config, device = self.config, self.trainer.strategy.root_device
        dataset = data.load(config.data, config.data_dir)
        self.tensors = {s: data.split_tensors(dataset, s, config.fold, device, config.fraction) for s in data.SPLITS}
        self.sizes = {split: len(labels) for split, (_, labels) in self.tensors.items()}
        check_batches(config, self.sizes["train"])
        _, order, augmentation = train.random_streams(config.seed, device)
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
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
        """Instead of `augmented(images, ...)`: what is trained on, and nothing else."""
        images, labels = batch
        if self.trainer.training:
            images = train.augmented(images, self.config, self.streams["augmentation"])
        return images, labels

    def state_dict(self):
        """Kept in every checkpoint. Instead of `streams` in `opened.save(...)`."""
        return random_state(self.streams)

    def load_state_dict(self, state_dict):
        set_random_state(self.streams, state_dict)


# --- the model, and what becomes of its batches ----------------------------------------------------------------------


class LitMLP(LightningModule):
    """The plain MLP; Lightning calls its methods where train.py has a loop."""

    def __init__(self, config: Config, dataset: data.Dataset):
        super().__init__()
        self.config, self.classes = config, dataset.classes
        self.model = train.build_model(config, dataset)
        self.identity = identity_of(config, dataset, self.model)
        self.trained, self.rows, self.since = 0, [], time.perf_counter()  # epochs, measurements, when it began
        self.losses, self.logits, self.lr = [], {}, []  # of this epoch's updates; of the evaluation that is running

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
        """Instead of `losses.append(...)` and `check_finite(...)`; once `training_epoch_end`."""
        self.losses.append(outputs["loss"])
        if self.trainer.is_last_batch:  # `on_train_epoch_end` comes after the validation
            losses, self.losses = self.trainer.strategy.reduce(torch.stack(self.losses)), []  # all stop together
            train.check_finite(losses, self.trained * len(losses))
            self.trained += 1

    def validation_step(self, batch, batch_idx, dataloader_idx):
        images, _ = batch
        self.logits.setdefault(data.SPLITS[dataloader_idx], []).append(self.model(images))

    def on_validation_epoch_end(self):
        """Instead of `scores = ...` to `rows = ...`; `log_dict` writes to TensorBoard and feeds the callbacks."""
        tensors, logits, self.logits = self.trainer.datamodule.tensors, self.logits, {}
        self.scores = {split: train.score(torch.cat(logits[split]), tensors[split][1]) for split in logits}
        step = self.trained * len(self.trainer.datamodule.batches)
        if self.trainer.optimizers:
            self.lr = self.lr_schedulers().get_last_lr()
        elif not self.lr:  # the untrained model, before `fit` has made an optimiser
            self.lr = self.configure_optimizers()["lr_scheduler"]["scheduler"].get_last_lr()
        row = {"epoch": self.trained, "step": step, "lr": self.lr[0]}
        untrained = self.rows[0] if self.rows else None
        row |= train.measurement(self.model, self.scores, self.config, self.classes, untrained)
        row |= {"seconds": time.perf_counter() - self.since}
        row = self.trainer.strategy.broadcast(row)  # with batch norm every process has another
        if not math.isfinite(row["loss/train"] + row["loss/val"]):
            raise Diverged(step)
        self.rows = [*self.rows, row]
        scalars = {tag: value for tag, value in row.items() if tag not in ("epoch", "seconds")}
        self.log_dict(scalars | {"step": torch.tensor(step).double()})  # Lightning's own counter is one behind

    def test_step(self, batch, batch_idx):
        images, labels = batch
        scores = train.score(self.model(images), labels)
        self.log_dict({"test_loss": scores.loss, "test_error": scores.error}, batch_size=len(labels), logger=False)

    def on_save_checkpoint(self, checkpoint):
        """Beside what Lightning keeps: whose it is, the weights as in train.py, and the measurements before."""
        rows = [row for row in self.rows if row["epoch"] < self.trained]  # who goes on looks again
        checkpoint |= {"identity": self.identity, "model": self.model.state_dict(), "epoch": self.trained}
        checkpoint |= {"rows": rows, "seconds": time.perf_counter() - self.since}

    def on_load_checkpoint(self, checkpoint):
        if not self.rows:  # else `validate` has been here before `fit`
            self.trained, self.rows = checkpoint["epoch"], checkpoint["rows"]
            self.since, self.lr = self.since - checkpoint["seconds"], checkpoint["lr_schedulers"][0]["_last_lr"]


class Observation(Callback):
    """When to look, and what is written then beside what `log_dict` writes. Instead of `moments` and `recorder`."""

    def __init__(self, config: Config, folder: RunFolder, recorder: observe.Recorder | None, interrupted):
        self.folder, self.recorder, self.interrupted = folder, recorder, interrupted
        self.moments = observe.evaluation_epochs(config.epochs, config.evaluations)
        self.with_histograms = observe.histogram_epochs(self.moments, config.histograms)
        self.looking = contextlib.ExitStack()

    def on_train_start(self, trainer, module):
        """Tells Lightning's own callbacks of the measurements so far; they miss that of the untrained model."""
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
            self.recorder.flush()
        if not module.trained:  # ModelCheckpoint saves nothing outside of `fit`
            trainer.save_checkpoint(self.folder.path / "best.pt", weights_only=True)

    def on_train_epoch_end(self, trainer, module):
        """Instead of `if interrupted.is_set()`."""
        if trainer.strategy.reduce_boolean_decision(self.interrupted.is_set(), all=False):
            self.interrupted.set()  # Ctrl-C in one process is for all of them
            trainer.save_checkpoint(self.folder.path / "last.pt")
            trainer.should_stop = True


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


def make_trainer(machines: Mapping, **others) -> Trainer:
    """The Trainer, which knows which process this is; RunError with one line where there can be none."""
    try:
        return Trainer(**machines, logger=False, enable_checkpointing=False, **others)
    except Exception as error:  # of many types
        words = " ".join(f"{flag(name)} {value}" for name, value in machines.items())
        ranks = ", as many as the scheduler started" if "SLURM_NTASKS" in os.environ else ""
        raise RunError(f"{words}: the Trainer refuses ({one_line(error)[:200]}); mend them{ranks}") from None


@hushed()
def train_lightning(config: Config, folder: str | Path, quiet: bool = False, **machines) -> dict:
    """The run with the settings `config` in `folder`: begins it, goes on with it or, once it is over, only reads it.

    Takes, returns and raises what `train.train` does; `machines` are the Trainer's accelerator, devices, num_nodes and
    strategy. Of several processes the first alone writes; the others return {}.
    """
    config, dataset = resolved(config)
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
    first, device = trainer.is_global_zero, trainer.strategy.root_device
    init, _, _ = train.random_streams(config.seed, device)
    torch.manual_seed(init)
    module, datamodule = LitMLP(config, dataset), MNISTData(config)
    opened = RunFolder(Path(folder), module.identity)
    with machine(config), opened if first else contextlib.nullcontext():
        if opened.result:
            return opened.result | {"folder": str(folder)}
        if trainer.global_rank:
            torch.manual_seed(init + trainer.global_rank)  # dropout of its own
        last = opened.path / "last.pt" if (opened.path / "last.pt").exists() else None
        saved = read_checkpoint(last, module.identity) if last else {"epoch": 0}
        if last and "lr_schedulers" not in saved:
            raise RunError(f"{last}: of a run that train.py began; go on with that")
        datamodule.trainer = trainer
        datamodule.setup("fit")

        recorder = None
        if first:
            step = saved["epoch"] * len(datamodule.batches)
            trainer.logger = Logger(opened.path, name="", version="", purge_step=step)
            recorder = observe.Recorder(opened.path, step, trainer.logger)
            if not last:
                train.introduce(recorder, config, datamodule.tensors["train"][0])
            if not quiet:
                announce(config, dataset, module.model, datamodule.sizes)
        at = {"datamodule": datamodule, "ckpt_path": last, "weights_only": True}
        moments = (
            {"check_on_train_epoch_end": False},
            {"save_on_train_epoch_end": False, "enable_version_counter": False},
        )
        try:
            with interrupts() as interrupted:
                observation = Observation(config, opened, recorder, interrupted)
                stopping = (
                    [EarlyStopping("loss/val", patience=config.patience, **moments[0])] if config.patience else []
                )
                best = Checkpoint(opened.path, "best", monitor="loss/val", save_weights_only=True, **moments[1])
                trainer.callbacks += [observation, *stopping, best, Checkpoint(opened.path, "last", **moments[1])]
                if saved["epoch"] in observation.moments:  # the untrained model, or that of last.pt: one looks again
                    trainer.validate(module, verbose=False, **at)
                trainer.fit(module, **at)
            if interrupted.is_set():
                raise SystemExit
            status, step = "finished", module.rows[-1]["step"]
            if not quiet:
                trainer.test(module, datamodule, best.format_checkpoint_name({}), verbose=False, weights_only=True)
                loss, error = (trainer.callback_metrics[name] for name in ("test_loss", "test_error"))
                if first:
                    print(f"Trainer.test on best.pt: cost {loss:.4f}, error {error:.2%}")
        except Diverged as diverged:
            status, step = "diverged", diverged.args[0]
        except SystemExit:  # which is also what Lightning makes of a second Ctrl-C
            if not first:
                raise
            words = f"go on with: python train_lightning.py --resume {shlex.quote(str(folder))}"
            raise KeyboardInterrupt(words) from None
        finally:
            if recorder:
                recorder.close()
        if not first:
            return {}
        result = {"status": status, "step": step, "data": dataset.name, "fold": config.fold, "seed": config.seed}
        result |= {"sizes": datamodule.sizes, "best": train.best(module.rows), "last": module.rows[-1]}
        result |= {"seconds": time.perf_counter() - module.since} | circumstances(module.model, device)
        return opened.finish(result) | {"folder": str(folder)}


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
