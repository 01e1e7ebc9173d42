"""What others install: the sdist builds a wheel, and the wheel alone runs a phase."""

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.phases import demonstrations, write_rows
from tests.support.tiny_models import save_tiny_policy

ROOT = Path(__file__).parents[2]
FILES = ["--config=configs/sft.yaml", "--config", "configs/debug/fast.yaml"]
OPTIONS = ["--model.policy=model", "--data.batch_size=2", "--trainer.enable_progress_bar=false"]
OPTIONS += [f"--data.{split}=rows.jsonl" for split in ("train", "validation", "test")]


def run(folder, python, *words, path="", status=0):
    """Run a Python command in a folder; return what it printed, on both streams."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *words],
        cwd=folder,
        env=environment | ({"PYTHONPATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel that the source distribution builds."""
    folder = tmp_path_factory.mktemp("dist")
    run(ROOT, sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder))
    (source,) = folder.glob("*.tar.gz")
    pip = ["-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    run(folder, sys.executable, *pip, str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def elsewhere(tmp_path):
    """Return a folder with a model and data, far from the checkout."""
    save_tiny_policy(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", demonstrations())
    return tmp_path


def runs_a_phase(folder, python, path=""):
    """Check that the installed package answers, and trains from its own YAML files."""
    assert "usage: lit-rlhf" in run(folder, python, "-m", "lit_rlhf", "--help", path=path)
    printed = run(folder, python, "-m", "lit_rlhf", "--version", path=path)
    assert printed == f"lit-rlhf {version('lit-rlhf')}\n"
    run(folder, python, "-m", "lit_rlhf", "sft", "fit", *FILES, *OPTIONS, path=path)
    assert (folder / "runs/sft/metrics.csv").is_file()
    assert (folder / "runs/sft/model/config.json").is_file()


def test_the_wheel_runs_a_phase_from_any_folder(wheel, elsewhere):
    installed = elsewhere / "installed"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run(elsewhere, sys.executable, *pip, str(installed), str(wheel))
    where = "import lit_rlhf; print(lit_rlhf.__file__)"
    found = run(elsewhere, sys.executable, "-c", where, path=installed)
    assert Path(found.strip()).parent == installed / "lit_rlhf"
    assert (installed / "lit_rlhf/configs/demo/quick/ppo.yaml").is_file()
    assert next(installed.glob("*.dist-info/licenses/LICENSE")).is_file()
    runs_a_phase(elsewhere, sys.executable, path=installed)


@pytest.mark.slow
def test_an_empty_environment_installs_it_and_trains_without_extras(wheel, elsewhere):
    venv.create(elsewhere / "env", with_pip=True)
    python = str(elsewhere / "env/bin/python")
    run(elsewhere, python, "-m", "pip", "install", "--quiet", str(wheel))
    runs_a_phase(elsewhere, python)
    printed = run(elsewhere, python, "-m", "lit_rlhf", "demo", "--smoke", status=1)
    assert 'pip install "lit-rlhf[demo]"' in printed.splitlines()[-1]


def test_importing_the_package_imports_no_torch():
    code = "import lit_rlhf, sys; print(lit_rlhf.__version__, 'torch' in sys.modules)"
    assert run(ROOT, sys.executable, "-c", code, path=ROOT).split()[1] == "False"
