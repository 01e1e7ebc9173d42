"""Private names of other libraries: a short list, each with its reason and a test of its meaning.

An upgrade may change them without a word. What is found in the package must be listed here, and
what is listed must be found.
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from jsonargparse import ArgumentParser, _typehints

import lit_rlhf
from lit_rlhf.objectives import PreferenceLoss
from tests.support.tiny_models import tiny_model

PACKAGE = Path(lit_rlhf.__file__).parent


class Use(NamedTuple):
    """One name, the file that it is behind, the release that was looked at, and the reason."""

    file: str
    seen_in: str
    reason: str


# An upgrade of constraints.txt has each of them looked at again.
ALLOWED = {
    "_foreach_copy_": Use(
        "models/kv_cache.py", "torch==2.13.0", "the copy of many tensors in one launch, as FSDP's"
    ),
    "_linear_pointwise": Use(
        "cpu/decoding.py", "torch==2.13.0", "the product with a packed weight"
    ),
    "_reorder_linear_weight": Use(
        "cpu/decoding.py", "torch==2.13.0", "torch packs weights only inside torch.compile"
    ),
    "_typehints": Use(
        "class_changes.py", "jsonargparse==4.53.0", "it keeps settings of another class"
    ),
    "_version": Use("models/weights.py", "torch==2.13.0", "the count of the writes to a tensor"),
}
# Underscores that the library's own pages tell its users to write.
DOCUMENTED = {
    "_attn_implementation": Use(
        "models/backbone.py", "transformers==5.23.0", "its page on inference backends"
    ),
    "_python_dispatch": Use(
        "dry_run/live_bytes.py", "torch==2.13.0", "TorchDispatchMode: its page Extending PyTorch"
    ),
    "_subclasses": Use(
        "dry_run/live_bytes.py", "torch==2.13.0", "FakeTensorMode: its page Fake tensor"
    ),
}
# Likewise, everywhere: named tuples, SQLAlchemy rows, os.
PUBLIC = {"_asdict", "_exit", "_fields", "_mapping", "_replace"}
_BY_NAME = ("getattr", "hasattr", "setattr", "delattr")


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def defined_in(tree):
    """Return the names that a module or its classes define."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.update([node.attr] if _is_self(node.value) else [])
    return names


def used_in(tree):
    """Yield each private name that a module reads of an object, and whether that is `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr, _is_self(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _BY_NAME:
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, _is_self(node.args[0])
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lit_rlhf"):
            for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                yield name, False
        elif isinstance(node, ast.Import):
            yield from ((part, False) for alias in node.names for part in alias.name.split("."))


def _is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign_names(sources):
    """Return the files of each private name that the package does not define itself.

    Of `self` a name may be defined in any module, since classes inherit; of all else in its own.
    """
    trees = {file: ast.parse(source) for file, source in sources.items()}
    own = {file: defined_in(tree) for file, tree in trees.items()}
    of_self = set().union(*own.values())
    found = {}
    for file, tree in trees.items():
        for name, is_self in used_in(tree):
            if is_private(name) and name not in (of_self if is_self else own[file]):
                found.setdefault(name, set()).add(file)
    return found


def inherited_names():
    """Return the files of each private name that a class of ours shares with a foreign base."""
    found = {}
    for module in pkgutil.walk_packages(lit_rlhf.__path__, "lit_rlhf."):
        if (
            module.name.endswith("__main__")
            or ".vllm" in module.name
            or ".migrations" in module.name
        ):
            continue
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ != module.name:
                continue
            for base in cls.__mro__[1:]:
                if base.__module__.startswith(("torch", "lightning", "transformers", "peft")):
                    for name in _own_names(cls) & (_own_names(base) | vars(base).keys()):
                        file = Path(inspect.getfile(cls)).relative_to(PACKAGE)
                        found.setdefault(name, set()).add(str(file))
    return found


def _own_names(cls):
    try:
        return set(re.findall(r"(?:self\.|def )(_[a-z]\w*)", inspect.getsource(cls)))
    except OSError:  # written in C
        return set()


def test_private_names_of_others_are_those_that_are_listed():
    sources = {str(file.relative_to(PACKAGE)): file.read_text() for file in PACKAGE.rglob("*.py")}
    found = foreign_names(sources)
    for name, files in inherited_names().items():
        found.setdefault(name, set()).update(files)
    files_of = {name: [use.file] for name, use in (ALLOWED | DOCUMENTED).items()}
    assert {name: sorted(files) for name, files in found.items()} == files_of


def test_the_list_is_short_and_names_the_releases_that_the_tests_have():
    assert len(ALLOWED) <= 5
    pins = (PACKAGE.parent / "constraints.txt").read_text(encoding="utf-8").split()
    assert {use.seen_in for use in (ALLOWED | DOCUMENTED).values()} <= set(pins)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tensor._version", {"_version"}),
        ("getattr(config, '_commit_hash', None)", {"_commit_hash"}),
        ("setattr(model, '_hook', 1)", {"_hook"}),
        ("from torch._C import thing", {"_C"}),
        ("from torch import _thing", {"_thing"}),
        ("import torch._dynamo", {"_dynamo"}),
        ("self._trainer", {"_trainer"}),
        ("self._own", set()),
        ("one._own", set()),
        ("row._replace(a=1)", set()),
        ("x.__class__", set()),
    ],
)
def test_what_counts_as_a_private_name_of_others(line, expected):
    source = f"class One:\n    def _own(self): ...\n\n{line}\n"
    assert set(foreign_names({"one.py": source})) == expected


def test_a_private_name_of_another_module_counts_unless_it_is_of_self():
    sources = {"one.py": "class One:\n    def _version(self): ...", "two.py": "tensor._version"}
    assert foreign_names(sources) == {"_version": {"two.py"}}
    sources["two.py"] = "self._version"
    assert foreign_names(sources) == {}


def test_argparse_lists_its_options():
    parser = argparse.ArgumentParser()
    own = parser.add_argument("--own")
    assert [action.dest for action in parser._actions] == ["help", own.dest]


def test_a_configuration_tells_its_attention():
    model = tiny_model(attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_a_packed_weight_multiplies_as_the_plain_one():
    inputs, weight, bias = torch.randn(3, 1, 5), torch.randn(4, 5), torch.randn(4)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    product = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    torch.testing.assert_close(product, torch.nn.functional.linear(inputs, weight, bias))


def test_many_tensors_are_copied_in_place():
    whole, other = torch.zeros(3, 2), torch.arange(6.0).view(3, 2)
    torch._foreach_copy_([whole[0], whole[2]], [other[1], other[0]])
    assert whole.tolist() == [[2, 3], [0, 0], [0, 1]]


def test_torch_counts_the_writes_to_a_tensor():
    tensor = torch.zeros(2)
    before = tensor._version
    tensor.add_(1)
    assert tensor._version == before + 1


def test_jsonargparse_asks_one_function_what_another_class_keeps(monkeypatch):
    changes = set()

    def ask(parser, before, value):
        changes.add((before and before["class_path"], value["class_path"]))

    monkeypatch.setattr(_typehints, "discard_init_args_on_class_path_change", ask)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--path", type=PreferenceLoss)
    parser.parse_args(["--path=lit_rlhf.objectives.DPO", "--path=lit_rlhf.objectives.IPO"])
    assert ("lit_rlhf.objectives.DPO", "lit_rlhf.objectives.IPO") in changes
