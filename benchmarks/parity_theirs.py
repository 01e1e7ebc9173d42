"""TRL's side of `benchmarks.parity`: loss and gradient of each objective.

python -m benchmarks.parity_theirs FOLDER

Runs in TRL's environment, without an import of lit_rlhf. Writes FOLDER/theirs.pt: name -> loss and
gradient, one vector.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# Our name -> what differs from `loss_type=["sigmoid"]`, beta 0.1.
DPO_CASES: dict[str, dict[str, Any]] = {
    "DPO": {},
    "DPO per token": {"loss_types": ["sigmoid_norm"], "beta": 2.0},
    "DPO, forward KL": {"f_divergence_type": "forward_kl"},
    "DPO, Jensen-Shannon": {"f_divergence_type": "js_divergence"},
    "DPO, alpha": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.8},
    "RobustDPO": {"loss_types": ["robust"], "label_smoothing": 0.1},
    "IPO": {"loss_types": ["ipo"]},
    "Hinge": {"loss_types": ["hinge"]},
    "EXO": {"loss_types": ["exo_pair"], "label_smoothing": 1e-3},
    "NCA": {"loss_types": ["nca_pair"]},
    "BCO": {"loss_types": ["bco_pair"]},
    "SPPOHard": {"loss_types": ["sppo_hard"]},
    "AOT": {"loss_types": ["aot"], "label_smoothing": 0.1},
    "AOT unpaired": {"loss_types": ["aot_unpaired"]},
    "APOZero": {"loss_types": ["apo_zero"]},
    "APODown": {"loss_types": ["apo_down"]},
    "DiscoPOP": {"loss_types": ["discopop"]},
}
# TRL's likelihood is a mean over tokens: the same as ours where all responses are equally long.
EVEN_CASES: dict[str, dict[str, Any]] = {
    "ChosenNLL": {"loss_types": ["sft"]},
    "MPO": {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
}


def _settings(folder: Path, batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": batch_size,
        "max_length": None,
        "gradient_checkpointing": False,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def _model(folder: Path, role: str) -> Any:  # noqa: ANN401 - transformers' Auto class has no type
    return AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)


def _rows(folder: Path, name: str) -> Dataset:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


def _measure(trainer: Any) -> tuple[float, torch.Tensor]:  # noqa: ANN401 - one of four trainers
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    named = sorted(trainer.model.named_parameters())
    return float(loss), torch.cat([parameter.grad.flatten() for _, parameter in named])


def _dpo(folder: Path, rows: str, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    data = _rows(folder, rows)
    found = {}
    for name, changes in cases.items():
        trainer = DPOTrainer(
            _model(folder, "policy"),
            ref_model=_model(folder, "reference"),
            args=DPOConfig(**_settings(folder, len(data))),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        )
        for setting, value in {"loss_types": ["sigmoid"], "loss_weights": [1.0], **changes}.items():
            setattr(trainer, setting, value)
        found[name] = _measure(trainer)
    return found


def _kto(folder: Path) -> dict[str, Any]:
    data = _rows(folder, "labels")
    args = KTOConfig(
        **_settings(folder, len(data)),
        train_sampling_strategy="sequential",
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    trainer = KTOTrainer(
        _model(folder, "policy"),
        ref_model=_model(folder, "reference"),
        args=args,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )
    return {"KTO": _measure(trainer)}


def _without_reference(folder: Path) -> dict[str, Any]:
    data = _rows(folder, "even")
    base = _settings(folder, len(data)) | {"max_length": 128}
    cases: dict[str, tuple[Any, Any]] = {
        "SimPO": (
            CPOTrainer,
            CPOConfig(**base, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.5),
        ),
        "CPO": (CPOTrainer, CPOConfig(**base, beta=0.1, cpo_alpha=1.0)),
        "ORPO": (ORPOTrainer, ORPOConfig(**base, beta=0.1)),
    }
    return {
        name: _measure(
            trainer(
                model=_model(folder, "policy"),
                args=args,
                train_dataset=data,
                processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
            )
        )
        for name, (trainer, args) in cases.items()
    }


def main() -> None:
    """Measure all objectives in the folder that the argument names."""
    folder = Path(sys.argv[1])
    found = _dpo(folder, "pairs", DPO_CASES) | _dpo(folder, "even", EVEN_CASES)
    torch.save(found | _kto(folder) | _without_reference(folder), folder / "theirs.pt")


if __name__ == "__main__":
    main()
