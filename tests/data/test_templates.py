import logging

import pytest

from lit_rlhf.data.chat_template import Renderer, warn_once
from lit_rlhf.data.tokenization import tokenize_rows
from lit_rlhf.errors import DataError
from tests.data.template_table import CHATS, FOLDER, FORMS, PAGE, outcome, tokenizer_of


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("name", sorted(FORMS))
def test_rows_have_the_templates_tokens(name, kind):
    """And the assistant's are learned; or the chat is refused. The page says which."""
    (line,) = [x for x in PAGE.read_text(encoding="utf-8").splitlines() if f"| `{name}` |" in x]
    cells = dict(zip(CHATS, line.strip("| ").split(" | ")[1:], strict=True))
    assert outcome(name, kind) == cells[kind]


def test_each_template_is_in_the_table():
    assert {path.stem for path in FOLDER.glob("*.jinja")} == set(FORMS)


HI = ({"role": "user", "content": "Hi"},)
THOUGHT = ({"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."},)
PLAIN = ({"role": "assistant", "content": "Yes."},)


def learned(name, response, **settings):
    """Return prompt and learned text of the one row that a response gives."""
    tokenizer = tokenizer_of(name)
    renderer = Renderer(tokenizer, **settings)
    (row,) = tokenize_rows(tokenizer, renderer.for_policy(HI, response, "f:1"))
    tokens = list(zip(row.input_ids, row.response_mask, strict=True))
    counted = tokenizer.decode([token for token, counts in tokens if counts])
    prompt = tokenizer.decode(row.input_ids[: row.response_mask.index(True)])
    assert prompt == renderer.prompt(HI, "f:1").pieces[0].text
    return prompt, counted


def test_options_of_a_template_open_and_close_the_thinking():
    prompt, counted = learned("deepseek_v3", THOUGHT, options={"thinking": True})
    assert prompt.endswith("<think>")
    assert counted == "Hm.</think>\n\nYes.</s>"
    prompt, counted = learned("qwen3_5", PLAIN, options={"enable_thinking": False})
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert counted == "Yes.<|im_end|>"
    with pytest.raises(DataError, match="f:1: prompts close the thinking"):
        learned("qwen3_5", THOUGHT, options={"enable_thinking": False})


def test_thinking_can_be_dropped():
    options = {"enable_thinking": False}
    keyed = ({"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."},)
    for response in (THOUGHT, keyed):
        assert learned("qwen3", response, thinking="drop") == learned("qwen3", PLAIN)
        both = learned("qwen3_5", response, thinking="drop", options=options)
        assert both == learned("qwen3_5", PLAIN, options=options)
        assert learned("qwen2_5", response, thinking="drop")[1] == "Yes.<|im_end|>"


def test_thinking_is_learned_wherever_a_row_has_it():
    keyed = ({"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."},)
    for name in ("qwen3", "qwen3_5", "deepseek_r1"):
        assert learned(name, keyed) == learned(name, THOUGHT)
    assert learned("gpt_oss", keyed)[1] == (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Yes.<|return|>"
    )


def test_a_reward_model_that_reads_no_thinking_says_so_once(caplog):
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING)
    tokenizer = tokenizer_of("deepseek_r1")
    for _ in range(2):
        text = Renderer(tokenizer).for_reward(HI, THOUGHT, "f:1").pieces[0].text
        assert text == tokenizer.apply_chat_template([*HI, *THOUGHT], tokenize=False)
    assert caplog.text.count("leaves out a part of some scored responses") == 1


def test_a_prompt_that_is_joined_to_its_response_is_named(caplog):
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING)
    tokenizer = tokenizer_of("qwen3_5")
    texts = Renderer(tokenizer).for_policy(HI, PLAIN, "f:1")
    assert texts == Renderer(tokenizer).for_policy(HI, "Yes.", "f:1")
    tokenize_rows(tokenizer, texts)
    assert "a prompt has other tokens in front of its response" in caplog.text


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("phi3_5", "<|end|>"),
        ("gemma2", "<end_of_turn>"),
        ("command_r", "<|END_OF_TURN_TOKEN|>"),
        ("chatml_eos_once", "<|im_end|>"),
        ("gpt_oss", "<|return|>"),
        ("llama2", "</s>"),
        ("glm4", None),
    ],
)
def test_which_token_ends_a_turn(name, token):
    assert Renderer(tokenizer_of(name)).end_of_turn == token
