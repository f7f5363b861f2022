"""Fixtures of all tests. Nothing touches the network; what lacks MNIST or PostgreSQL is skipped, with the reason."""

import os
import time
from pathlib import Path

import pytest
import sqlalchemy
import torch

import data
from train import Config

ENVIRONMENT = "TEST_POSTGRESQL"  # URL of a PostgreSQL server on which databases may be made


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


@pytest.fixture
def database():
    """URL of an empty PostgreSQL database."""
    if ENVIRONMENT not in os.environ:
        pytest.skip(f"{ENVIRONMENT} names no PostgreSQL server")
    server = sqlalchemy.create_engine(os.environ[ENVIRONMENT], isolation_level="AUTOCOMMIT")
    name = f"test_{time.time_ns()}"
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield sqlalchemy.make_url(os.environ[ENVIRONMENT]).set(database=name).render_as_string(hide_password=False)
    drop(name)
    server.dispose()


def drop(name):
    server = sqlalchemy.create_engine(os.environ[ENVIRONMENT], isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    server.dispose()
