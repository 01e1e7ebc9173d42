"""The Python blocks of the guide and of the README run, in their order, on a tiny model."""

import re
from pathlib import Path

import pytest

from tests.support.phases import demonstrations, judged_groups, prompts, write_rows
from tests.support.tiny_models import save_tiny_policy

ROOT = Path(__file__).parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # as a folder, it comes before the hub
PAGES = ["docs/guides/python.md", "README.md"]


# Lightning says which logger it takes where none is given, and that two batches log nothing.
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_of_a_page_run(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert blocks
    save_tiny_policy(tmp_path / MODEL)
    write_rows(tmp_path / "demonstrations.jsonl", demonstrations(32))
    write_rows(tmp_path / "comparisons.jsonl", judged_groups(32))
    write_rows(tmp_path / "prompts.jsonl", prompts(32))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
        assert names["trainer"].global_step > 0
