import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_rlhf.models import LoRAConfig, ScalarModel, apply_lora, load_reward_model, load_trunk
from tests.models.architecture_table import tiny
from tests.models.examples import random_rows, unpadded, write_reward_model
from tests.support.tokenizer import save_tiny_tokenizer

LORA = LoRAConfig(rank=2)


# peft names experts that lie in one twice.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("granite", None),
        ("granite", LORA),
        ("codegen", None),
        ("codegen", LORA),
        ("olmoe", None),
        ("olmoe", LORA),
    ],
)
def test_a_reward_model_comes_back(name, lora, tmp_path):
    """Of these, transformers has no classifier."""
    base = tmp_path / "base"
    tiny(name).save_pretrained(base)
    save_tiny_tokenizer(base)
    trunk = load_trunk(str(base))
    model = ScalarModel(trunk if lora is None else apply_lora(trunk, lora)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    folder = write_reward_model(tmp_path / "model", model, base)
    rows = random_rows([3, 5], [4, 2])
    with torch.no_grad():
        expected = model(rows)
        assert expected[0] != expected[1]
        torch.testing.assert_close(load_reward_model(str(folder)).eval()(rows), expected)
        if lora is None:  # as transformers' own classifiers read the last token
            theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            alone = torch.cat([theirs(row).logits[0] for row in unpadded(rows)])
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
    if name == "granite":  # in a process that has written nothing
        load = "import sys; from lit_rlhf.models import load_reward_model as f; f(sys.argv[1])"
        subprocess.run([sys.executable, "-c", load, folder], check=True)
