"""The page of proofs, `docs/robustness.md`: one table from what the slow tests have measured.

Every slow proof leaves a fragment `runs/proofs/NAME.json` (elsewhere with `LIT_RLHF_PROOFS`), a
list of `Claim` as objects. `make proofs` runs the proofs and then `python -m tests.proofs.table`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "robustness.md"
_HEAD = """\
# Robustness

You can rely on these claims: each was tried as often as *made* counts, and was true *held* times.
A bold number is a claim that failed. *Largest difference* is between numbers that should be equal;
0 means bit for bit. `make proofs` tries all of it on your machine and writes this page.

| claim | made | held | largest difference | note |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Claim:
    """One row of the page, counted from what came out, and written before it is asserted.

    Attributes:
        claim: what is promised, as a statement.
        made: how often it was tried, at least once.
        held: how often it was true.
        largest_difference: between numbers that should be equal; None where there are none.
        note: what the row is about, such as cases and seeds.
    """

    claim: str
    made: int
    held: int
    largest_difference: float | None = None
    note: str = ""


def proofs_folder() -> Path:
    """Return the folder of the fragments: `LIT_RLHF_PROOFS`, else `runs/proofs` of the checkout."""
    return Path(os.environ.get("LIT_RLHF_PROOFS") or _ROOT / "runs" / "proofs")


def write_claims(name: str, claims: Sequence[Claim], folder: Path | None = None) -> Path:
    """Write the fragment of one proof, over the one of an earlier run.

    Args:
        name: of the fragment, without the ending.
        claims: its rows, in the order of the page.
        folder: None for `proofs_folder()`.
    """
    folder = folder or proofs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps([asdict(claim) for claim in claims], indent=2) + "\n")
    return path


def read_claims(folder: Path) -> list[Claim]:
    """Read all fragments, in the order of their names."""
    paths = sorted(folder.glob("*.json"))
    return [Claim(**row) for path in paths for row in json.loads(path.read_text())]


def page(claims: Sequence[Claim]) -> str:
    """Return the page; a claim that did not always hold stands out."""
    rows = []
    for claim in claims:
        difference = claim.largest_difference
        shown = "" if difference is None else "0" if difference == 0 else f"{difference:.1e}"
        held = str(claim.held) if claim.held == claim.made else f"**{claim.held}**"
        cells = (claim.claim, claim.made, held, shown, claim.note)
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return _HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Write the page from the fragments; without any, say so and leave the page as it is."""
    claims = read_claims(proofs_folder())
    if not claims:
        sys.stderr.write(f"no proofs in {proofs_folder()}: run `make proofs` first\n")
        return 1
    _PAGE.write_text(page(claims))
    sys.stdout.write(f"{_PAGE}: {len(claims)} claims\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
