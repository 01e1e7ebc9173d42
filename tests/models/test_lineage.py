import json

import pytest

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.lineage import (
    LINEAGE_FILE,
    describe_origin,
    make_lineage,
    read_lineage,
    render_lineage,
    write_lineage,
)
from tests.models.examples import save_policy

DATA = {"train": {"source": "rows.jsonl", "sha256": "ab" * 32, "rows": 7}}


@pytest.fixture
def base(tmp_path):
    return save_policy(tmp_path / "base")


def trained(folder, phase, origins, config=None):
    """Return a folder that a phase left."""
    save_policy(folder)
    write_lineage(make_lineage(phase, data=DATA, origins=origins, config=config), folder)
    return str(folder)


def test_a_folder_is_known_by_its_content(base):
    before = describe_origin(str(base))
    assert describe_origin(str(base)) == before
    (base / "notes.txt").write_text("not part of the model")
    assert describe_origin(str(base)) == before
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert describe_origin(str(base))["sha256"] != before["sha256"]


def test_an_origin_brings_one_level_of_its_lineage(tmp_path, base):
    settings = {"data": {"batch_size": 8}}
    folder = trained(tmp_path / "sft", "SFTModule", {"policy": str(base)}, settings)
    assert read_lineage(folder)["config"] == settings
    origin = describe_origin(folder)
    assert origin["lineage"]["data"] == DATA
    assert "config" not in origin["lineage"]
    (under,) = origin["lineage"]["origins"].values()
    assert under == {"source": str(base), "sha256": describe_origin(str(base))["sha256"]}


def test_a_lineage_does_not_grow_over_rounds(tmp_path, base):
    sizes, policy = [], str(base)
    for number in range(6):
        reward = trained(tmp_path / f"reward{number}", "RewardModule", {"backbone": policy})
        origins = {"policy": policy, "reward": reward}
        policy = trained(tmp_path / f"ppo{number}", "PPOModule", origins)
        sizes.append((tmp_path / f"ppo{number}" / LINEAGE_FILE).stat().st_size)
    assert sizes[0] < sizes[1] <= sizes[2] == sizes[5] < 4000


def test_models_without_a_lineage(tmp_path, base):
    assert read_lineage(str(base)) is None
    assert describe_origin(str(base))["lineage"] is None
    assert list(render_lineage(None)) == ["no lineage is recorded"]
    with pytest.raises(CheckpointError, match="no such model"):
        describe_origin(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "{}", '{"phase": "a", "data": 1, "origins": {}, "config": null, "versions": {}}',
     '{"phase": "a", "data": {}, "origins": {"a": 3}, "config": null, "versions": {}}'],
)  # fmt: skip
def test_a_file_that_is_no_lineage_is_refused(content, base):
    (base / LINEAGE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"lineage\.json: not a lineage of lit_rlhf"):
        read_lineage(str(base))


def test_a_chain_is_rendered_with_each_origin_below_its_model(tmp_path, base):
    sft = trained(tmp_path / "sft", "SFTModule", {"policy": str(base)})
    origins = {"policy": sft, "reward": sft}
    lineage = make_lineage("PPOModule", data={}, origins=origins, config=None)
    lines = list(render_lineage(json.loads(json.dumps(lineage))))
    assert lines[0].startswith("PPOModule (python 3")
    assert lines[1].startswith(f"  from policy: {sft}, sha256 ")
    assert lines[2].startswith("    SFTModule (")
    assert lines[3] == f"      data train: rows.jsonl, 7 rows, sha256 {'ab' * 6}"
    assert lines[4].startswith(f"      from policy: {base}, sha256 ")
    assert [line for line in lines if "from reward" in line]
    assert sum("data train" in line for line in lines) == 2


def test_a_hub_model_has_the_commit_that_is_in_the_cache(tmp_path, monkeypatch):
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    snapshot = folder / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expected = {"source": "some/model", "revision": "c0ffee", "lineage": None}
    assert describe_origin("some/model") == expected
    assert describe_origin("some/other")["revision"] is None
