import pytest
import torch

from lit_rlhf.batches import PromptBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.rollout import Generation, Generator, Sampling, TorchGenerator, collect_samples
from lit_rlhf.rollout.generation import decode_responses, join_rows, stop_token_ids
from tests.support.tokenizer import tiny_tokenizer

# Two prompts of 3 and 1 tokens; two samples of each, of 1 to 4 tokens.
PROMPTS = torch.tensor([[11, 12, 13], [21, 99, 99]])
GENERATION = Generation(
    tokens=torch.tensor([[1, 2, 99, 99], [3, 4, 5, 6], [7, 99, 99, 99], [8, 9, 10, 99]]),
    lengths=torch.tensor([2, 4, 1, 3]),
    finished=torch.tensor([True, False, True, True]),
    logprobs=torch.zeros(4, 4),
)


class Canned(Generator):
    """Answers with the generation above, and remembers what it was asked."""

    def __call__(
        self, policy, prompts, sampling, *, stop_ids, decode=None, samples_per_prompt=1, seed=0
    ):
        self.asked = (stop_ids, samples_per_prompt, seed, sampling)
        return GENERATION


def prompt_batch():
    return PromptBatch(
        input_ids=PROMPTS,
        lengths=torch.tensor([3, 1]),
        prompt_ids=torch.tensor([40, 7]),
        prompts=["one", "two"],
        fields=[{"topic": "a"}, {"topic": "b"}],
    )


def collect(policy, generator, sampling):
    options = {"samples_per_prompt": 2, "seed": 3}
    return collect_samples(policy, generator, prompt_batch(), tiny_tokenizer(), sampling, **options)


def test_rows_are_as_wide_as_the_longest_of_them():
    # The prompt with the most tokens has the shortest response, and the other way round.
    generation = GENERATION._replace(lengths=torch.tensor([1, 1, 2, 3]))
    rows = join_rows(PROMPTS[[0, 0, 1, 1]], torch.tensor([3, 3, 1, 1]), generation)
    assert rows.input_ids.tolist() == [
        [11, 12, 13, 1],
        [11, 12, 13, 3],
        [21, 7, 99, 0],
        [21, 8, 9, 10],
    ]


def test_samples_of_a_prompt_stand_together_with_all_that_belongs_to_them(policies):
    samples = collect(policies(), Canned(), Sampling(max_new_tokens=4))
    assert samples.prompt_lengths.tolist() == [3, 3, 1, 1]
    assert samples.group_ids.tolist() == [0, 0, 1, 1]
    assert samples.prompts == ["one", "one", "two", "two"]
    assert [field["topic"] for field in samples.fields] == ["a", "a", "b", "b"]
    assert samples.finished.tolist() == [True, False, True, True]
    assert samples.rows.lengths.tolist() == [5, 7, 2, 4]
    assert samples.response_mask.int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 0, 0, 0],
        [1, 1, 1, 0],
    ]
    assert samples.response_mask.sum() == samples.rows.response_mask.sum()


def test_the_generator_is_told_all(policies):
    generator = Canned()
    sampling = Sampling(max_new_tokens=4, temperature=0.7)
    collect(policies(), generator, sampling)
    assert generator.asked == ([tiny_tokenizer().eos_token_id], 2, 3, sampling)


def test_responses_are_texts_without_special_tokens():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer("so it is")["input_ids"], tokenizer("no")["input_ids"]]
    end = tokenizer.eos_token_id
    tokens = torch.tensor([ids[0], [*ids[1], end, *([5] * (len(ids[0]) - 3))]])
    generation = Generation(
        tokens, torch.tensor([8, 3]), torch.tensor([False, True]), torch.zeros(tokens.shape)
    )
    assert decode_responses(tokenizer, generation) == ["so it is", "no"]


def test_real_samples_are_read_back_as_their_texts(policies):
    tokenizer = tiny_tokenizer()
    samples = collect_samples(
        policies(), TorchGenerator(), prompt_batch(), tokenizer, Sampling(max_new_tokens=6)
    )
    for row, text in enumerate(samples.responses):
        tokens = samples.rows.input_ids[row][samples.rows.response_mask[row]]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
        assert bool(samples.finished[row]) is (int(tokens[-1]) == tokenizer.eos_token_id)
    assert samples.group_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("own", "configured", "expected"),
    [("<|im_end|>", 2, [2]), ("<|im_end|>", [0, 5], [0, 2, 5]), (None, 7, [7]), ("a", None, [3])],
)
def test_stop_tokens_are_those_of_tokenizer_and_model(
    monkeypatch, own, configured, expected, policies
):
    tokenizer, policy = tiny_tokenizer(), policies()
    tokenizer.eos_token, tokenizer.chat_template = own, None
    monkeypatch.setattr(policy.transformers_config, "eos_token_id", configured)
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", None)
    assert stop_token_ids(tokenizer, policy) == expected


def test_the_generation_config_and_the_chat_template_stop_a_response(monkeypatch, policies):
    tokenizer, policy = tiny_tokenizer(), policies()
    tokenizer.eos_token = "a"  # the template ends turns by <|im_end|>
    monkeypatch.setattr(policy.transformers_config, "eos_token_id", 3)
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", [3, 7])
    assert stop_token_ids(tokenizer, policy) == [2, 3, 7]


def test_a_model_that_could_never_stop_is_refused(policies, monkeypatch):
    tokenizer, policy = tiny_tokenizer(), policies()
    tokenizer.eos_token = tokenizer.chat_template = None
    monkeypatch.setattr(policy.transformers_config, "eos_token_id", None)
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", None)
    with pytest.raises(ConfigError, match="names an EOS token"):
        stop_token_ids(tokenizer, policy)
