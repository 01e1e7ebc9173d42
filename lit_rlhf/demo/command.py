"""The command `lit-rlhf demo`: the whole loop on a real model and real human ratings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lit_rlhf.cache import cache_folder
from lit_rlhf.demo.datasets import write_datasets
from lit_rlhf.demo.loop import SCALES, run_loop
from lit_rlhf.demo.model import prepare_model
from lit_rlhf.demo.report import PERPLEXITY_FALL, read_findings, write_report
from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.extras import require_extra

# The order of the data files' lines; the run's own seed draws from them.
DATA_SEED = 1


def demo_command(arguments: list[str]) -> int:
    """Run the demonstration and leave its report.

    Args:
        arguments: those after `lit-rlhf demo`.

    Returns:
        0: figures that fall short of their targets are in the report, and not an error.

    Raises:
        TrainingError: the perplexity did not even fall; the report is written all the same.
    """
    parser = argparse.ArgumentParser(
        prog="lit-rlhf demo",
        description="Fetch a real model (SmolLM2-135M-Instruct) and real human ratings of movie "
        "texts, then run ratings -> SFT -> reward model -> reward model that judges -> PPO "
        "-> DPO -> evaluation, each phase by its own command and YAML file, and write a report.",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--smoke", action="store_true", help="some 3 minutes: every step, too short to be good"
    )
    size.add_argument("--full", action="store_true", help="the long run that the docs quote")
    size.add_argument(
        "--prepare", action="store_true", help="fetch the model and write the data, nothing more"
    )
    parser.add_argument(
        "--flywheel",
        action="store_true",
        help="two rounds of choosing, judging and training with simulated raters instead",
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="with --flywheel: the SFT policy and reward models of the demonstration that ran "
        "there, such as runs/demo, where they are trained otherwise",
    )
    parser.add_argument("--seed", type=int, default=1, help="of every phase (default: 1)")
    parser.add_argument(
        "--output", type=Path, help="folder of the run (default: runs/demo, with -smoke and so on)"
    )
    options = parser.parse_args(arguments)
    if options.models is not None and not options.flywheel:
        raise ConfigError("--models goes with --flywheel: the loop trains all of its models")
    model = prepare_model()
    write_datasets(cache_folder() / "data", DATA_SEED)
    if options.prepare:
        sys.stdout.write(f"model: {model}\ndata:  {cache_folder() / 'data'}\n")
        return 0
    if options.flywheel:
        return _run_flywheel(options)
    scale = SCALES["smoke" if options.smoke else "full" if options.full else "quick"]
    folder = options.output or Path("runs") / scale.folder
    run = run_loop(scale, folder, options.seed)
    findings = read_findings(folder, is_full=options.full)
    path = write_report(run, findings, folder)
    sys.stdout.write(f"{path.read_text(encoding='utf-8')}\nreport: {path}\n")
    (fall,) = (finding.value for finding in findings if finding.name == PERPLEXITY_FALL)
    if not fall > 0:
        raise TrainingError(
            f"fine-tuning did not lower the held-out perplexity (it fell by {100 * fall:.1f} %): "
            f"something is broken; see {path}"
        )
    return 0


def _run_flywheel(options: argparse.Namespace) -> int:
    """Run the rounds instead of the loop; one that was killed goes on."""
    if options.full:
        raise ConfigError(
            "--flywheel has no --full: run `lit-rlhf flywheel run` with your own file"
        )
    require_extra("feedback", "lit-rlhf demo --flywheel")
    from lit_rlhf.demo.flywheel import run_flywheel  # noqa: PLC0415 - the extra's packages

    size = "smoke" if options.smoke else "quick"
    default = "demo-flywheel-smoke" if options.smoke else "demo-flywheel"
    folder = options.output or Path("runs") / default
    data = cache_folder() / "data"
    path = run_flywheel(size, folder, data, options.seed, options.models)
    sys.stdout.write(f"{path.read_text(encoding='utf-8')}\nreport: {path}\n")
    return 0
