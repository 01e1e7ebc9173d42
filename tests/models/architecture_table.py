"""Tiny random models of many architectures, against plain transformers: which path each takes.

`python -m tests.models.architecture_table` writes docs/reference/architectures.md.
"""

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_rlhf.batches import PromptBatch, TokenRows
from lit_rlhf.models import PolicyModel, ScalarModel
from lit_rlhf.models.backbone import trunk_of
from lit_rlhf.models.handover import attention_for
from lit_rlhf.rollout import Sampling, TorchGenerator
from tests.models.examples import shake

PAGE = Path(__file__).parents[2] / "docs/reference/architectures.md"

_SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
_HEADS = {"head_dim": 8}
# A window shorter than the rows, on every other layer.
_WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
_DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip

# By the name of the architecture in transformers: what its configuration needs to be tiny.
ARCHITECTURES = {
    "afmoe": {**_HEADS, **_EXPERTS, **_WINDOWS, "num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**_OLD, "rotary_dim": 4, "n_ctx": 128},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {**_HEADS, **_WINDOWS, "logit_scale": 0.3},
    "ctrl": {**_OLD, "dff": 64},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": {},
    "ernie4_5": _HEADS,
    "exaone4": _WINDOWS,
    "falcon": {},
    "falcon_h1": {**_HEADS, **_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.25},
    "falcon_mamba": {"state_size": 8, "expand": 2, "time_step_rank": 4},
    "gemma": _HEADS,
    "gemma2": {**_HEADS, **_WINDOWS, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {**_HEADS, **_WINDOWS},
    "gemma4_text": {
        **_HEADS, **_WINDOWS, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8,
        "global_head_dim": 8, "num_kv_shared_layers": 0, "final_logit_softcapping": 3.0,
    },
    "glm": _HEADS,
    "glm4": _HEADS,
    "gpt2": _OLD,
    "gpt_bigcode": _OLD,
    "gpt_neo": {
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": {},
    "gpt_oss": {**_HEADS, **_EXPERTS, **_WINDOWS},
    "gptj": {**_OLD, "rotary_dim": 4},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {**_EXPERTS, "logits_scaling": 4.0},
    "granitemoehybrid": {
        **_EXPERTS, **_MAMBA, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"],
        "logits_scaling": 4.0,
    },
    "helium": _HEADS,
    "hyperclovax": {"logits_scaling": 0.5},
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "llama": {},
    "llama4_text": {
        **_HEADS, **_EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 64,
        "attention_chunk_size": 8, "moe_layers": [1], "no_rope_layers": [1, 0],
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "mamba": {"state_size": 8, "expand": 2, "time_step_rank": 4},
    "mamba2": {
        "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8,
        "expand": 2,
    },
    "minimax": {
        **_HEADS, **_EXPERTS, "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
    },
    "mistral": {"sliding_window": 6},
    "mixtral": _EXPERTS,
    "modernbert-decoder": {**_WINDOWS, "local_attention": 6},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
        "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8, "head_dim": 8,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": _WINDOWS,
    "olmo_hybrid": {**_DELTA, "linear_num_key_heads": 4},
    "olmoe": _EXPERTS,
    "openai-gpt": _OLD,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": _EXPERTS,
    "qwen2": {},
    "qwen2_moe": _EXPERTS,
    "qwen3": _HEADS,
    "qwen3_5_text": {**_HEADS, **_DELTA},
    "qwen3_moe": {**_HEADS, **_EXPERTS},
    "qwen3_next": {**_HEADS, **_EXPERTS, **_DELTA},
    "recurrent_gemma": {
        "lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3, "head_dim": 8,
        "block_types": ["recurrent", "recurrent", "attention"], "logits_soft_cap": 3.0,
    },
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": _HEADS,
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}  # fmt: skip
# One of each kind: all shortcuts; padded rows; own logits; each way to decode.
QUICK = (
    "bloom", "falcon_h1", "gemma2", "gpt2", "hyperclovax", "lfm2", "llama", "llama4_text",
    "modernbert-decoder", "opt", "qwen3_next", "recurrent_gemma", "rwkv",
)  # fmt: skip

_PROMPTS = (5, 9, 5, 3)
_NUM_NEW = 6
_TOLERANCE = 1e-4


class Outcome(NamedTuple):
    """A row of the page."""

    rows: str
    logits: str
    decoding: str
    responses: str
    logprobs: str
    scores: str


@cache
def tiny(name: str, dtype: torch.dtype = torch.float32):
    """Return a lively random model with the attention that a phase would load it with."""
    config = AutoConfig.for_model(name, **_SHAPE | ARCHITECTURES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention_for(config)
            )
        except ValueError:
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager"
            )
    shake(model)
    return model.to(dtype).eval()


def prompt_batch(lengths=_PROMPTS):
    """Return prompts of random tokens, two of them of the same length."""
    ids = torch.randint(3, 96, (len(lengths), max(lengths)))
    numbers = torch.arange(len(lengths))
    return PromptBatch(ids, torch.tensor(lengths), numbers, [""] * len(ids), [{}] * len(ids))


def greedy_of_transformers(model, prompt):
    """Return the likeliest tokens and their log-probabilities by whole forwards of one row."""
    ids = prompt[None]
    for _ in range(_NUM_NEW):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    logprobs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    new = ids[0, len(prompt) :]
    return new, logprobs[0, len(prompt) - 1 : -1].gather(-1, new[:, None]).squeeze(-1)


def rows_of(prompts, responses):
    """Write responses behind prompts, twice: the second time as samples of the same prompt."""
    tokens = [
        torch.cat([ids[:length], new])
        for ids, length, new in zip(prompts.input_ids, prompts.lengths, responses, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(tokens * 2, batch_first=True)
    starts, lengths = prompts.lengths.repeat(2), torch.tensor([len(row) for row in tokens * 2])
    columns = torch.arange(ids.shape[1])
    return TokenRows(ids, lengths, (columns >= starts[:, None]) & (columns < lengths[:, None]))


@torch.no_grad()
def outcome(name: str) -> Outcome:
    """Compare a model with transformers, and say which paths it took."""
    torch.manual_seed(1)
    model, prompts = tiny(name), prompt_batch()
    plain = [
        greedy_of_transformers(model, ids[:length])
        for ids, length in zip(prompts.input_ids, prompts.lengths, strict=True)
    ]
    policy = PolicyModel(model).eval()
    sampling = Sampling(max_new_tokens=_NUM_NEW, temperature=0.0)
    drawn = TorchGenerator()(policy, prompts, sampling, stop_ids=[95, 2])
    wanted = [new[: int(size)] for (new, _), size in zip(plain, drawn.lengths, strict=True)]
    equal = all(
        torch.equal(row[: len(new)], new) for row, new in zip(drawn.tokens, wanted, strict=True)
    )
    rows = rows_of(prompts, [new for new, _ in plain])
    logprobs = policy(rows).logprobs[rows.response_mask].view(-1, _NUM_NEW)
    gap = float((logprobs - torch.stack([own for _, own in plain] * 2)).abs().max())
    paths = policy.paths
    return Outcome(
        "packed" if policy.packing_width else "padded",
        "ours" if paths.head is not None else "the model's",
        paths.decoding.replace("_", " "),
        "equal" if equal else "DIFFER",
        "equal" if gap < _TOLERANCE else f"DIFFER by {gap:.2g}",
        _scores(model, rows),
    )


def _scores(model, rows) -> str:
    """Compare a reward model on the same trunk with each row alone."""
    scalar = ScalarModel(trunk_of(model)).eval()
    scores = scalar(rows)
    alone = [
        scalar.head(scalar.backbone(input_ids=ids[None, :length], use_cache=False)[0][:, -1])[0]
        for ids, length in zip(rows.input_ids, rows.lengths.tolist(), strict=True)
    ]
    gap = float((scores - torch.stack(alone)).abs().max())
    return "equal" if gap < _TOLERANCE else f"DIFFER by {gap:.2g}"


def line_of(name: str) -> str:
    """Return a model's row of the table."""
    return f"| `{name}` | {' | '.join(outcome(name))} |"


_HEADER = (Path(__file__).parent / "architectures_header.md").read_text(encoding="utf-8")


def main() -> None:
    """Write the page."""
    logging.disable(logging.WARNING)
    lines = [line_of(name) for name in ARCHITECTURES]
    PAGE.write_text(_HEADER.format(count=len(lines)) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
