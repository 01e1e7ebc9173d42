import hashlib

import pytest
import torch

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import PolicyModel, load_causal_lm
from lit_rlhf.models.card import CARD_KEY, read_card
from lit_rlhf.models.lineage import describe_origin, lineage_of, make_lineage, render_lineage
from tests.models.examples import save_policy, write_policy_checkpoint


@pytest.fixture
def folder(tmp_path):
    return save_policy(tmp_path / "base")


@pytest.fixture
def checkpoint(tmp_path, folder):
    policy = PolicyModel(load_causal_lm(str(folder)))
    path = write_policy_checkpoint(tmp_path / "policy.ckpt", policy, folder)
    data = {"train": {"source": "rows.jsonl", "sha256": "ab" * 32, "rows": 7}}
    lineage = make_lineage("SFTModule", data=data, origins={"policy": str(folder)}, config=None)
    content = torch.load(path, weights_only=True)
    content[CARD_KEY]["lineage"] = lineage
    torch.save(content, path)
    return str(path)


def test_a_folder_is_known_by_its_content(folder):
    before = describe_origin(str(folder))
    assert describe_origin(str(folder)) == before
    (folder / "notes.txt").write_text("not part of the model")
    assert describe_origin(str(folder)) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert describe_origin(str(folder))["sha256"] != before["sha256"]


def test_a_checkpoint_is_known_by_its_digest_and_brings_its_lineage(checkpoint):
    origin = describe_origin(checkpoint)
    with open(checkpoint, "rb") as stream:
        assert origin["sha256"] == hashlib.sha256(stream.read()).hexdigest()
    assert origin["lineage"]["data"]["train"]["rows"] == 7
    assert lineage_of(checkpoint) == origin["lineage"]


def test_models_without_a_lineage(tmp_path, folder):
    assert lineage_of(str(folder)) is None
    assert list(render_lineage(None)) == ["no lineage is recorded"]
    policy = PolicyModel(load_causal_lm(str(folder)))
    path = write_policy_checkpoint(tmp_path / "older.ckpt", policy, folder)
    content = torch.load(path, weights_only=True)
    del content[CARD_KEY]["lineage"]  # as before there was one
    torch.save(content, path)
    assert read_card(str(path)).lineage is None
    with pytest.raises(CheckpointError, match="no such model"):
        describe_origin(str(tmp_path / "no.ckpt"))


def test_a_chain_is_rendered_with_each_origin_below_its_model(checkpoint):
    lineage = make_lineage(
        "PPOModule", data={}, origins={"policy": checkpoint, "reward": checkpoint}, config=None
    )
    lines = list(render_lineage(lineage))
    assert lines[0].startswith("PPOModule (python 3")
    assert lines[1].startswith(f"  from policy: {checkpoint}, sha256 ")
    assert lines[2].startswith("    SFTModule (")
    assert lines[3] == f"      data train: rows.jsonl, 7 rows, sha256 {'ab' * 6}"
    assert [line for line in lines if "from reward" in line]
    assert sum("data train" in line for line in lines) == 2
