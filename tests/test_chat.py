"""`lit-rlhf chat` with tiny models and piped input."""

import io
import subprocess
import sys

import pytest
import torch

from lit_rlhf import chat
from lit_rlhf.chat import Speaker, converse
from lit_rlhf.cli import main
from lit_rlhf.models import ScalarModel, load_tokenizer, load_trunk
from lit_rlhf.rewards import LearnedReward
from lit_rlhf.rollout import Sampling
from tests.models.examples import save_policy, write_reward_model

SHORT = Sampling(max_new_tokens=5)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_policy(folder / "chatty")
    plain = save_policy(folder / "plain", seed=2)
    tokenizer = load_tokenizer(str(plain))
    tokenizer.chat_template = None
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(plain)
    torch.manual_seed(0)
    reward = write_reward_model(folder / "reward", ScalarModel(load_trunk(str(base))), base)
    return str(base), str(plain), str(reward)


def talk(speakers, text, reward=None, seed=0):
    out = io.StringIO()
    converse(speakers, reward, seed, io.StringIO(text), out)
    return out.getvalue()


def test_messages_go_into_the_chat_template_with_all_that_was_said(models):
    speaker = Speaker("bot", models[0], SHORT, "32-true")
    prompt, response, _ = speaker.answer("hi", seed=0)
    assert prompt == ({"role": "user", "content": "hi"},)
    following, _, _ = speaker.answer("and you", seed=1)
    answer, question = ("assistant", response), ("user", "and you")
    assert [(turn["role"], turn["content"]) for turn in following[1:]] == [answer, question]


def test_variables_reach_the_chat_template(models, monkeypatch):
    read = []

    def apply(self, chat, **options):
        read.append(options.get("enable_thinking"))
        return "hi"

    speaker = Speaker("bot", models[0], SHORT, "32-true", {"enable_thinking": False})
    monkeypatch.setattr(type(speaker._tokenizer), "apply_chat_template", apply)
    speaker.answer("hi", seed=0)
    assert read[-1] is None  # the probe for the token that ends a turn
    assert False in read


def test_without_a_template_the_message_is_continued(models):
    speaker = Speaker("bot", models[1], SHORT, "32-true")
    assert speaker.answer("once upon", seed=0)[0] == "once upon"
    assert speaker.answer("again", seed=1)[0] == "again"
    assert speaker.conversation == ()


def test_each_line_is_a_message_and_a_reset_forgets(models):
    speaker = Speaker("bot", models[0], SHORT, "32-true")
    shown = talk([speaker], "hi\n\nhi again\n/reset\nhi\n/quit\nnever\n")
    assert shown.count("bot") == 3
    assert "(a new conversation)" in shown
    assert len(speaker.conversation) == 2  # one message since the reset, and its answer
    assert ">" not in shown  # no prompt for who does not type


def test_two_side_by_side_with_their_rewards(models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "83")
    speakers = [Speaker(name, models[0], SHORT, "32-true") for name in ("left", "right")]
    reward = LearnedReward(models[2])
    lines = talk(speakers, "hi\n", reward).splitlines()
    prompt, response, _ = Speaker("x", models[0], SHORT, "32-true").answer("hi", seed=0)
    score = float(reward([prompt], [response]))
    for side in (lines[0][:40], lines[0][43:]):
        assert f"(reward {score:+.3f})" in side
    assert all(line[40:43] == " | " for line in lines if line)
    assert lines[1][:40] == "-" * 40
    assert lines[0][:40].startswith("left")
    assert lines[0][43:].startswith("right")


def test_what_a_model_writes_does_not_reach_the_terminal_raw(models, monkeypatch):
    speaker = Speaker("bot", models[0], SHORT, "32-true")
    hostile = "\x1b[2Jred\x1b]0;title\x07 \u202eback\r"
    monkeypatch.setattr(Speaker, "answer", lambda self, message, seed: ("p", hostile, True))
    for speakers in ([speaker], [speaker, speaker]):
        shown = talk(speakers, "hi\n")
        assert not set("\x1b\x07\u202e\r") & set(shown)
        assert "\\x1b[2Jred" in shown


def test_the_command_with_piped_input(models):
    words = ["chat", models[0], models[1], "--reward", models[2], "--precision", "32-true"]
    run = subprocess.run(
        [sys.executable, "-m", "lit_rlhf", *words, "--max-new-tokens", "4"],
        input="hi\nyou\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("(reward ") >= 2


@pytest.mark.parametrize("stream", ["<&-", ">&-"])
def test_a_closed_stream_is_no_error(models, stream):
    command = f"{sys.executable} -m lit_rlhf chat {models[0]} --max-new-tokens 2 {stream}"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_what_is_past_the_context_is_said_and_forgotten(models):
    speaker = Speaker("bot", models[0], SHORT, "32-true")
    shown = talk([speaker], "hi\n" + "a b c " * 200_000 + "\nand you\n")
    first, second, third = shown.strip().split("\n\n")
    assert "tokens so far and an answer of up to 5 are more than the" in second
    assert "/reset" in second
    assert "more than the" not in first + third
    assert [turn["role"] for turn in speaker.conversation] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}", "{0}", "{0}"], "one or two policies, got 3"),
        (["./nowhere"], "no such model"),
        (["{2}"], "a policy is needed"),
        (["{0}", "--reward", "./nowhere"], "no such model"),
        (["{0}", "--max-new-tokens", "0"], "max_new_tokens is 0; it must be at least 1"),
    ],
)
def test_what_does_not_work_is_said_in_one_line(models, capsys, words, message):
    words = [word.format(*models) for word in words]
    assert main(["chat", *words, "--precision", "32-true"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_of_who_types(models):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = io.StringIO()
    speaker = Speaker("bot", models[0], SHORT, "32-true")
    converse([speaker], None, 0, Terminal("/quit\n"), out)
    assert out.getvalue() == f"{chat._HELP}\n> "
