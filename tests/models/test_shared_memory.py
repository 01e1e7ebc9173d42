"""Weights stay views of the file they were read from, which all processes of a machine share."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_rlhf.models import LoRAConfig, load_reward_model
from lit_rlhf.models import paths as paths_module
from lit_rlhf.modules.building import build_policy, build_reference, build_reward_model
from tests.models.examples import lively_model, shake
from tests.support.tiny_models import llama_config
from tests.support.tokenizer import save_tiny_tokenizer

LORA = LoRAConfig(rank=2)
LOADERS = {
    "policy": lambda folder, dtype: build_policy(
        folder, None, frozen_dtype=dtype, packing_width=256
    ),
    "adapters": lambda folder, dtype: build_policy(
        folder, LORA, frozen_dtype=dtype, packing_width=256
    ),
    "reference": lambda folder, dtype: build_reference(
        folder, frozen_dtype=dtype, packing_width=256
    ),
    "reward, fresh": lambda folder, dtype: build_reward_model(
        folder, None, frozen_dtype=dtype, packing_width=256
    ),
    "reward": lambda folder, dtype: load_reward_model(folder, keeps_halves=dtype is not None),
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mapped(folder):
    """Return where files of a folder are mapped, and how much of that was copied by writing."""
    ranges, num_copied, is_inside = [], 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split()
        if not first.endswith(":"):
            is_inside = str(folder) in line
            if is_inside:
                start, end = first.split("-")
                ranges.append(range(int(start, 16), int(end, 16)))
        elif is_inside and first == "Anonymous:":
            num_copied += int(others[0])
    return ranges, num_copied


def save(folder, loader, dtype):
    model = lively_model()
    if loader == "reward":
        model = AutoModelForSequenceClassification.from_config(llama_config(num_labels=1))
        shake(model)
    model.to(dtype).save_pretrained(folder)
    save_tiny_tokenizer(folder)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_weights_are_not_copied_in_the_type_they_are_stored_in(
    tmp_path, monkeypatch, loader, stored
):
    monkeypatch.setattr(paths_module, "_paths", {})  # it is measured on these weights
    save(tmp_path, loader, stored)
    model = LOADERS[loader](str(tmp_path), None if stored == torch.float32 else stored)
    ranges, num_copied = mapped(tmp_path.resolve())
    weights = dict(model.named_parameters())
    shared = {
        name for name, one in weights.items() if any(one.data_ptr() in part for part in ranges)
    }
    is_new = ("lora_", "head.")
    expected = {
        name
        for name, one in weights.items()
        if one.dtype == stored and not any(part in name for part in is_new)
    }
    assert sum("_proj" in name for name in shared) == 14  # of two layers
    assert shared == expected
    assert num_copied == 0


def test_a_frozen_model_that_is_cast_lets_its_file_go(tmp_path):
    save(tmp_path, "reference", torch.float32)
    model = LOADERS["reference"](str(tmp_path), torch.bfloat16)
    assert model is not None
    assert not mapped(tmp_path.resolve())[0]
