"""Rounds of the flywheel against what they could be replaced by, on the real model.

python -m benchmarks.flywheel rounds [--scale small|full] [--seeds 1 2 3] [--arms rounds one ...]
python -m benchmarks.flywheel choice [--seeds 1 2 3]     active choice on its own, minutes
python -m benchmarks.flywheel page                       docs/flywheel-proof.md from what is there

Every arm and seed is a run of its own under runs/flywheel-proof: killed and started again, it skips
what is finished. Seconds of every step are in its timings.jsonl. `--estimate` says what is left.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.flywheel import choice, page
from benchmarks.flywheel.arms import ARMS, SCALES, Proof
from lit_rlhf.cache import cache_folder
from lit_rlhf.demo.datasets import write_datasets
from lit_rlhf.demo.model import prepare_model

RESULTS = Path(__file__).parent / "results"
DATA_SEED = 1


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flywheel", description=__doc__.split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("command", choices=("rounds", "choice", "page"))
    parser.add_argument("--scale", choices=tuple(SCALES), default="small")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/flywheel-proof"))
    parser.add_argument("--estimate", action="store_true", help="what is left, and run nothing")
    options = parser.parse_args()
    if options.command == "page":
        _say(str(page.write_page(RESULTS, Path("docs"))))
        return
    proof = Proof(SCALES[options.scale], options.folder, cache_folder() / "data")
    if options.estimate:
        for line in proof.estimate(options.arms, options.seeds):
            _say(line)
        return
    prepare_model()
    write_datasets(cache_folder() / "data", DATA_SEED)
    RESULTS.mkdir(exist_ok=True)
    if options.command == "choice":
        proof.prepare()
        _keep("choice", choice.measure(proof, options.seeds))
        return
    # By seed: ended early, all arms have the same seeds.
    for seed in options.seeds:
        for arm in options.arms:
            if (RESULTS / f"{arm}-{seed}.json").exists():
                continue  # its models are gone
            proof.run(arm, seed)
            _keep(f"{arm}-{seed}", {"scale": options.scale, "rounds": proof.read(arm, seed)})
            proof.drop_models(arm, seed)


def _keep(name: str, content: object) -> None:
    text = json.dumps(content, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    _say(f"{name}: in {RESULTS}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
