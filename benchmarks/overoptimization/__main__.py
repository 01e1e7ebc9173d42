"""The proof on the real model and ratings.

python -m benchmarks.overoptimization [--scale full|small] [--pieces best_of_n ppo alarms]
python -m benchmarks.overoptimization --estimate      expected minutes a piece
python -m benchmarks.overoptimization --simulate      the test's errors on simulated curves

A killed run goes on where it was; models are trained when a piece first needs them. What was
measured, the page and its pictures are left in the run's folder, with --docs in
benchmarks/overoptimization/results and docs/overoptimization.md: what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from benchmarks.overoptimization.page import write_page
from benchmarks.overoptimization.pieces import Proof
from benchmarks.overoptimization.scale import SCALES, Scale
from benchmarks.overoptimization.simulated import simulation_table
from lit_rlhf.demo.datasets import judged_groups, write_datasets
from lit_rlhf.demo.fetching import RATINGS_ARCHIVE, fetch
from lit_rlhf.demo.model import prepare_model
from lit_rlhf.demo.ratings import RatedText, read_ratings, split_of

ROOT = Path(__file__).parents[2]
PIECES = ("best_of_n", "ppo", "alarms")


def write_data(folder: Path, texts: Sequence[RatedText]) -> None:
    """Write the demonstration's data files, and gold's: all raters of all that is trained on."""
    if (folder / "gold" / "train.jsonl").exists():
        return
    write_datasets(folder, 1, texts=texts)
    trained = [rated for rated in texts if split_of(rated.text) in {"train", "judge"}]
    lines = [json.dumps(group) + "\n" for group in judged_groups(trained, None)]
    (folder / "gold").mkdir(parents=True, exist_ok=True)
    (folder / "gold" / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def prove(proof: Proof, pieces: Sequence[str], page: Path) -> None:
    """Make the pieces and the page.

    Args:
        proof: where and how large.
        pieces: out of `PIECES`.
        page: the Markdown file.
    """
    if "best_of_n" in pieces:
        proof.best_of_n()
    runs = list(proof.scale.ppo) if "ppo" in pieces else []
    if "alarms" in pieces:
        # By seed: should it end early, there are as many of either kind.
        runs += chain.from_iterable(zip(*proof.scale.alarms().values(), strict=True))
    for run in runs:
        proof.run_ppo(run)
    write_page(proof, page)


def estimate(scale: Scale) -> str:
    """Return the expected minutes of every piece."""
    minutes = scale.minutes()
    return "".join(f"{piece}: {value:.0f} min\n" for piece, value in minutes.items())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES)
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument(
        "--docs", action="store_true", help="keep results and page in the repository"
    )
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if options.estimate or options.simulate:
        sys.stdout.write(estimate(scale) if options.estimate else simulation_table())
        return
    folder = ROOT / "runs" / f"overoptimization-{scale.name}"
    base = prepare_model()
    write_data(folder / "data", read_ratings(fetch(RATINGS_ARCHIVE)))
    results, page = folder / "results", folder / "report.md"
    if options.docs:
        results = Path(__file__).parent / "results" / scale.name
        page = ROOT / "docs" / "overoptimization.md"
    prove(Proof(scale, folder, base, folder / "data", results), options.pieces, page)


if __name__ == "__main__":
    main()
