"""Every name that a package exports exists, says what it is for, and is annotated."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import lit_rlhf

PACKAGES = [
    "lit_rlhf",
    *(f"lit_rlhf.{module.name}" for module in pkgutil.iter_modules(lit_rlhf.__path__)),
]
EXPORTED = [
    (package, name)
    for package in PACKAGES
    if not package.endswith("__main__")
    for name in getattr(importlib.import_module(package), "__all__", [])
]


def public_functions(exported):
    """The function itself, or those of a class that are its own and public (and `__init__`)."""
    if inspect.isfunction(exported):
        return {exported.__name__: exported}
    if not inspect.isclass(exported):
        return {}
    return {
        name: inspect.unwrap(getattr(member, "__func__", member))
        for name, member in vars(exported).items()
        if (not name.startswith("_") or name == "__init__")
        and inspect.isroutine(member)
        # Generated ones (of dataclasses and named tuples) have no source of ours.
        and getattr(inspect.unwrap(member), "__module__", None) == exported.__module__
    }


@pytest.mark.parametrize("package", [name for name in PACKAGES if not name.endswith("__main__")])
def test_packages_say_what_they_are(package):
    assert importlib.import_module(package).__doc__


@pytest.mark.parametrize(("package", "name"), EXPORTED)
def test_exported_names_are_documented_and_annotated(package, name):
    exported = getattr(importlib.import_module(package), name)
    if inspect.isclass(exported) or inspect.isfunction(exported):
        # `inspect.getdoc` would take a parent's, a dataclass without one its own signature.
        documentation = exported.__doc__ or ""
        assert documentation, f"{name} has no docstring"
        assert not documentation.startswith(f"{name}("), f"{name} has no docstring"
    for function_name, function in public_functions(exported).items():
        signature = inspect.signature(function)
        missing = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in {"self", "cls"}
        ]
        assert not missing, f"{name}.{function_name}: no annotation of {missing}"
        is_annotated = signature.return_annotation is not signature.empty
        assert is_annotated, f"{name}.{function_name}: no return annotation"
        if function_name != "__init__":
            assert inspect.getdoc(function), f"{name}.{function_name} has no docstring"


def test_something_is_exported():
    assert {"lit_rlhf.objectives", "lit_rlhf.callbacks"} <= {package for package, _ in EXPORTED}


def test_the_package_itself_names_what_its_type_checkers_see():
    """The names under TYPE_CHECKING, those of `__all__`, and what you get are one and the same."""
    (block,) = (
        node
        for node in ast.parse(Path(lit_rlhf.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    )
    homes = {alias.name: part.module for part in block.body for alias in part.names}
    assert sorted(homes) == sorted(lit_rlhf.__all__)
    for name, home in homes.items():
        assert getattr(lit_rlhf, name) is getattr(importlib.import_module(home), name)
    assert set(lit_rlhf.__all__) <= set(dir(lit_rlhf))
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainer'"):
        lit_rlhf.PPOTrainer  # noqa: B018 - looked up on purpose
