"""How long data take to be ready, and how much memory: two processes, cold and then cached.

    python -m benchmarks.data_scale sft 200000 TOKENIZER
    python -m benchmarks.data_scale dpo 200000 TOKENIZER

It writes chats of four turns, or pairs of responses to a chat, of about 500 tokens each, of random
words. Two processes start together, as the ranks of a run do, and set up the same data module.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lit_rlhf.data import DPODataModule, SFTDataModule

MODULES = {"sft": SFTDataModule, "dpo": DPODataModule}


def write_records(file: Path, phase: str, num_records: int) -> None:
    """Write records of about 500 tokens; pairs have two such rows."""
    docs = Path(__file__).resolve().parents[1] / "docs"
    words = sorted(set(re.findall(r"[a-z]{2,}", (docs / "data.md").read_text(encoding="utf-8"))))
    draw = random.Random(0)

    def text(num_words: int) -> str:
        return " ".join(draw.choices(words, k=num_words)) + "."

    def message(role: str) -> dict[str, str]:
        return {"role": role, "content": text(90)}

    with file.open("w", encoding="utf-8") as stream:
        for _ in range(num_records):
            chat = [message(role) for role in ("user", "assistant", "user")]
            record: dict[str, object] = {"messages": [*chat, message("assistant")]}
            if phase == "dpo":
                record = {"prompt": chat, "chosen": text(90), "rejected": text(90)}
            stream.write(json.dumps(record) + "\n")


def measure(phase: str, file: str, tokenizer: str) -> None:
    """Set up a data module and print what it took."""
    start = time.perf_counter()
    data = MODULES[phase](tokenizer, train=file, batch_size=64, max_length=4096)
    data.setup("fit")
    ready = time.perf_counter()
    next(iter(data.train_dataloader()))
    batch = time.perf_counter()
    lengths = data.prepared("train").lengths  # type: ignore[attr-defined] # a TokenTable
    peaks = [
        resource.getrusage(who).ru_maxrss / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    figures = {
        "setup_s": round(ready - start, 1),
        "first_batch_s": round(batch - ready, 2),
        "peak_gib": round(peaks[0], 2),
        "peak_of_workers_gib": round(peaks[1], 2),
        "mean_tokens": round(float(lengths.mean())),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    """Write the records and let two processes measure, twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("phase", choices=sorted(MODULES))
    parser.add_argument("records", type=int)
    parser.add_argument("tokenizer")
    parser.add_argument("--folder", help="where the records are, or are to stay")
    parser.add_argument("--file", help="measure in this process alone; used by the script itself")
    options = parser.parse_args()
    if options.file:
        measure(options.phase, options.file, options.tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(options.folder or folder) / f"{options.phase}.jsonl"
        if not file.exists():
            write_records(file, options.phase, options.records)
        sys.stdout.write(f"{options.records} records, {file.stat().st_size / 1e6:.0f} MB\n")
        command = [
            sys.executable,
            "-m",
            "benchmarks.data_scale",
            *sys.argv[1:],
            "--file",
            str(file),
        ]
        environment = {**os.environ, "LIT_RLHF_HOME": folder}
        for state in ("cold", "cached"):
            ranks = [
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
                for _ in range(2)
            ]
            for rank, process in enumerate(ranks):
                sys.stdout.write(f"{state}, process {rank}: {process.communicate()[0]}")


if __name__ == "__main__":
    main()
