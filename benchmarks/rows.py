"""Write the workloads' rows from the demonstration's ratings: text, the same for both sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.workloads import MODEL, REWARD_ADAPTER, ROWS
from lit_rlhf.cache import cache_folder
from lit_rlhf.demo.datasets import INSTRUCTION, write_datasets
from lit_rlhf.demo.fetching import RATINGS_ARCHIVE, fetch
from lit_rlhf.demo.model import prepare_model
from lit_rlhf.demo.ratings import RatedText, read_ratings, texts_of
from lit_rlhf.models import load_tokenizer
from lit_rlhf.modules.precision import choose_precision
from lit_rlhf.phase_cli import run_phase

NUM_STEPS = 10  # as many batches of each workload as rounds could need
LONG_PROMPT_TOKENS = 320
PPO_PROMPT_TOKENS = 16
PAD_ID = 0  # <|endoftext|>, which no text holds


def write_rows() -> None:
    """Fetch model and ratings where they are missing, and write every file of rows."""
    prepare_model()
    write_datasets(cache_folder() / "data", seed=1)
    texts = texts_of(read_ratings(fetch(RATINGS_ARCHIVE)), "train")
    _write_reward_model()
    _write_generator()
    _write("sft", _demonstrations(texts[: 32 * NUM_STEPS]))
    _write("pairs", _pairs(texts[: 2 * 16 * NUM_STEPS], INSTRUCTION))
    _write_reward_adapter()
    _write("groups", _groups(texts[: 8 * 4 * NUM_STEPS]))
    _write("dpo-long", _pairs(texts[: 2 * 4 * NUM_STEPS], _long_prompt(texts[-100:])))
    _write("ppo", _cut_prompts(texts, 32 * NUM_STEPS))
    _write("generate", _prompts(texts, 128))


def _write_reward_model() -> None:
    """Write a scalar model with a fixed head, as transformers' classifier: both sides load it."""
    folder = ROWS / "reward-model"
    if (folder / "config.json").exists():
        return
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1)
    with torch.no_grad():
        model.score.weight.copy_(0.05 * torch.arange(model.score.weight.numel()).cos()[None])
    # Not EOS: transformers' classifier would read the score from the token before it.
    model.config.pad_token_id = PAD_ID
    model.save_pretrained(folder)
    load_tokenizer(MODEL).save_pretrained(folder)


def _write_reward_adapter() -> None:
    """Train a reward model of adapters for two steps: ours shares the policy's trunk with it."""
    if REWARD_ADAPTER.exists():
        return
    options = ["--config=configs/reward.yaml", "--config=configs/lora/lora.yaml"]
    options += [f"--trainer.precision={choose_precision()}", "--trainer.max_steps=2"]
    options += [f"--trainer.logger.init_args.save_dir={ROWS / 'runs'}", "--model.normalizer=null"]
    options += [f"--data.train={ROWS / 'pairs.jsonl'}", "--data.batch_size=4"]
    run_phase("reward", ["fit", *options])


def _write_generator() -> None:
    """Fine-tune the model shortly, so that it ends its responses by itself."""
    folder = ROWS / "generator"
    if (folder / "config.json").exists():
        return
    options = ["--config=configs/sft.yaml", "--config=configs/demo/quick/sft.yaml"]
    options.append(f"--trainer.logger.init_args.save_dir={ROWS / 'runs'}")
    options.append(f"--trainer.precision={choose_precision()}")
    run_phase("sft", ["fit", *options, "--data.limit_validation=32"])
    shutil.copytree(ROWS / "runs" / "sft" / "model", folder)


def _demonstrations(texts: Iterable[RatedText]) -> Iterator[dict[str, Any]]:
    for rated in texts:
        yield {"prompt": INSTRUCTION, "completion": f" {rated.text}"}


def _mean(rated: RatedText) -> float:
    return sum(rated.ratings) / len(rated.ratings)


def _pairs(texts: list[RatedText], prompt: str) -> Iterator[dict[str, Any]]:
    for one, other in zip(texts[::2], texts[1::2], strict=True):
        better, worse = (one, other) if _mean(one) >= _mean(other) else (other, one)
        yield {"prompt": prompt, "chosen": f" {better.text}", "rejected": f" {worse.text}"}


def _groups(texts: list[RatedText]) -> Iterator[dict[str, Any]]:
    """Yield groups of 8 with one ranking by the mean rating: 28 decided pairs each."""
    for start in range(0, len(texts), 8):
        group = texts[start : start + 8]
        # No two alike: the place breaks ties, so that all 28 pairs are decided on both sides.
        ratings = [_mean(rated) + 1e-3 * place for place, rated in enumerate(group)]
        yield {
            "prompt": INSTRUCTION,
            "responses": [f" {rated.text}" for rated in group],
            "ratings": [ratings],
        }


def _long_prompt(texts: list[RatedText]) -> str:
    tokenizer = load_tokenizer(MODEL)
    ids = tokenizer(INSTRUCTION + "".join(f" {rated.text}" for rated in texts)).input_ids
    prompt: str = tokenizer.decode(ids[:LONG_PROMPT_TOKENS])
    return prompt


def _cut_prompts(texts: list[RatedText], count: int) -> Iterator[dict[str, Any]]:
    """Yield prompts of exactly so many tokens, also after decoding and encoding again."""
    tokenizer = load_tokenizer(MODEL)
    for rated in texts:
        ids = tokenizer(f"{INSTRUCTION} {rated.text}").input_ids[:PPO_PROMPT_TOKENS]
        prompt = tokenizer.decode(ids)
        if count and len(ids) == PPO_PROMPT_TOKENS and tokenizer(prompt).input_ids == ids:
            count -= 1
            yield {"prompt": prompt}


def _prompts(texts: list[RatedText], count: int) -> Iterator[dict[str, Any]]:
    for rated in [rated for rated in texts if len(rated.text.split()) > 7][:count]:
        yield {"prompt": " ".join([INSTRUCTION, *rated.text.split()[:5]])}


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    path = Path(ROWS) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
