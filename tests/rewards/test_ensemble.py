import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, ScalarModel, load_trunk
from lit_rlhf.models.backbone import apply_lora
from lit_rlhf.rewards import EnsembleReward, FunctionReward, LearnedReward
from tests.models.examples import save_policy, shake, write_reward_model
from tests.rewards.samples import sample_batch

PROMPTS, RESPONSES = ["a", "b", "c"], ["oo", "longer o", "x"]
SAMPLES = sample_batch(PROMPTS, RESPONSES)
TOYS = "tests.support.toy_rewards"
MEMBERS = [FunctionReward(f"{TOYS}.{name}") for name in ("count_o", "length", "five")]
SCORES = [[2.0, 2.0, 0.0], [0.2, 0.8, 0.1], [5.0, 5.0, 5.0]]


def by_hand(combine):
    combined = []
    for scores in zip(*SCORES, strict=True):
        mean = sum(scores) / 3
        deviation = (sum((score - mean) ** 2 for score in scores) / 3) ** 0.5
        combined.append(
            {"mean": mean, "minimum": min(scores), "mean_minus_deviation": mean - 0.7 * deviation}[
                combine
            ]
        )
    return combined


@pytest.mark.parametrize("combine", ["mean", "minimum", "mean_minus_deviation"])
def test_scores_are_combined_response_by_response(combine):
    penalty = 0.7 if combine == "mean_minus_deviation" else 1.0
    source = EnsembleReward(MEMBERS, combine, penalty)
    scores = source(PROMPTS, RESPONSES, SAMPLES)
    assert scores.tolist() == pytest.approx(by_hand(combine))
    again, details = source.score_in_detail(PROMPTS, RESPONSES, SAMPLES)
    assert torch.equal(again, scores)
    assert details.keys() == set(source.details)
    assert details["disagreement"].tolist() == pytest.approx(
        [
            (m - c) / 0.7
            for m, c in zip(by_hand("mean"), by_hand("mean_minus_deviation"), strict=True)
        ]
    )


def adapters(folder, num_members=3):
    """Write reward models that are adapters on one trunk."""
    source, lora = save_policy(folder / "policy"), LoRAConfig(rank=2, alpha=4.0)
    paths = []
    for seed in range(num_members):
        reward_model = ScalarModel(apply_lora(load_trunk(str(source)), lora))
        trained = [p for p in reward_model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        path = write_reward_model(folder / f"{seed}", reward_model, source)
        paths.append(str(path))
    return paths


def test_adapters_stand_on_one_trunk_and_score_as_alone(tmp_path):
    paths = adapters(tmp_path)
    alone = torch.stack([LearnedReward(path)(PROMPTS, RESPONSES, SAMPLES) for path in paths])
    assert (alone[0] - alone[1]).abs().min() > 1e-3
    members = [LearnedReward(path) for path in paths]
    scores = EnsembleReward(members, "minimum")(PROMPTS, RESPONSES, SAMPLES)
    torch.testing.assert_close(scores, alone.amin(0), rtol=1e-4, atol=1e-5)
    models = [member._loaded.model for member in members]
    parameters = [{id(p): p.numel() for p in model.parameters()} for model in models]
    own = sum(size for key, size in parameters[1].items() if key not in parameters[0])
    assert own < 0.2 * sum(parameters[1].values())  # the adapter and the head


def test_members_that_were_trained_whole_keep_their_weights(tmp_path):
    source = save_policy(tmp_path / "policy")
    paths = []
    for seed in range(2):
        reward_model = ScalarModel(load_trunk(str(source)))
        shake(reward_model, seed)
        paths.append(str(write_reward_model(tmp_path / f"{seed}", reward_model, source)))
    alone = [LearnedReward(path)(PROMPTS, RESPONSES, SAMPLES) for path in paths]
    together = EnsembleReward([LearnedReward(path) for path in paths])
    expected = torch.stack(alone).mean(0)
    torch.testing.assert_close(together(PROMPTS, RESPONSES, SAMPLES), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": MEMBERS[:1]}, "2 or more"),
        ({"members": MEMBERS, "penalty": -1.0}, "penalty is -1.0"),
        ({"members": MEMBERS, "penalty": 0.3}, "penalty=0.3 has no effect with combine mean"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        EnsembleReward(**settings)
