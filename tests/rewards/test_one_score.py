"""One score for one prompt and response, wherever it is asked for.

The policy and the reward model are of two families: other vocabularies, other chat templates.
"""

import io
import json
import re
from dataclasses import dataclass, field

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lit_rlhf.chat import Speaker, converse
from lit_rlhf.cli import main
from lit_rlhf.data import PPODataModule, RewardDataModule
from lit_rlhf.modules import NormalizerConfig, OptimizerConfig, PPOModule, RewardModule
from lit_rlhf.prompts import prompt_text
from lit_rlhf.rewards import LearnedReward, RewardSource
from lit_rlhf.rollout import Sampling
from tests.models.examples import lively_model, save_policy, shake
from tests.support.phases import phase_trainer, write_rows
from tests.support.tokenizer import _ALPHABET

SHORT = Sampling(max_new_tokens=6)
FAST = OptimizerConfig(learning_rate=1e-2, eps=1e-3, schedule="constant", warmup_fraction=0.0)
close = {"rtol": 0, "atol": 1e-5}

CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "why"},
]
PROMPTS = ["once upon", CHAT, "so it was", CHAT[1:2]]

# The response's end is the chat's end, as in Llama 3; behind it stands a line break, as in
# Zephyr; nothing tells the end, as in many a hand-made template.
TEMPLATES = {
    "llama 3": "{{ '<s>' }}{% for m in messages %}{{ '<h>' + m.role + '</h>' + m.content | trim }}"
    "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<h>assistant</h>' }}{% endif %}",
    "zephyr": "{% for m in messages %}{{ '<h>' + m.role + '\n' + m.content + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<h>assistant\n' }}{% endif %}",
    "bare": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}
families = pytest.mark.parametrize("template", list(TEMPLATES))


def other_tokenizer(template):
    """Return a tokenizer whose ids, special tokens and template are not those of the policy."""
    special = ["<s>", "</s>", "<h>", "</h>", "<pad>", "<unk>"]
    merged = ["as", "yes", "ĊĊ"]
    vocabulary = {t: i for i, t in enumerate([*special, *reversed(_ALPHABET), *merged, "ye"])}
    merges = [("a", "s"), ("y", "e"), ("ye", "s"), ("Ċ", "Ċ")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<h>", "</h>"],
    )
    fast.chat_template = TEMPLATES[template]
    return fast


def save_base(folder, template):
    """Write a language model of the reward model's family, to train a reward model from."""
    lively_model("llama", seed=5).save_pretrained(folder)
    other_tokenizer(template).save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Recorded(RewardSource):
    """Asks another reward, and keeps questions and answers."""

    inner: RewardSource
    kept: list = field(default_factory=list)

    def __call__(self, prompts, responses, batch=None):
        scores = self.inner(prompts, responses, batch)
        self.kept.extend(zip(prompts, responses, scores.tolist(), strict=True))
        return scores


def run_ppo(policy, folder, reward, judges=None, num_iterations=1):
    path = write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    module = PPOModule(policy, reward, judges=judges, optimizer=FAST, sampling=SHORT)
    data = PPODataModule(policy, train=path, validation=path, batch_size=2)
    trainer = phase_trainer(folder, limit_train_batches=num_iterations)
    trainer.fit(module, data)
    return module


@pytest.fixture(scope="module", params=list(TEMPLATES))
def trained(request, tmp_path_factory):
    """Return a reward model that was trained on chats, as a module and as a folder."""
    folder = tmp_path_factory.mktemp("reward")
    base = save_base(folder / "base", request.param)
    rows = [
        {"prompt": prompt, "chosen": f"yes {index}", "rejected": "no"}
        for index, prompt in enumerate([CHAT, CHAT[1:2], "so", CHAT[:2]])
    ]
    path = write_rows(folder / "comparisons.jsonl", rows)
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    normalizer = NormalizerConfig(prompts, num_samples=4, max_new_tokens=4)
    module = RewardModule(base, optimizer=FAST, normalizer=normalizer)
    trainer = phase_trainer(folder, max_epochs=3)
    trainer.fit(module, RewardDataModule(base, train=path, validation=path, batch_size=2))
    module.eval()
    module.save_pretrained(folder / "model")
    return module, str(folder / "model"), base


def scores_in_training(module, base, folder, samples):
    """Return what training's own forward says of samples: raw scores."""
    rows = [{"prompt": p, "chosen": r, "rejected": f"{r} x"} for p, r, _ in samples]
    path = write_rows(folder / "seen.jsonl", rows)
    data = RewardDataModule(base, test=path, batch_size=len(rows), empty_responses="keep")
    data.setup("test")
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        return module.reward_model(batch.rows)[batch.chosen]


def test_five_places_and_training_give_one_score(trained, tmp_path, monkeypatch):
    module, model, base = trained
    policy = str(save_policy(tmp_path / "policy"))
    reward, judge = Recorded(LearnedReward(model)), Recorded(LearnedReward(model, batch_size=1))
    ppo = run_ppo(policy, tmp_path, reward, {"judge": judge})
    samples = reward.kept
    assert any(isinstance(prompt, str) for prompt, *_ in samples)
    assert any(list(prompt) == CHAT for prompt, *_ in samples)
    scores = torch.tensor([score for *_, score in samples])
    assert scores.unique().numel() > 4

    # Training's own forward, and a call.
    raw = scores_in_training(module, base, tmp_path, samples)
    torch.testing.assert_close(module.reward_model.normalize(raw), scores, **close)
    prompts, responses, _ = zip(*samples, strict=True)
    torch.testing.assert_close(LearnedReward(model)(prompts, responses), scores, **close)

    # PPO's judge, which sees the samples of validation, and PPO's table of them.
    asked = LearnedReward(model)([p for p, *_ in judge.kept], [r for _, r, _ in judge.kept])
    torch.testing.assert_close(torch.tensor([s for *_, s in judge.kept]), asked, **close)
    known = {(prompt_text(p), r): score for p, r, score in judge.kept}
    for row in ppo.validation_samples:
        assert row["judge"] == pytest.approx(row["reward"], abs=1e-4)
        assert row["judge"] == pytest.approx(known[row["prompt"], row["response"]], abs=1e-4)

    # `evaluate`: the first response to each prompt, from a file.
    firsts = {json.dumps(p): (p, r, s) for p, r, s in reversed(samples)}.values()
    file = write_rows(tmp_path / "said.jsonl", [{"prompt": p, "response": r} for p, r, _ in firsts])
    options = ["--precision", "32-true", "--output"]
    words = [f"ppo={file}", "--judge", f"rm={model}", *options, str(tmp_path / "policies")]
    assert main(["evaluate", "policies", *words]) == 0
    found = read_samples(tmp_path / "policies", "ppo rm")
    assert found == pytest.approx([score for *_, score in firsts], abs=1e-4)
    judged = [{"prompt": p, "chosen": r + "x", "rejected": r} for p, r, _ in firsts]
    data = write_rows(tmp_path / "judged.jsonl", judged)
    words = [f"rm={model}", "--data", data, *options, str(tmp_path / "rewards")]
    assert main(["evaluate", "rewards", *words]) == 0
    raw = torch.tensor(read_samples(tmp_path / "rewards", "other rm"))
    normalized = module.reward_model.normalize(raw).tolist()
    assert normalized == pytest.approx([score for *_, score in firsts], abs=1e-3)

    # `chat`, which shows three places.
    out, heard = io.StringIO(), Recorded(LearnedReward(model))
    speaker = Speaker("bot", policy, SHORT, "32-true")
    converse([speaker], heard, 0, io.StringIO("hi\nwhy\n"), out)
    expected = scores_in_training(module, base, tmp_path, heard.kept)
    shown = [float(word) for word in re.findall(r"\(reward ([-+.\d]+)\)", out.getvalue())]
    assert shown == pytest.approx(module.reward_model.normalize(expected).tolist(), abs=6e-4)


def read_samples(folder, column):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [json.loads(line)[column] for line in lines]


def test_the_normalizers_promise_holds_for_scores_in_ppo(trained, tmp_path):
    """The policy that a reward model starts from scores 0 on average, with deviation 1."""
    module, model, base = trained
    reward = Recorded(LearnedReward(model))
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    ppo = PPOModule(base, reward, optimizer=FAST, sampling=Sampling(max_new_tokens=4))
    data = PPODataModule(base, train=path, batch_size=4)
    phase_trainer(tmp_path, limit_train_batches=1).fit(ppo, data)
    rows = module._reference_rows
    with torch.no_grad():
        reference = module.reward_model.normalize(module.reward_model(rows))
    assert reference.mean() == pytest.approx(0, abs=1e-5)
    # The same samples, by the same seed and streams, though in another order.
    scores = torch.tensor(sorted(score for *_, score in reward.kept))
    torch.testing.assert_close(scores, reference.sort().values, rtol=0, atol=1e-4)


@families
def test_a_reward_model_of_the_hub_scores_as_plain_transformers(template, tmp_path):
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=4,
    )
    model = LlamaForSequenceClassification(config)
    shake(model, seed=3)
    model.save_pretrained(tmp_path / "hub")
    other_tokenizer(template).save_pretrained(tmp_path / "hub")
    policy = str(save_policy(tmp_path / "policy", "qwen2"))
    reward = Recorded(LearnedReward(str(tmp_path / "hub")))
    run_ppo(policy, tmp_path, reward, num_iterations=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hub").eval()
    reward([CHAT] * 2, ["as", "\n\nas"])  # beginnings that a tokenizer may join to the prompt
    asked = [(p, r, score) for p, r, score in reward.kept if not isinstance(p, str)]
    assert len(asked) >= 4
    for prompt, response, score in asked:
        chat = [*prompt, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logit = plain(input_ids=ids["input_ids"]).logits.item()
        assert score == pytest.approx(logit, abs=1e-5)
