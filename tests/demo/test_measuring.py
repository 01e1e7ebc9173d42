"""The report's figures from real checkpoints of tiny models, against plain transformers and numpy.

Policies are sampled as in the demonstration, in bfloat16; what is recomputed in float32 agrees
with that to about a hundredth.
"""

import json
import warnings
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lit_rlhf.data import PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.demo import measuring
from lit_rlhf.demo.measuring import (
    PolicyFigures,
    measure_policies,
    measure_reward_model,
    ppo_curves,
    read_metrics,
    sample_table,
)
from lit_rlhf.demo.report_schema import Curve
from lit_rlhf.demo.vader import VaderReward
from lit_rlhf.modules import PPOModule, RewardModule, SFTModule
from lit_rlhf.modules.normalizing import NormalizerConfig
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.rollout import Sampling
from tests.models.examples import save_policy
from tests.support.tiny_models import llama_config
from tests.support.tokenizer import tiny_tokenizer

WORDS = ("good", "bad", "a fine film", "dull", "great fun", "so so", "no plot", "I love it")
PROMPTS = [f"Movie review: {word} and" for word in WORDS]
GROUPS = [
    {
        "prompt": "Movie review:",
        "responses": [f" {word}" for word in WORDS[:4]],
        "ratings": [[3, -2, 4, -1], [2, -2, None, -3], [0, 1, 2, -2]],
    },
    {
        "prompt": "Movie review:",
        "responses": [f" {word}" for word in WORDS[4:7]],
        "ratings": [[3, 0, -3], [2, 0, 0]],
    },
    {
        "prompt": "Movie review:",
        "responses": [" never looked at", " nor this"],
        "ratings": [[4, -4], [4, -4]],
    },
]
STEEP = OptimizerConfig(learning_rate=0.02, schedule="constant", warmup_fraction=0.0)


def write_lines(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Each phase's checkpoint after one step from a lively policy, and the data files."""
    folder = tmp_path_factory.mktemp("run")
    groups = write_lines(folder / "groups.jsonl", GROUPS)
    prompts = write_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    texts = write_lines(
        folder / "texts.jsonl", [{"prompt": "Movie review:", "response": f" {w}"} for w in WORDS]
    )
    policy = str(save_policy(folder / "policy"))

    def fit(name, module, data):
        lightning.seed_everything(len(name), verbose=False)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
        )
        with warnings.catch_warnings():
            # PPO's frozen reference is meant to be in eval mode.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
            trainer.fit(module, data)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
        return str(folder / f"{name}.ckpt")

    def reward_model(name):
        normalizer = NormalizerConfig(prompts, num_samples=8, max_new_tokens=6)
        module = RewardModule(sft, optimizer=STEEP, normalizer=normalizer)
        return fit(name, module, RewardDataModule(sft, train=groups, batch_size=3))

    sft = fit("sft", SFTModule(policy), SFTDataModule(policy, train=texts, batch_size=8))
    ppo = PPOModule(sft, VaderReward(), optimizer=STEEP, sampling=Sampling(max_new_tokens=6))
    return SimpleNamespace(
        groups=groups,
        prompts=prompts,
        sft=sft,
        reward=reward_model("reward"),
        judge=reward_model("other judge"),
        ppo=fit("ppo", ppo, PPODataModule(sft, train=prompts, batch_size=8)),
    )


def load_plainly(checkpoint, prefix, model_class):
    """Return transformers' own float32 model with the checkpoint's weights."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    model = model_class(llama_config(attn_implementation="eager")).eval()
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model, state


@torch.no_grad()
def plain_scores(checkpoint, texts, *, normalized):
    """Score complete texts one by one: the head on the state of the closing EOS."""
    trunk, state = load_plainly(checkpoint, "reward_model.backbone.", LlamaModel)
    tokenizer = tiny_tokenizer()
    raw = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        last = trunk(ids).last_hidden_state[0, -1]
        raw.append(float(last @ state["reward_model.head.linear.weight"][0]))
    if normalized:
        mean, deviation = float(state["reward_model.mean"]), float(state["reward_model.deviation"])
        return (np.array(raw) - mean) / deviation
    return np.array(raw)


# The reward model --------------------------------------------------------------------------


def test_reward_model_against_transformers_and_numpy(run):
    figures = measure_reward_model(run.reward, run.groups, 2, "32-true")

    scores, means, predicted, human = [], [], [], []
    for group in GROUPS[:2]:
        texts = [group["prompt"] + response for response in group["responses"]]
        group_scores = plain_scores(run.reward, texts, normalized=False)
        ratings = np.array(group["ratings"], float)  # [labelers, texts], NaN where not rated
        scores += list(group_scores)
        means += list(np.nanmean(ratings, axis=0))
        for a, b in combinations(range(len(texts)), 2):
            gaps = ratings[:, a] - ratings[:, b]
            share = np.mean((np.sign(gaps[~np.isnan(gaps)]) + 1) / 2)
            odds = np.exp(group_scores[a] - group_scores[b])
            predicted += [odds / (1 + odds), 1 / (1 + odds)]
            human += [share, 1 - share]
    predicted, human = np.array(predicted), np.array(human)

    assert np.std(predicted) > 0.1  # else the figures below would show little
    assert figures.brier_score == pytest.approx(np.mean((predicted - human) ** 2), abs=1e-5)
    expected_bins = []
    for index in range(10):
        in_bin = (predicted * 10).astype(int) == index
        if in_bin.any():
            row = (predicted[in_bin].mean(), human[in_bin].mean(), in_bin.sum() / 2)
            expected_bins.append(row)
    bins = [(row.predicted, row.human, row.weight) for row in figures.calibration]
    np.testing.assert_allclose(bins, expected_bins, atol=1e-5)
    error = sum(weight * abs(p - h) for p, h, weight in expected_bins) / (len(predicted) / 2)
    assert figures.calibration_error == pytest.approx(error, abs=1e-5)
    for found, gap in ((figures.accuracy, 0.0), (figures.accuracy_wide, 1.0)):
        pairs = [
            (scores[a] - scores[b]) * (means[a] - means[b]) > 0
            for a, b in combinations(range(len(means)), 2)  # of texts of different groups, too
            if abs(means[a] - means[b]) > gap
        ]
        assert found == pytest.approx((np.mean(pairs), len(pairs)))


def test_reward_model_in_bfloat16_says_about_the_same(run):
    in_bfloat16 = measure_reward_model(run.reward, run.groups, 3, "bf16-mixed")
    in_float32 = measure_reward_model(run.reward, run.groups, 3, "32-true")
    assert in_bfloat16.brier_score != in_float32.brier_score
    assert in_bfloat16.brier_score == pytest.approx(in_float32.brier_score, abs=0.02)
    assert sum(row.weight for row in in_bfloat16.calibration) == 6 + 3 + 1


# The policies ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(run):
    """The figures of three policies, the last equal to the first, and the samples behind them."""
    samples, collect = [], measuring.collect_samples

    def collect_and_keep(*arguments, **settings):
        samples.append(collect(*arguments, **settings))
        return samples[-1]

    policies = {"sft": run.sft, "ppo": run.ppo, "dpo": run.sft}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "collect_samples", collect_and_keep)
        figures = measure_policies(
            policies, run.reward, run.judge, run.prompts, 6, 4, 3, "bf16-mixed"
        )
    return figures, dict(zip([*policies, "best of"], samples, strict=True))


def test_every_policy_answers_the_same_prompts(measured):
    figures, samples = measured
    assert list(figures.prompts) == PROMPTS[:6]
    for name in ("sft", "ppo", "dpo"):
        assert len(figures.responses[name]) == 6
        assert figures.responses[name] == samples[name].responses
        assert figures.finished[name] == pytest.approx(samples[name].finished.double().mean())
        assert list(figures.scores[name]) == ["reward", "validation", "vader"]
        assert all(scores.shape == (6,) for scores in figures.scores[name].values())


def test_equal_policies_are_equal_in_everything(measured):
    figures, _ = measured
    assert figures.kl["sft"] == figures.kl["dpo"] == 0.0
    assert figures.responses["dpo"] == figures.responses["sft"]
    assert figures.responses["ppo"] != figures.responses["sft"]
    assert figures.dpo_win_rate.value == 0.5


@torch.no_grad()
def test_kl_to_the_sft_policy_against_transformers(run, measured):
    figures, samples = measured
    rows = samples["ppo"].rows
    totals = []
    for checkpoint in (run.ppo, run.sft):
        model, _ = load_plainly(checkpoint, "policy.model.", LlamaForCausalLM)
        total = 0.0
        for ids, length, mask in zip(*rows, strict=True):
            logprobs = model(ids[None, :length]).logits[0].log_softmax(-1)
            at = mask[:length].nonzero().squeeze(-1)
            total += float(logprobs[at - 1, ids[at]].sum())
        totals.append(total)
    expected = (totals[0] - totals[1]) / len(rows.lengths)
    assert abs(expected) > 1
    assert figures.kl["ppo"] == pytest.approx(expected, rel=0.02)


def test_scores_against_transformers_and_vader(run, measured):
    figures, _ = measured
    texts = [
        prompt + response
        for prompt, response in zip(figures.prompts, figures.responses["ppo"], strict=True)
    ]
    scores = figures.scores["ppo"]
    for judge, checkpoint in (("reward", run.reward), ("validation", run.judge)):
        expected = plain_scores(checkpoint, texts, normalized=True)
        np.testing.assert_allclose(scores[judge], expected, atol=0.03 * np.abs(expected).max())
    vader = SentimentIntensityAnalyzer()
    expected = [
        vader.polarity_scores(text.removeprefix("Movie review:"))["compound"] for text in texts
    ]
    np.testing.assert_allclose(scores["vader"], expected, atol=1e-6)
    assert not np.allclose(scores["reward"], scores["validation"])


def test_the_best_samples_are_those_that_the_reward_chose(run, measured):
    figures, samples = measured
    batch = samples["best of"]
    assert batch.prompts == [prompt for prompt in PROMPTS[:4] for _ in range(16)]
    texts = [prompt + text for prompt, text in zip(batch.prompts, batch.responses, strict=True)]
    proxy, validation = (
        plain_scores(checkpoint, texts, normalized=True).reshape(4, 16)
        for checkpoint in (run.reward, run.judge)
    )
    assert list(figures.best_of) == [4, 16]
    for n, scores in figures.best_of.items():
        tolerance = 0.03 * np.abs(validation).max()
        for row in range(4):
            # In bfloat16 another one that is about as good may be chosen.
            best = proxy[row, :n].max()
            about = np.abs(proxy[row, :n] - best) < 0.06 * np.abs(proxy).max()
            assert np.abs(validation[row, :n][about] - scores[row]).min() < tolerance
    # None of them is the sample that the SFT policy is judged by.
    assert batch.responses[::16] != list(figures.responses["sft"][:4])


# What is derived from them -----------------------------------------------------------------


@pytest.fixture
def figures():
    """Made-up scores of four prompts."""

    def scores(validation, vader):
        return {"validation": np.array(validation, float), "vader": np.array(vader, float)}

    return PolicyFigures(
        prompts=["p0", "p1", "p2", "p3"],
        responses={name: [f"{name}{i}" for i in range(4)] for name in ("sft", "ppo", "dpo")},
        scores={
            "sft": scores([0, 2, 4, 6], [0, 0, 0.5, 0.5]),
            "ppo": scores([3, 5, 7, 9], [0.5, 0, 0.5, 1]),
            "dpo": scores([1, 1, 4, 7], [0, 0, 0, 0]),
        },
        kl={"sft": 0.0, "ppo": 4.321, "dpo": 1.0},
        distinct_2={"sft": 0.9, "ppo": 0.8765, "dpo": 0.9},
        finished={"sft": 1.0, "ppo": 0.5, "dpo": 1.0},
        best_of={16: np.array([1.0, 1.0])},
    )


def test_gains_and_win_rate(figures):
    gain = figures.validation_gain
    assert gain.value == pytest.approx(3 / np.sqrt(20 / 3))  # deviation of 0, 2, 4, 6
    assert gain.low == pytest.approx(gain.high) == pytest.approx(gain.value)
    assert figures.vader_gain.value == pytest.approx(0.25)
    assert figures.dpo_win_rate.value == pytest.approx(2.5 / 4)  # win, loss, tie, win
    assert {gain.n, figures.vader_gain.n, figures.dpo_win_rate.n} == {4}


def test_standings_are_ordered_by_kl_and_paired_by_prompt(figures):
    standings = {standing.policy: standing for standing in figures.standings}
    assert list(standings) == ["SFT", "DPO", "SFT, best of 16", "PPO"]
    best = standings["SFT, best of 16"]
    assert best.kl == pytest.approx(np.log(16) - 15 / 16)
    assert best.validation_reward == 1.0
    # On the two prompts that both answered: 1 against 0 and 2, 1 and 1, 3 and 5.
    assert [(match.opponent, match.win_rate, match.n) for match in best.matches] == [
        ("SFT", 0.5, 2),
        ("DPO", 0.5, 2),
        ("PPO", 0.0, 2),
    ]
    against_sft = standings["DPO"].matches[0]
    assert against_sft.win_rate == figures.dpo_win_rate.value
    assert against_sft.interval == figures.dpo_win_rate[1:3]
    assert against_sft.n == 4


def test_notes_name_every_policy_with_its_figures(figures):
    notes = figures.notes()
    assert [note.partition(":")[0] for note in notes] == ["SFT", "PPO", "DPO"]
    for part in ("4.32 nats", "validation 6.00", "vader 0.50", "50 %", "0.876"):
        assert part in notes[1]


def test_sample_table_shows_the_first_prompts(figures, monkeypatch):
    monkeypatch.setattr(measuring, "NUM_SHOWN", 2)
    first, second = sample_table(figures)
    assert (first.prompt, second.prompt) == ("p0", "p1")
    assert [response.policy for response in second.responses] == ["SFT", "PPO", "DPO"]
    assert second.responses[1].text == "ppo1"
    assert second.responses[1].scores == {"validation": 5.0, "vader": 0.0}


# The curves of PPO -------------------------------------------------------------------------

# As the CSVLogger leaves it: validation after the second and the fourth iteration, and rows of
# other metrics between.
METRICS = """\
epoch,learning_rate,step,train/ppo/kl,train/ppo/kl_coef,train/ppo/reward,val/ppo/validation,val/ppo/vader
,0.1,0,,,,,
0,,0,0.0,0.05,-0.5,,
0,,1,1.5,0.04,0.25,,
0,,1,,,,0.5,0.1
0,,2,4.0,0.03,0.75,,
1,,3,6.0,0.04,1.5,,
1,,3,,,,0.75,0.25
"""


def ppo_folder(folder: Path, controller):
    (folder / "metrics.csv").write_text(METRICS)
    config = f"""
trainer:
  callbacks:
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {{filename: policy}}
  - class_path: lit_rlhf.callbacks.AdaptiveKLCallback
    init_args: {{controller: {controller}}}
  - class_path: lit_rlhf.callbacks.SampleTableCallback
"""
    (folder / "config.yaml").write_text(config)
    return folder


def test_curves_are_ordered_by_iteration(tmp_path):
    folder = ppo_folder(
        tmp_path, "{class_path: lit_rlhf.objectives.AdaptiveKL, init_args: {target: 4}}"
    )
    curves = ppo_curves(read_metrics(folder / "metrics.csv"), folder)
    assert curves.kl == Curve((1, 2, 3, 4), (0.0, 1.5, 4.0, 6.0))
    assert curves.kl_coefficient == Curve((1, 2, 3, 4), (0.05, 0.04, 0.03, 0.04))
    assert curves.reward == Curve((1, 2, 3, 4), (-0.5, 0.25, 0.75, 1.5))
    assert curves.validation_reward == Curve((2, 4), (0.5, 0.75))
    assert curves.vader == Curve((2, 4), (0.1, 0.25))
    assert curves.kl_target == 4.0


def test_a_fixed_coefficient_has_no_target(tmp_path):
    folder = ppo_folder(
        tmp_path, "{class_path: lit_rlhf.objectives.FixedKL, init_args: {coefficient: 0.05}}"
    )
    assert ppo_curves([], folder).kl_target is None


def test_metrics_leave_out_empty_cells(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[0] == {"learning_rate": 0.1, "step": 0.0}
    assert rows[3] == {"epoch": 0.0, "step": 1.0, "val/ppo/validation": 0.5, "val/ppo/vader": 0.1}
