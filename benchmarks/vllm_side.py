"""vLLM's side: the prompts of a generation workload, all at once, as its users would.

python -m benchmarks.vllm_side WORKLOAD

Runs in `.venv-vllm`: no import of lit_rlhf. Weights in bf16, or in float32 on a CPU that
multiplies it faster, and the model compiled, vLLM's default; no log-probabilities are asked for,
which would cost it time.
"""

from __future__ import annotations

import os
import sys

# Before vLLM is imported: one process a side, so that its memory is all of it.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams

from benchmarks.gate import Gate
from benchmarks.workloads import PRECISION, ROWS, named, read_rows

# 64 rows of some 50 tokens need 0.2 GiB of keys and values.
_CACHE_BYTES = 2**29


def main() -> None:
    """Draw for all prompts, a pass a round."""
    gate = Gate()
    workload = named(sys.argv[1])
    settings = workload.settings
    new_tokens, min_tokens = int(str(settings["new_tokens"])), int(str(settings["min_tokens"]))
    rows = read_rows(str(settings.get("rows", workload.name)))[: int(str(settings["prompts"]))]
    llm = LLM(
        model=str(ROWS / "generator"),
        dtype="bfloat16" if PRECISION == "bf16-mixed" else "float32",
        kv_cache_memory_bytes=_CACHE_BYTES,
        max_model_len=512,
        enable_prefix_caching=False,  # each round has the same prompts
    )
    parameters = SamplingParams(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_tokens=new_tokens,
        min_tokens=min_tokens,
        detokenize=False,
    )
    tokenizer = llm.get_tokenizer()
    prompts = [{"prompt_token_ids": tokenizer(row["prompt"]).input_ids} for row in rows]
    while gate.wait():
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        gate.report(tokens=float(sum(len(output.outputs[0].token_ids) for output in outputs)))


if __name__ == "__main__":
    main()
