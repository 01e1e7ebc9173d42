"""A PostgreSQL server of the tests' own, in a folder that goes when they end."""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

_USER = "feedback"


def _program(name):
    """Return where one of the server's programs is: Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@contextmanager
def postgres_server(*, is_durable=False):
    """Yield the URL of a server on a socket in a folder of its own; skip where there is none.

    Tests need none that outlives a loss of power: waiting for the disk would take most of the time.
    """
    if not _program("initdb") or not _program("pg_ctl"):
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    # The server refuses to run as root.
    as_user = ["setpriv", f"--reuid={_unprivileged()}", "--clear-groups"] if not os.getuid() else []
    # Not in pytest's folder, whose parents only its owner may enter; a socket's path is short.
    folder = tempfile.mkdtemp(prefix="pg-", dir="/tmp")
    try:
        if as_user:
            shutil.chown(folder, _unprivileged())

        def run(*words):
            subprocess.run([*as_user, *words], check=True, cwd=folder, stdout=subprocess.DEVNULL)

        run(_program("initdb"), "-D", f"{folder}/data", "-U", _USER, "--auth=trust", "-N")
        options = f"-k {folder} -c listen_addresses= -c shared_buffers=32MB"
        if not is_durable:
            options += " -c fsync=off -c full_page_writes=off"
        run(_program("pg_ctl"), "-D", f"{folder}/data", "-l", f"{folder}/log", "-w",
            "-o", options, "start")  # fmt: skip
        try:
            yield f"postgresql://{_USER}@/postgres?host={folder}"
        finally:
            run(_program("pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged():
    return pwd.getpwnam("nobody").pw_name
