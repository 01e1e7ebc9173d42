"""The proof on the real model and ratings.

python -m benchmarks.overoptimization [--scale full|small] [--pieces models best_of_n ppo alarms]
python -m benchmarks.overoptimization --estimate      expected minutes a piece
python -m benchmarks.overoptimization --simulate      the test's errors on simulated curves

A killed run goes on where it was. The page and its pictures are written to the run's folder, and
with --docs to docs/overoptimization.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
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
PIECES = ("models", "best_of_n", "ppo", "alarms")


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
    proof.train_models()
    scores = proof.best_of_n() if "best_of_n" in pieces else None
    runs = proof.ppo_runs() if "ppo" in pieces else []
    alarms = proof.alarm_runs() if "alarms" in pieces else None
    write_page(proof, page, best_of_n=scores, ppo=runs, alarms=alarms)


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
    parser.add_argument("--docs", action="store_true", help="write docs/overoptimization.md")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if options.estimate or options.simulate:
        sys.stdout.write(estimate(scale) if options.estimate else simulation_table())
        return
    folder = ROOT / "runs" / f"overoptimization-{scale.name}"
    base = prepare_model()
    write_data(folder / "data", read_ratings(fetch(RATINGS_ARCHIVE)))
    page = ROOT / "docs" / "overoptimization.md" if options.docs else folder / "report.md"
    prove(Proof(scale, folder, base, folder / "data"), options.pieces, page)


if __name__ == "__main__":
    main()
