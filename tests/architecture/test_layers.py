import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_packages_import_only_from_the_rows_above_them():
    """The contracts of pyproject.toml: layers, pure objectives, no torch where labelers work."""
    # A process of its own: import-linter's logging set-up would disable every logger that exists.
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
