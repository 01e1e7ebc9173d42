"""What the tests of models, rollout and rewards are made on: lively random models, rows, files.

The weights of `tiny_model` are so small that a token barely depends on those before it: a wrong
mask or position would pass unnoticed. Here every weight, biases and norms included, is moved.
"""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_rlhf.batches import TokenRows
from lit_rlhf.models import PolicyModel, ScalarModel, load_tokenizer, saving
from lit_rlhf.models.saving import new_folder
from tests.support.tiny_models import CONFIGS, VOCABULARY_SIZE, tiny_model
from tests.support.tokenizer import save_tiny_tokenizer

ARCHITECTURES = tuple(CONFIGS)
# Shorter than the rows of the tests, so that it matters.
_OWN_FIELDS = {"gemma2": {"sliding_window": 5, "final_logit_softcapping": 3.0}}


def shake(model: nn.Module, seed: int = 0, deviation: float = 0.2) -> None:
    """Add noise to every weight, in place."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=noise))


def lively_model(architecture: str = "llama", *, seed: int = 0, **changes) -> PreTrainedModel:
    """Return a random model whose every weight matters, with transformers' plainest attention."""
    changes = {"attn_implementation": "eager"} | _OWN_FIELDS.get(architecture, {}) | changes
    model = tiny_model(architecture, seed=seed, **changes)
    shake(model, seed)
    return model.eval()


def save_policy(folder: Path, architecture: str = "llama", **changes) -> Path:
    """Write a lively model and the tiny tokenizer, as a policy that a user brings."""
    lively_model(architecture, **changes).save_pretrained(folder)
    return save_tiny_tokenizer(folder)


def change_json(file: Path, **changes) -> dict:
    """Set keys of a JSON file, and return all of it."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(content))
    return content


def save_own_code(folder: Path) -> str:
    """Write a policy whose folder has code of its own, which leaves `executed` where it runs."""
    save_policy(folder)
    own = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    change_json(folder / "config.json", model_type="own", auto_map=own)
    own = {"AutoTokenizer": ["modeling_own.Tokenizer", None]}
    change_json(folder / "tokenizer_config.json", auto_map=own)
    (folder / "modeling_own.py").write_text("open('executed', 'w')\n")
    return str(folder)


def plain_model(folder: Path, auto_class=AutoModelForCausalLM) -> PreTrainedModel:
    """Load a folder as any user of transformers would."""
    return auto_class.from_pretrained(folder, attn_implementation="eager").eval()


def random_rows(
    prompt_lengths: list[int],
    response_lengths: list[int],
    *,
    num_extra_columns: int = 0,
    pad_id: int = 0,
    seed: int = 0,
) -> TokenRows:
    """Return rows of random tokens; the tokens are the same however wide the rows are."""
    lengths = torch.tensor(prompt_lengths) + torch.tensor(response_lengths)
    draw = torch.Generator().manual_seed(seed)
    width = int(lengths.max())
    ids = torch.randint(VOCABULARY_SIZE, (len(lengths), width), generator=draw)
    ids = nn.functional.pad(ids, (0, num_extra_columns))
    columns = torch.arange(ids.shape[1])
    is_real = columns < lengths[:, None]
    response_mask = is_real & (columns >= torch.tensor(prompt_lengths)[:, None])
    return TokenRows(torch.where(is_real, ids, pad_id), lengths, response_mask)


def response_logprobs(model, tokenizer, prompt: str, response: str) -> list[float]:
    """Return what plain transformers gives to each token of a response, and to its EOS."""
    start = tokenizer(prompt)["input_ids"]
    tokens = torch.tensor([[*start, *tokenizer(response)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logprobs = model(tokens).logits[0].log_softmax(-1)
    return [float(logprobs[p - 1, tokens[0, p]]) for p in range(len(start), tokens.shape[1])]


def unpadded(rows: TokenRows) -> list[torch.Tensor]:
    """Return the tokens of each row by themselves: `[1, length]` each."""
    return [row[None, :n] for row, n in zip(rows.input_ids, rows.lengths.tolist(), strict=True)]


def write_policy(folder: Path, policy: PolicyModel, base: Path, **options) -> Path:
    """Write what `PhaseModule.save_pretrained` leaves of SFT, DPO or PPO."""
    tokenizer = load_tokenizer(str(base))
    with new_folder(folder) as partial:
        saving.save_policy(policy, tokenizer, partial, base=str(base), **options)
    return folder


def write_reward_model(folder: Path, model: ScalarModel, base: Path, **options) -> Path:
    """Write what `PhaseModule.save_pretrained` leaves of reward modelling."""
    with new_folder(folder) as partial:
        saving.save_reward_model(
            model, load_tokenizer(str(base)), partial, base=str(base), **options
        )
    return folder
