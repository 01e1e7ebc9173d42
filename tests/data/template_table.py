"""Chat templates against kinds of chats: has a row the template's tokens, and what is learned?

`python -m tests.data.template_table` writes docs/reference/chat-templates.md. The templates are
our own short ones in templates/, in the forms of the models that they are named after.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data.chat_template import Renderer
from lit_rlhf.data.tokenization import tokenize_prompts, tokenize_rows
from lit_rlhf.errors import DataError
from lit_rlhf.prompts import ChatWithTools, content_text

FOLDER = Path(__file__).parent / "templates"
PAGE = Path(__file__).parents[2] / "docs/reference/chat-templates.md"

CHATML = ("<|im_start|>", "<|im_end|>")
COHERE = (
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
BAR = "\N{FULLWIDTH VERTICAL LINE}"
DEEPSEEK = tuple(
    f"<{BAR}{word}{BAR}>"
    for word in ("User", "Assistant", "tool▁call▁begin", "tool▁call▁end", "tool▁sep")
)


@dataclass(frozen=True)
class Form:
    """What a template's tokenizer has, and how a turn of the assistant looks in it.

    Attributes:
        kind: of the tokenizer, "bytes" or "sentencepiece".
        special: special tokens that the template writes, beside BOS and EOS.
        eos: the tokenizer's.
        end: what a learned answer ends with.
        earlier_end: what those before the last one end with, where that differs.
        call_end: what a learned call ends with, where that differs.
        plain: what stands in front of a learned answer without thinking.
        thought: how thinking is written.
        takes_parts: the template reads content as parts; `needs_parts`: only so.
    """

    kind: str = "bytes"
    special: tuple[str, ...] = ()
    eos: str = "</s>"
    end: str = "</s>"
    earlier_end: str | None = None
    call_end: str | None = None
    plain: str = ""
    thought: str = "<think>{}</think>"
    takes_parts: bool = False
    needs_parts: bool = False


def _chatml(**settings):
    return Form(special=CHATML, eos="<|im_end|>", end="<|im_end|>", **settings)


def _sentences(**settings):
    return Form(kind="sentencepiece", **settings)


FORMS = {
    "alpaca": _sentences(),
    "aya": Form(special=COHERE, eos=COHERE[1], end=COHERE[1]),
    "chatml_eos_once": Form(special=CHATML, end="<|im_end|>"),
    "chatml_on_llama": _sentences(earlier_end="<|im_end|>", end="<|im_end|></s>"),
    "command_r": Form(
        special=COHERE, eos=COHERE[1], plain=COHERE[5], end=COHERE[6] + COHERE[1],
        thought=COHERE[5] + "<think>{}</think>",
    ),
    "deepseek_r1": Form(special=DEEPSEEK, plain="</think>", thought="{}</think>"),
    "deepseek_v3": Form(special=DEEPSEEK),
    "falcon": Form(eos="<|endoftext|>", end="<|endoftext|>", earlier_end=""),
    "falcon3": Form(eos="<|endoftext|>", end="<|endoftext|>"),
    "gemma2": _sentences(
        special=("<start_of_turn>", "<end_of_turn>"), eos="<eos>", end="<end_of_turn>"
    ),
    "gemma3": _sentences(
        special=("<start_of_turn>", "<end_of_turn>"), eos="<eos>", end="<end_of_turn>",
        takes_parts=True,
    ),
    "glm4": Form(
        special=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
        eos="<|endoftext|>", end="<|endoftext|>", earlier_end="",
    ),
    "gpt_oss": Form(
        special=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>"),
        eos="<|return|>", end="<|return|>", call_end="<|call|>",
        plain="<|channel|>final<|message|>",
        thought="<|channel|>final<|message|><think>{}</think>",
    ),
    "granite": Form(
        special=("<|start_of_role|>", "<|end_of_role|>"), eos="<|end_of_text|>",
        end="<|end_of_text|>",
    ),
    "hermes": _chatml(),
    "llama2": _sentences(),
    "llama3": Form(
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|end_of_text|>", end="<|eot_id|>",
    ),
    "marked": _chatml(),
    "mistral_v1": _sentences(),
    "mistral_v3": _sentences(special=("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]")),
    "nemotron": _chatml(plain="</think>", thought="{}</think>"),
    "olmo2": Form(eos="<|endoftext|>", end="<|endoftext|>"),
    "openchat": _sentences(
        special=("<|end_of_turn|>",), eos="<|end_of_turn|>", end="<|end_of_turn|>"
    ),
    "phi3_5": _sentences(
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), eos="<|endoftext|>",
        end="<|end|>",
    ),
    "phi4": Form(special=(*CHATML, "<|im_sep|>"), eos="<|im_end|>", end="<|im_end|>"),
    "qwen2_5": _chatml(),
    "qwen3": _chatml(plain="<think></think>"),
    "qwen3_5": _chatml(plain="</think>", thought="{}</think>"),
    "smollm2": _chatml(),
    "smolvlm": Form(
        special=("<|im_start|>", "<end_of_utterance>"), eos="<end_of_utterance>",
        end="<end_of_utterance>", takes_parts=True, needs_parts=True,
    ),
    "stablelm": Form(special=("<|endoftext|>",), eos="<|endoftext|>", end="<|endoftext|>"),
    "tinyllama": _sentences(),
    "vicuna": _sentences(),
    "yi": _chatml(),
    "zephyr": _sentences(),
}  # fmt: skip


def _user(content):
    return {"role": "user", "content": content}


def _assistant(content, **further):
    return {"role": "assistant", "content": content, **further}


def _parts(text):
    return [{"type": "text", "text": text}]


CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
# Kind of chat -> prompt, response, tools.
CHATS = {
    "one turn": ([_user("Name a city.")], (_assistant("Paris is one."),), []),
    "three turns": (
        [_user("Name a city.")],
        (_assistant("Paris."), _user("More!"), _assistant("Rome."), _user("And?"),
         _assistant("Oslo.")),
        [],
    ),
    "system": (
        [{"role": "system", "content": "Be brief."}, _user("Name a city.")],
        (_assistant("Paris."),),
        [],
    ),
    "tools": (
        [_user("Is it warm in Rome?")],
        (_assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "30"},
         _assistant("It is 30.")),
        [TOOL],
    ),
    "thinking": (
        [_user("Name a city.")],
        (_assistant("<think>\nOne of many.\n</think>\n\nParis."),),
        [],
    ),
    "parts": ([_user(_parts("Name a city."))], (_assistant(_parts("Paris.")),), []),
}  # fmt: skip


@cache
def _base(kind):
    """Train a small tokenizer; one of bytes in the form of Llama 3's, or of SentencePiece's."""
    texts = [
        "Name a city. Paris is one. Is it warm in Rome? Be brief.",
        "One of many. It is 30\n\nRome\n\n.",
    ]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=["<unk>", *bytes_], show_progress=False
        )
    tokenizer.train_from_iterator(texts * 4, trainer)
    return tokenizer.to_str()


def tokenizer_of(name):
    """Return the small tokenizer of a template."""
    form = FORMS[name]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_base(form.kind)),
        bos_token="<s>",
        eos_token=form.eos,
        unk_token="<unk>" if form.kind == "sentencepiece" else None,
        additional_special_tokens=list(form.special),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    if "</think>" in fast.chat_template:
        fast.add_tokens(["<think>", "</think>"])
    return fast


def outcome(name, kind):
    """Check a cell of the table, and return what it says: how a row's tokens were found.

    Raises:
        AssertionError: tokens are not the template's, or others than the assistant's are learned.
    """
    form, tokenizer = FORMS[name], tokenizer_of(name)
    prompt, response, tools = CHATS[kind]
    chat = ChatWithTools(prompt, tools)
    renderer = Renderer(tokenizer)
    try:
        rows = tokenize_rows(tokenizer, renderer.for_policy(chat, response, "row"))
    except DataError as error:
        return f"refused: {_reason(str(error))}"
    messages = [*prompt, *response]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    words = {
        _outcome_of_row(form, tokenizer, messages[: turn + 1], tools, row, learned)
        for row, turn, learned in (
            [(rows[0], turns[-1], turns)]
            if len(rows) == 1
            else [(row, turn, [turn]) for row, turn in zip(rows, turns, strict=True)]
        )
    }
    (opened,) = tokenize_prompts(renderer, [chat], ["row"])
    assert opened == apply(form, tokenizer, prompt, tools, add_generation_prompt=True)
    assert len(words) == 1
    return words.pop() if len(rows) == 1 else f"{words.pop()}, a row a turn"


def _outcome_of_row(form, tokenizer, messages, tools, row, turns):
    counted = [t for t, counts in zip(row.input_ids, row.response_mask, strict=True) if counts]
    earlier = form.end if form.earlier_end is None else form.earlier_end
    ends = [earlier] * (len(turns) - 1) + [form.end]
    learned = [_turn(form, messages[turn]) + end for turn, end in zip(turns, ends, strict=True)]
    expected = "".join(learned)
    call = messages[turns[0]].get("tool_calls")
    found = _squeeze(tokenizer.decode(counted))
    if call:  # each template has markup of its own for calls
        call_end = form.call_end or form.end
        expected = learned[-1] if len(turns) > 1 else call_end
        for word in ("weather", "city", "Rome", call_end):
            assert word in found
        assert found.endswith(expected)
        assert "Name" not in found
        assert "warm" not in found
        assert "30" not in found.removesuffix(expected)
    else:
        assert found == expected, (found, expected)
    whole = apply(form, tokenizer, messages, tools)
    opened = apply(form, tokenizer, messages[:-1], tools, add_generation_prompt=True)
    if row.input_ids == whole:
        return "equal" if whole[: len(opened)] == opened else "equal, joined"
    *before, last = row.input_ids
    if last == tokenizer.eos_token_id and whole[: len(before)] == before:
        assert not tokenizer.decode(whole[len(before) :]).strip()
        return "equal, then EOS"
    assert row.input_ids[: len(opened)] == opened
    assert not any(row.response_mask[: len(opened)])
    return "as at inference"


def _turn(form, message):
    """Return what is learned of a turn before its end, without white space."""
    thought, mark, answer = content_text(message).rpartition("</think>")
    if mark:
        answer = form.thought.format(thought.removeprefix("<think>")) + answer
    else:
        answer = form.plain + answer
    return _squeeze(answer)


def apply(form, tokenizer, messages, tools, **settings):
    """Return the tokens that transformers gives for a chat, in a form that the template takes."""
    messages = [dict(message) for message in messages]
    for message in messages:
        if not form.takes_parts and message["content"] is not None:
            message["content"] = content_text(message)
        if form.needs_parts:
            message["content"] = _parts(content_text(message))
    return tokenizer.apply_chat_template(messages, tools=tools or None, **settings)["input_ids"]


def _reason(error):
    for phrase, reason in {
        "leaves out the tool": "no place for tools",
        "leaves out a part": "no place for calls",
        "close the thinking": "prompts close the thinking",
        "refuses this chat": error.rpartition("chat: ")[2],
    }.items():
        if phrase in error:
            return reason
    return error


def _squeeze(text):
    return "".join(text.split())


_HEAD = """\
# Chat templates

What becomes of six kinds of chats with {count} chat templates, checked by `tests/data`. The \
templates are our own short ones, in the forms of the models that they are named after. Write this \
page again by `python -m tests.data.template_table`.

| cell | meaning |
| --- | --- |
| equal | the row's tokens are those of `apply_chat_template(tokenize=True)` of the whole chat |
| equal, then EOS | likewise; the template ends a turn by no special token, so EOS follows |
| equal, joined | likewise; the tokenizer joins the prompt's last line break and the response's \
first. At inference they are two tokens, and a warning says so |
| as at inference | the template drops the thinking, or opens it in prompts alone. The row is the \
prompt with `add_generation_prompt`, then what the model is to write |
| a row a turn | the template renders a turn differently once others follow, so each is a row |
| refused | with the reason |

In every cell only the assistant's turns are learned, with the token that ends them, and PPO's \
prompt has the tokens of `add_generation_prompt=True`.
"""


def page():
    """Return the page."""
    lines = [
        f"| template | {' | '.join(CHATS)} |",
        "| --- |" + " --- |" * len(CHATS),
        *(
            f"| `{name}` | {' | '.join(outcome(name, kind) for kind in CHATS)} |"
            for name in sorted(FORMS)
        ),
    ]
    return _HEAD.format(count=len(FORMS)) + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
