import pytest
import torch

from lit_rlhf.batches import SampleBatch, TokenRows
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import PPOModule
from lit_rlhf.modules.refilling import _replace_groups, are_alike
from lit_rlhf.modules.rewarded_policy import ScoredSamples
from lit_rlhf.objectives import GAE, GRPO, RLOO, MissingEOS, ReMax
from tests.modules.test_ppo_objectives import run, targets_of  # noqa: F401 - a fixture
from tests.support.phases import largest_difference, weights
from tests.support.rewarded_runs import LENGTH


class Two:
    """What `are_alike` reads of a module: groups of two."""

    advantage = RLOO(2)

    def __init__(self, rule="keep"):
        self.missing_eos = MissingEOS(rule)


def samples(lengths, tokens, num_columns, start=2):
    """Return samples of two-token prompts whose tokens are all one number a row."""
    lengths = torch.tensor(lengths)
    columns = torch.arange(num_columns)
    mask = columns < lengths[:, None]
    ids = torch.tensor(tokens)[:, None].expand(-1, start + num_columns)
    row_mask = torch.nn.functional.pad(mask, (start, 0))
    return SampleBatch(
        TokenRows(ids, lengths + start, row_mask),
        torch.full_like(lengths, start),
        mask,
        torch.tensor(tokens)[:, None] * mask.float(),
        torch.tensor([token % 2 == 0 for token in tokens]),
        torch.arange(len(tokens)) // 2,
        [f"prompt {token}" for token in tokens],
        [f"response {token}" for token in tokens],
        [{"token": token} for token in tokens],
    )


@pytest.mark.parametrize(
    ("rule", "scores", "expected"),
    [
        ("keep", [1.0, 1.0, 1.0, 2.0], [True, False]),
        ("keep", [torch.nan, 2.0, torch.nan, torch.nan], [True, True]),  # one is not two
        ("replace", [3.0, 3.0, -1.0, 5.0], [False, True]),  # the odd ones were cut: -1
        ("filter", [3.0, 4.0, 3.0, 3.0], [True, True]),
    ],
)
def test_groups_are_alike_by_the_scores_that_count(rule, scores, expected):
    drawn = ScoredSamples(samples([1, 1, 1, 1], [2, 3, 4, 5], 1), torch.tensor(scores))
    if rule == "replace":
        drawn = drawn._replace(samples=drawn.samples._replace(
            finished=torch.tensor([True, False, True, False])
        ), scores=torch.tensor([3.0, 3.0, -1.0, 5.0]))  # fmt: skip
    assert are_alike(Two(rule), drawn).tolist() == expected


@pytest.mark.parametrize(("old_width", "new_width"), [(3, 5), (5, 3), (4, 4)])
def test_fresh_groups_take_the_places_of_those_that_are_alike(old_width, new_width):
    old = ScoredSamples(
        samples([1, 2, 3, 1], [2, 3, 4, 5], old_width),
        torch.tensor([2.0, 3.0, 4.0, 5.0]),
        details={"part": torch.tensor([2.0, 3.0, 4.0, 5.0])},
    )
    new = ScoredSamples(
        samples([3, 2], [8, 9], new_width),
        torch.tensor([8.0, 9.0]),
        details={"part": torch.tensor([8.0, 9.0])},
    )
    merged = _replace_groups(old, new, torch.tensor([False, True]))
    assert merged.scores.tolist() == merged.details["part"].tolist() == [2, 3, 8, 9]
    found = merged.samples
    assert found.group_ids.tolist() == [0, 0, 1, 1]
    assert found.responses == [f"response {token}" for token in (2, 3, 8, 9)]
    assert found.prompts == [f"prompt {token}" for token in (2, 3, 8, 9)]
    assert [fields["token"] for fields in found.fields] == [2, 3, 8, 9]
    assert found.finished.tolist() == [True, False, True, False]
    assert found.response_mask.sum(1).tolist() == [1, 2, 3, 2]
    assert (found.rows.lengths - found.prompt_lengths).tolist() == [1, 2, 3, 2]
    assert torch.equal(found.rows.response_mask.sum(1), found.response_mask.sum(1))
    for row, token in enumerate((2, 3, 8, 9)):
        length = int(found.rows.lengths[row])
        assert (found.rows.input_ids[row, :length] == token).all()
        assert (found.sampler_logprobs[row][found.response_mask[row]] == token).all()


class Stubborn:
    """Scores all responses alike when it is first asked, and by length from then on."""

    def __init__(self, num_alike):
        self.num_alike, self.prompts = num_alike, []

    def __call__(self, prompts, responses):
        self.prompts.append(list(prompts))
        if len(self.prompts) <= self.num_alike:
            return [1.0] * len(responses)
        return [float(row) for row in range(len(responses))]


def refilled(run, num_alike, max_refills):  # noqa: F811
    reward = Stubborn(num_alike)
    module = run(1, reward=reward, advantage=GRPO(2), max_refills=max_refills,
                 missing_eos=MissingEOS("keep"), whiten_advantages=False)  # fmt: skip
    return module, reward, module.recorder.batches[0]


def test_groups_that_score_alike_are_drawn_anew_until_they_do_not(run):  # noqa: F811
    module, reward, logged = refilled(run, num_alike=2, max_refills=5)
    assert [len(prompts) for prompts in reward.prompts] == [8, 8, 8]
    assert reward.prompts[0] != reward.prompts[1]
    assert len(set(reward.prompts[1])) == 4
    assert logged["train/ppo/refilled_groups"] == 8
    assert logged["train/ppo/alike_groups"] == 0
    assert logged["train/ppo/reward"] == 3.5
    assert module.recorder.values("train/ppo/first_log_ratio") == [0]


def test_the_number_of_refills_is_bounded(run):  # noqa: F811
    module, reward, logged = refilled(run, num_alike=9, max_refills=2)
    assert len(reward.prompts) == 3
    assert logged["train/ppo/refilled_groups"] == 8
    assert logged["train/ppo/alike_groups"] == 1
    assert largest_difference(weights(module.policy.model), weights(module.reference.model)) < 1e-3


def test_where_all_groups_have_a_spread_nothing_changes(run):  # noqa: F811
    settings = {"advantage": GRPO(2), "missing_eos": MissingEOS("keep")}
    plain, bounded = (run(1, reward=Stubborn(0), max_refills=n, **settings) for n in (0, 3))
    assert largest_difference(weights(plain), weights(bounded)) == 0
    assert bounded.recorder.batches[0]["train/ppo/refilled_groups"] == 0
    assert "train/ppo/refilled_groups" not in plain.recorder.batches[0]


@pytest.mark.parametrize("advantage", [GAE(), ReMax(2)], ids=repr)
def test_refills_for_an_estimator_that_compares_no_samples_are_refused(talker, advantage):
    with pytest.raises(ConfigError, match=rf"max_refills=1.*{type(advantage).__name__} does not"):
        PPOModule(talker, LENGTH, advantage=advantage, max_refills=1)
