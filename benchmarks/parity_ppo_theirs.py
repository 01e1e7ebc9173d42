"""TRL's side of `benchmarks.parity_ppo`: loss and gradient of each objective on the given rollout.

python -m benchmarks.parity_ppo_theirs FOLDER

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
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

K, LONGEST, BETA = 4, 8, 0.1
# Our name -> what differs from this.
BASE: dict[str, Any] = {"loss_type": "grpo", "beta": 0.0, "epsilon": 0.2, "scale_rewards": "group"}
CASES: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "GRPO, batch scale": {"scale_rewards": "batch"},
    "Dr. GRPO": {"scale_rewards": "none", "loss_type": "dr_grpo"},
    "clip-higher, token mean": {"loss_type": "dapo", "epsilon": 0.05, "epsilon_high": 0.1},
    "dual clip": {"epsilon": 0.05, "delta": 1.1},
    "CISPO": {"loss_type": "cispo", "epsilon_high": 1.05},
    "GSPO": {"importance_sampling_level": "sequence", "epsilon": 0.01, "epsilon_high": 0.02},
    "k3 in the loss": {"beta": BETA, "use_bias_correction_kl": False},
    "k3 in the loss, weighted": {"beta": BETA, "use_bias_correction_kl": True},
}


def _settings(folder: Path, batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": batch_size,
        "num_generations": K,
        "max_completion_length": LONGEST,
        "gradient_checkpointing": False,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def _model(folder: Path, role: str) -> Any:  # noqa: ANN401 - transformers' Auto class has no type
    return AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)


def _trainer(kind: Any, args: Any, folder: Path, rollout: dict[str, Any]) -> Any:  # noqa: ANN401
    prompts = Dataset.from_list([{"prompt": "a"}] * len(rollout["prompts"]))
    trainer = kind(
        model=_model(folder, "old"),
        reward_funcs=lambda completions, **_: rollout["rewards"],
        args=args,
        train_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )
    if args.beta:
        trainer.ref_model.load_state_dict(_model(folder, "reference").state_dict())
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _measure(trainer: Any, folder: Path, generated: tuple[Any, ...]) -> tuple[float, torch.Tensor]:  # noqa: ANN401
    """Score the rollout with the old policy, and take the loss of the policy as it is now."""
    trainer._generate = lambda prompts: generated
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * len(generated[0]))
    if "old_logps" not in inputs:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        with torch.no_grad():
            old, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, inputs["completion_ids"].size(1)
            )
        inputs["old_per_token_logps"] = old
    trainer.model.load_state_dict(_model(folder, "policy").state_dict())
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    named = sorted(trainer.model.named_parameters())
    return float(loss), torch.cat([parameter.grad.flatten() for _, parameter in named])


def main() -> None:
    """Measure all objectives on the rollout in the folder that the argument names."""
    folder = Path(sys.argv[1])
    rollout = json.loads((folder / "rollout.json").read_text(encoding="utf-8"))
    prompts, responses = rollout["prompts"], rollout["responses"]
    texts = ["a"] * len(prompts)
    base = _settings(folder, len(prompts))
    found = {}
    for name, changes in CASES.items():
        trainer = _trainer(GRPOTrainer, GRPOConfig(**base, **(BASE | changes)), folder, rollout)
        generated = (prompts, responses, None, texts, None, {}, None, None)
        found[name] = _measure(trainer, folder, generated)
    trainer = _trainer(RLOOTrainer, RLOOConfig(**base, beta=BETA), folder, rollout)
    found["RLOO, k1 in the reward"] = _measure(trainer, folder, (prompts, responses, texts))
    torch.save(found, folder / "theirs.pt")


if __name__ == "__main__":
    main()
