"""Loss and gradient of every objective that TRL has, too: equal on the same model and rows?

python -m benchmarks.parity

A tiny random model in float32, another one as its reference. Prints the relative differences, and
ends with 1 where one is above 1e-5. `make .venv-trl/.installed` makes TRL's environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.data import DPODataModule
from lit_rlhf.models import PolicyModel, load_causal_lm
from lit_rlhf.objectives import preference
from lit_rlhf.objectives.preference import PreferenceLoss, PreferencePairs
from tests.models.examples import save_policy

PEER = Path(__file__).parents[1] / ".venv-trl" / "bin" / "python"
LIMIT = 1e-5
START = "<|im_start|>"  # TRL's older trainers put it before a prompt that does not begin with it

PAIRS = [
    {"prompt": f"{START}{prompt}", "chosen": chosen, "rejected": rejected}
    for prompt, chosen, rejected in (
        ("say ", "yes", "no no"),
        ("tell me more ", "a long answer", "it"),
        ("q ", "b", "c"),
        ("why ", "because of it", "i do not know this"),
    )
]
# Prompts of one token and chosen responses of one length: there TRL's likelihood is ours.
EVEN = [
    {"prompt": START, "chosen": chosen, "rejected": rejected}
    for chosen, rejected in (("yes", "no no"), ("abc", "it"), ("dim", "bright"))
]
LABELS = [
    {"prompt": f"{START}say ", "completion": "yes it is", "label": True},
    {"prompt": f"{START}tell me more ", "completion": "no", "label": False},
]
ROWS = {"pairs": PAIRS, "even": EVEN, "labels": LABELS}

ALPHA = preference.AlphaDivergence(0.2)
LOSSES: dict[str, tuple[str, PreferenceLoss]] = {
    "DPO": ("pairs", preference.DPO()),
    "DPO per token": ("pairs", preference.DPO(2.0, per_token=True)),
    "DPO, forward KL": ("pairs", preference.DPO(divergence=preference.ForwardKL())),
    "DPO, Jensen-Shannon": ("pairs", preference.DPO(divergence=preference.JensenShannon())),
    "DPO, alpha": ("pairs", preference.DPO(divergence=ALPHA)),
    "RobustDPO": ("pairs", preference.RobustDPO()),
    "IPO": ("pairs", preference.IPO()),
    "Hinge": ("pairs", preference.Hinge()),
    "EXO": ("pairs", preference.EXO()),
    "NCA": ("pairs", preference.NCA()),
    "BCO": ("pairs", preference.BCO()),
    "SPPOHard": ("pairs", preference.SPPOHard()),
    "AOT": ("pairs", preference.AOT(label_smoothing=0.1)),
    "AOT unpaired": ("pairs", preference.AOT(paired=False)),
    "APOZero": ("pairs", preference.APOZero()),
    "APODown": ("pairs", preference.APODown()),
    "DiscoPOP": ("pairs", preference.DiscoPOP()),
    "ChosenNLL": ("even", preference.ChosenNLL()),
    "MPO": (
        "even",
        preference.WeightedSum(
            (preference.DPO(), preference.BCO(), preference.ChosenNLL()), (0.8, 0.2, 1.0)
        ),
    ),
    "KTO": ("labels", preference.KTO(good_weight=1.5, bad_weight=0.5)),
    "SimPO": ("even", preference.SimPO()),
    "CPO": ("even", preference.CPO()),
    "ORPO": ("even", preference.ORPO()),
}


def write_inputs(folder: Path) -> None:
    """Write two models and the rows."""
    for seed, role in enumerate(("policy", "reference")):
        save_policy(folder / role, seed=seed)
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def ours(folder: Path) -> dict[str, tuple[float, Tensor]]:
    """Return our loss and gradient of each objective."""
    policy, reference = (
        PolicyModel(load_causal_lm(str(folder / role))) for role in ("policy", "reference")
    )
    batches = {}
    for name, rows in ROWS.items():
        file = str(folder / f"{name}.jsonl")
        data = DPODataModule(str(folder / "policy"), test=file, batch_size=len(rows))
        data.setup("test")
        (batches[name],) = data.test_dataloader()
    return {
        name: _measure(policy, reference, batches[rows], loss)
        for name, (rows, loss) in LOSSES.items()
    }


def _measure(
    policy: PolicyModel, reference: PolicyModel, batch: ComparisonBatch, loss: PreferenceLoss
) -> tuple[float, Tensor]:
    policy.zero_grad()
    with torch.no_grad():
        of_reference = reference(batch.rows).logprobs.sum(1)
    of_policy = policy(batch.rows).logprobs.sum(1)
    pairs = PreferencePairs.of(batch, of_policy, of_reference)
    if loss.is_unpaired:
        pairs = pairs._replace(reference_point=pairs.log_ratios[1].detach().mean())
    mean = loss(pairs).losses.mean()
    mean.backward()
    return float(mean), gradient_of(policy)


def gradient_of(policy: PolicyModel) -> Tensor:
    """Return the gradient of all weights in one row, in the order of their names."""
    gradients = [p.grad for _, p in sorted(policy.model.named_parameters()) if p.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])


def compare(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Run both sides; return of each objective the loss, and what differs of loss and gradient."""
    write_inputs(folder)
    return differences(ours(folder), "benchmarks.parity_theirs", folder)


def differences(
    own: dict[str, tuple[float, Tensor]], side: str, folder: Path
) -> dict[str, tuple[float, float, float]]:
    """Run the peer's module; return of each case our loss, and what differs of it and gradient."""
    command = [str(PEER), "-m", side, str(folder)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=sys.stderr)
    theirs = torch.load(folder / "theirs.pt", weights_only=True)
    found = {}
    for name, (loss, gradient) in own.items():
        their_loss, their_gradient = theirs[name]
        off = float((gradient - their_gradient).norm() / their_gradient.norm())
        found[name] = loss, abs(loss - their_loss) / abs(their_loss), off
    return found


def print_table(found: dict[str, tuple[float, float, float]]) -> None:
    """Print of each objective the loss, and what differs of loss and gradient."""
    sys.stdout.write("| objective | loss | difference | of the gradient |\n")
    sys.stdout.write("| --- | --- | --- | --- |\n")
    for name, (loss, off, gradient_off) in found.items():
        sys.stdout.write(f"| {name} | {loss:.6f} | {off:.0e} | {gradient_off:.0e} |\n")


def report(run: Callable[[Path], dict[str, tuple[float, float, float]]]) -> int:
    """Print the table of a comparison; return 1 where an objective differs."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder))
    print_table(found)
    return int(max(max(row[1:]) for row in found.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(report(compare))
