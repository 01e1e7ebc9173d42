"""What README and docs show is true.

Conventions: a block ```yaml PHASE is put behind `configs/PHASE.yaml` and parsed by that phase; a
block whose first line is a comment with a file name (`# my_losses.py`) can be named by the
commands of any page; every `lit-rlhf ...` line of a shell block is parsed; a table row that
begins with an option and its default, both in backticks, is compared with the code.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
PHASES = ("sft", "reward", "ppo", "dpo", "online-dpo")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")
OPTION_ROW = re.compile(r"^\| `([\w.]+)` \| (?:`([^`]*)`|(required)) \|", flags=re.MULTILINE)
RUN = ("README.md", "docs/guides/python.md")  # by test_python_examples
SHARED_OPTIONS = DOCS / "concepts" / "configuration.md"
MONITOR_OPTIONS = DOCS / "guides" / "overoptimization.md"


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(kinds):
    """Yield page, kind and text of every fenced block of these kinds."""
    for page in PAGES:
        for kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind.strip() in kinds:
                yield name_of(page), kind.strip(), text


def commands():
    """Yield page and words of every `lit-rlhf` line, without the program's name."""
    for page, _, text in blocks({"", "sh", "bash"}):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):  # PYTHONPATH=.
                words.pop(0)
            if words and words[0].endswith("lit-rlhf"):
                yield page, words[1:]


def write_examples(folder):
    """Write named blocks, and the YAML blocks of phases; return the latter's places."""
    (folder / "configs").symlink_to(ROOT / "configs")
    fragments = []
    for number, (page, kind, text) in enumerate(
        blocks({"python", *(f"yaml {phase}" for phase in PHASES)})
    ):
        if kind == "python" and page in RUN:
            continue
        named = FILE_NAME.match(text)
        file = folder / (named.group(1) if named else f"block_{number}.yaml")
        assert not file.exists(), f"{page}: another block is named {file.name}, too"
        assert named or kind != "python", f"{page}: begin the Python block with '# FILE.py'"
        file.write_text(text, encoding="utf-8")
        if kind != "python":
            fragments.append((f"{page}: {text[:60]!r}", kind.removeprefix("yaml "), file.name))
    return fragments


def documented_options():
    """Return page, option and default of every table row that begins with them."""
    return [
        (page, option, "required" if required else yaml.safe_load(default))
        for page in PAGES
        for option, default, required in OPTION_ROW.findall(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_has_both_sides_of_a_merge(page):
    markers = re.compile(r"^(<{7}|={7}|>{7})( |$)", flags=re.MULTILINE)
    assert not markers.search(page.read_text(encoding="utf-8"))


def test_commands_yaml_blocks_and_defaults_are_those_of_the_command_line(tmp_path):
    fragments = write_examples(tmp_path)
    options = documented_options()
    request = {
        "commands": list(commands()),
        "fragments": fragments,
        "modules": [file.stem for file in tmp_path.glob("*.py")],
        "classes": sorted({name.split(".")[0] for _, name, _ in options if name[0].isupper()}),
    }
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("parse_examples.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert request["commands"]
    assert fragments
    problems = [f"{place}: {message}" for place, message in answer["failures"]]
    problems += wrong_defaults(options, answer["defaults"])
    problems += undocumented(options, answer["defaults"])
    assert not problems, "\n".join(problems)


def wrong_defaults(options, defaults):
    """List the documented options that do not exist or have another default."""
    wrong = []
    for page, option, documented in options:
        owner, _, field = option.partition(".")
        if owner[0].isupper():
            found = [defaults[owner].get(field, "no such option")]
        elif page.parent.name == "methods":
            found = [defaults[page.stem].get(option, "no such option")]
        elif owner in (
            "model",
            "data",
            "kl",
            "monitor",
        ):  # of any phase that has it
            found = [defaults[phase][option] for phase in PHASES if option in defaults[phase]]
        else:
            continue
        wrong += [
            f"{name_of(page)}: `{option}` is {value!r}, the page says {documented!r}"
            for value in found or ["no such option"]
            if not agree(value, documented)
        ]
    return wrong


def agree(value, documented):
    if documented == "required":
        return value in (None, "required")
    if isinstance(value, str) and value.startswith("lit_rlhf."):  # a class path
        return value.rpartition(".")[2] == documented
    return value == documented


def undocumented(options, defaults):
    """List the options of each phase that neither its page nor the shared one names."""
    missing = []
    for phase in PHASES:
        pages = {DOCS / "methods" / f"{phase}.md", SHARED_OPTIONS, MONITOR_OPTIONS}
        if phase == "online-dpo":  # which draws responses as PPO does
            pages.add(DOCS / "methods" / "ppo.md")
        named = {option for page, option, _ in options if page in pages}
        missing += [
            f"{phase}: `{option}` stands on neither page"
            for option in sorted(defaults[phase].keys() - named)
        ]
    return missing


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
    for link in links:
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", sorted((DOCS / "decisions").glob("*.md")), ids=name_of)
def test_a_decision_is_a_short_record(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    for part in ("Context", "Choice", "Rejected", "Consequence"):
        assert f"**{part}.**" in text


def test_every_page_stands_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        path = page.relative_to(DOCS).as_posix()
        assert path == "index.md" or f"]({path})" in index, f"{path} is not in docs/index.md"


def test_the_walks_name_files_that_are_there():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z_/]+\.py)` \|", page, re.MULTILINE)
    assert named
    assert [name for name in named if not (DOCS.parent / "lit_rlhf" / name).is_file()] == []


# Metrics -----------------------------------------------------------------------------------

# Names that the code puts together: template -> (file, part of it that lists the names).
LISTS_OF_NAMES = {
    "train/ppo/{name}": [
        ("ppo.py", "_report"),
        ("ppo_metrics.py", "iteration_means"),
        ("ppo_update.py", "minibatch_loss"),
        ("ppo_update.py", "report"),
        ("mixing.py", "mix_in"),
        ("ppo_metrics.py", "sampler_gap"),
    ],
    "val/PHASE/{name}": [("ppo_metrics.py", "held_out_columns")],
    "train/dpo/{name}": [("preference.py", "preference_losses")],
    "val/dpo/{name}": [("preference.py", "preference_losses")],
    "train/online_dpo/{name}": [
        ("online_dpo.py", "training_step"),
        ("online_dpo.py", "_compare"),
        ("online_dpo.py", "_sample_means"),
        ("preference.py", "preference_losses"),
    ],
    "val/reward/{name}": [("reward.py", "validation_step")],
}
MODULES = ROOT / "lit_rlhf" / "modules"


def logged_templates():
    """Yield the first argument of every `log(...)`, as a template."""
    for file in (*MODULES.glob("*.py"), *(ROOT / "lit_rlhf" / "callbacks").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "log":
                name = node.args[0]
                if isinstance(name, ast.Constant | ast.JoinedStr):
                    text = ast.unparse(name).removeprefix("f").strip("'\"")
                    text = text.replace("{self.stage}", "val").replace("{self._phase}", "ppo")
                    yield text.replace("{self.phase}", "PHASE")


def names_in(file, part):
    """Collect the names that a function assigns to, or that a constant or a call lists."""
    names = set()
    for node in ast.walk(ast.parse((MODULES / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == part:
            for statement in ast.walk(node):
                if isinstance(statement, ast.Assign):
                    names |= keys_and_items(statement)
        is_constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == part
        is_call = isinstance(node, ast.Call) and getattr(node.func, "id", None) == part
        if is_constant or is_call:
            names |= keys_and_items(node)
    return names


def keys_and_items(tree):
    """Return the strings that stand as keys, subscripts or items of lists and tuples."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found += node.keys
        elif isinstance(node, ast.List | ast.Tuple):
            found += node.elts
        elif isinstance(node, ast.Subscript):
            found.append(node.slice)
    return {
        item.value
        for item in found
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }


def test_every_logged_metric_is_documented():
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    templates = set(logged_templates())
    assert {template for template in templates if "{" in template} == LISTS_OF_NAMES.keys()
    logged = {template for template in templates if "{" not in template}
    for template, parts in LISTS_OF_NAMES.items():
        names = {part: names_in(*part) for part in parts}
        assert all(names.values()), f"no names found: {names}"
        shown = template.replace("val/PHASE", "val/ppo")  # whose names online DPO shares
        logged |= {shown.format(name=name) for part in names.values() for name in part}
    assert sorted(name for name in logged if f"`{name}`" not in page) == []
