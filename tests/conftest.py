"""What every test can rely on: fixed seeds, one thread, a clean environment, no network."""

import atexit
import os
import shutil
import tempfile

# Tests neither read nor fill the caches of the person who runs them.
_home = tempfile.mkdtemp(prefix="lit_rlhf-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
# Before any library reads them: nothing is fetched, one thread a process, no colours in messages.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    NO_COLOR="1",
    LIT_RLHF_HOME=_home,
)
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]

import ipaddress
import logging
import random
import socket

import hypothesis
import numpy as np
import peft  # noqa: F401 - what jaxtyping's hook imports first, it compiles anew at every run
import pytest
import torch

hypothesis.settings.register_profile(
    "fixed",
    max_examples=50,
    derandomize=True,  # the same examples in every run
    deadline=None,  # the machine's load is no property of the code
    database=None,
)
hypothesis.settings.load_profile("fixed")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Start every test from the same random states."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Undo a test's changes of the environment, and hide the keys of the person who runs it."""
    before = dict(os.environ)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-wandb-settings"))
    yield
    monkeypatch.undo()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def visible_messages():
    """Let `caplog` see Lightning's messages.

    Lightning keeps them from the root logger when it is imported before pytest listens there,
    which depends on who imports it first.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).propagate = True


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse connections to other machines: a test that fetches something fails, and says so."""
    connect = socket.socket.connect

    def connect_to_this_machine(self, address):
        is_remote = self.family in {socket.AF_INET, socket.AF_INET6} and not _is_loopback(address)
        if is_remote:
            raise AssertionError(f"a test tried to reach the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_this_machine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with what the runs of `tests.support.phase_runs` start from."""
    from tests.support.phase_runs import write_inputs  # noqa: PLC0415 - few tests need it

    folder = tmp_path_factory.mktemp("runs")
    write_inputs(folder)
    return folder


def _is_loopback(address):
    host = address[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
