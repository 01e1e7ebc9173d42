from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

REPOSITORY = Path(__file__).parents[2]


def test_packages_import_only_from_the_rows_above_them(monkeypatch, capsys):
    """The contracts of pyproject.toml: layers, pure objectives, no torch where labelers work."""
    monkeypatch.chdir(REPOSITORY)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, show_timings=False)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out
