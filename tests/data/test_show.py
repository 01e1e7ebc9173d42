import io

import pytest

import lit_rlhf.models  # noqa: F401 - now: in a test, warnings of what it imports are errors
from lit_rlhf.cli import main
from lit_rlhf.data import SFTDataModule
from lit_rlhf.data.show import show_rows
from tests.support.tokenizer import save_tiny_tokenizer

CHAT = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
ROWS = {
    "sft": {"messages": CHAT},
    "dpo": {"prompt": CHAT[:1], "chosen": "c", "rejected": "d", "probability": 0.75},
    "reward": {"prompt": "a", "chosen": "c", "rejected": "d"},
    "ppo": {"prompt": "a b"},
    "online-dpo": {"prompt": "a b"},
}
SHOWN = {
    "sft": ["[c] [<|im_end|>] \\n", "1 records, 1 rows,"],
    "dpo": ["row 2 of 2", "row 1 is better than row 2 with probability 0.75, weight 1"],
    "reward": ["a [c] [<|im_end|>]", "a [d] [<|im_end|>]"],
    "ppo": ["a _ b", "3 tokens, 0 learned (0%)"],
    "online-dpo": ["a _ b", "3 tokens, 0 learned (0%)"],
}


@pytest.fixture
def tokenizer(tmp_path):
    return str(save_tiny_tokenizer(tmp_path / "tokenizer"))


@pytest.mark.parametrize("phase", ROWS)
def test_each_phase_shows_its_rows(phase, tokenizer, write_rows, capsys):
    file = write_rows("x.jsonl", [ROWS[phase]])
    assert main(["data", "show", file, "--tokenizer", tokenizer, "--phase", phase]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{file}:1")
    for text in SHOWN[phase]:
        assert text in out
    assert "\x1b" not in out


def test_labels_are_shown_as_such(tokenizer, write_rows, capsys):
    row = {"prompt": "a", "completions": ["b", "c"], "labels": [True, 0.25]}
    file = write_rows("x.jsonl", [row])
    assert main(["data", "show", file, "--tokenizer", tokenizer, "--phase", "reward"]) == 0
    out = capsys.readouterr().out
    assert "a b [\\n] c [<|im_end|>]" in out
    assert "row 1 has the label 1, weight 1\nrow 1 has the label 0.25, weight 1\n" in out


def test_a_tie_is_shown_as_one(tokenizer, write_rows, capsys):
    row = {"prompt": "a", "chosen": "c", "rejected": "d", "probability": 0.5}
    file = write_rows("x.jsonl", [row])
    assert main(["data", "show", file, "--tokenizer", tokenizer, "--phase", "dpo"]) == 0
    assert "rows 1 and 2 are a tie: probability 0.5, weight 1" in capsys.readouterr().out


def test_all_are_counted_and_few_are_shown(tokenizer, write_rows, capsys):
    file = write_rows("x.jsonl", [ROWS["sft"]] * 3)
    assert main(["data", "show", file, "--tokenizer", tokenizer, "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("[c]") == 1
    assert "3 records, 3 rows, 75 tokens, 6 learned (8%); the longest row has 25" in out


def test_a_terminal_gets_colours(tokenizer, write_rows):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    show_rows(SFTDataModule(tokenizer, train=write_rows("x.jsonl", [ROWS["sft"]])), 1, out)
    assert "\x1b[32mc\x1b[0m" in out.getvalue()


def test_a_bad_row_is_named(tokenizer, write_rows, capsys):
    file = write_rows("x.jsonl", [ROWS["sft"], {"prompt": "a"}])
    assert main(["data", "show", file, "--tokenizer", tokenizer]) == 1
    assert f"{file}:2: expected" in capsys.readouterr().err


def test_the_options_of_the_phases_data_are_those_of_the_command(tokenizer, write_rows, capsys):
    rows = [{"q": "a", "chosen": "c", "rejected": "d", "margin": 2}, {"q": "a"}]
    file = write_rows("x.jsonl", rows)
    command = ["data", "show", file, "--tokenizer", tokenizer, "--phase", "reward"]
    options = ["--columns", '{"prompt": "q"}', "--bad-rows=skip", "--data.format", "trl"]
    assert main([*command, *options]) == 0
    out = capsys.readouterr().out
    assert "2 records, 2 rows" in out
    assert f"1 bad rows are skipped, the first: {file}:2: " in out
    assert "nothing uses here: 'margin' (1 rows)" in out
    assert main([*command, *options, "--margin", "true"]) == 0
    out = capsys.readouterr().out
    assert "weight 1, margin 2" in out
    assert "nothing uses" not in out
    template = ["--template", "chat", "--template-options", '{"enable_thinking": false}']
    assert (
        main(
            [
                "data",
                "show",
                file,
                "--tokenizer",
                tokenizer,
                "--columns.response",
                "chosen",
                "--columns.prompt=q",
                "--bad_rows",
                "skip",
                "--learn",
                "last",
                *template,
            ]
        )
        == 0
    )
