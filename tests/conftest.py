"""Fixtures of all tests. Nothing touches the network; what lacks MNIST is skipped, with the reason."""

import os
from pathlib import Path

import pytest
import torch

import data
from train import Config


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: a second thread costs more than it gives."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def forget_data_sets():
    yield
    data.load.cache_clear()


@pytest.fixture
def digits() -> Config:
    """A short run on data that is always there."""
    return Config(data="digits", device="cpu", epochs=20, evaluations=5, histograms=3)


@pytest.fixture
def mnist() -> Config:
    """A short run on real MNIST."""
    folder = Path(os.environ.get("DATAMAESTRO_DIR", "~/datamaestro")).expanduser()
    if not (folder / "data/image/com/lecun/mnist/test_labels.idx").exists():
        pytest.skip(
            "real MNIST is not in datamaestro's cache: run train.py once with a network, or set DATAMAESTRO_DIR"
        )
    return Config(data="mnist", device="cpu", epochs=60, evaluations=12, histograms=3)
