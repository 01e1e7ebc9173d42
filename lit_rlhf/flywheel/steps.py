"""The steps of a round: what each was made from, what it left, and skipping what is finished.

Each step has a record, such as `4-reward.json` in the round's folder: its inputs as plain values
(digests of files and folders), its output, and the output's digest, which is null as long as the
step is under way. So a run that is started again skips what is finished, and goes on with the rest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.cache import digest_file
from lit_rlhf.errors import ConfigError, DataError, TrainingError
from lit_rlhf.whole_files import write_text_whole, written_whole

TIMINGS = "timings.jsonl"


class StepRecord(NamedTuple):
    """What the record of a step says.

    Attributes:
        inputs: all that the output depends on, as plain values.
        sha256: of the output; None as long as the step is under way.
    """

    inputs: dict[str, Any]
    sha256: str | None


def run_step(
    record: Path, output: Path, inputs: Mapping[str, object], make: Callable[[], None]
) -> str:
    """Run a step, unless it is finished.

    Args:
        record: the file that says what the step was made from, and that it is finished.
        output: file or folder that `make` leaves; a file whole.
        inputs: all that the output depends on.
        make: does it; where an earlier run was killed, it finds what that has left.

    Returns:
        The digest of the output.

    Raises:
        ConfigError: the step was finished from other inputs (the settings were changed), or its
            output is gone or another one.
        DataError: the record is torn.
        TrainingError: `make` left nothing.
    """
    plain = json.loads(json.dumps(inputs, default=str))
    before = read_record(record)
    if before is not None and before.inputs != plain:
        _refuse_other_inputs(record, before, plain)
        clear(output)
        clear(_checkpoints(output))  # from which other inputs must not go on
    elif before is not None and before.sha256 is not None:
        if not output.exists() or digest(output) != before.sha256:
            what = "not what it was any more" if output.exists() else "gone"
            raise ConfigError(
                f"{output}: is {what}, and a finished step left it; {how_to_mend(record)}"
            )
        clear(_checkpoints(output))  # killed just before the end of this function
        return before.sha256
    entry = {"inputs": plain, "output": output.name, "sha256": None}
    write_json(record, entry)
    start = time.monotonic()
    make()
    if not output.exists():
        raise TrainingError(f"step '{record.stem}' left no {output}")
    sha256 = digest(output)
    write_json(record, {**entry, "sha256": sha256})
    with (record.parent / TIMINGS).open("a", encoding="utf-8") as stream:  # a log, and no output
        seconds = round(time.monotonic() - start, 1)
        stream.write(json.dumps({"step": record.stem, "seconds": seconds}) + "\n")
    clear(_checkpoints(output))  # gigabytes that nothing goes on from any more
    return sha256


def is_finished(record: Path) -> bool:
    """Say whether a step is finished."""
    content = read_record(record)
    return content is not None and content.sha256 is not None


def read_record(path: Path) -> StepRecord | None:
    """Return the record of a step, None where there is none.

    Raises:
        DataError: it is torn.
    """
    if not path.exists():
        return None
    with reading(path, "delete it to run its step again"):
        record = read_json(path)
        return StepRecord(dict(record["inputs"]), record["sha256"])


def how_to_mend(record: Path) -> str:
    """Say what to do where the output of a finished step is gone, torn or another one."""
    return f"put it back, or delete {record} and start the run again to run the step again"


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Tell which file is gone, torn or of another version, instead of what failed to read it.

    Args:
        path: what is read inside.
        remedy: what to do.

    Raises:
        DataError: it was not there, or not as expected.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: is gone; {remedy}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is torn, or not of this version and these settings "
            f"({type(error).__name__}: {error}); {remedy}"
        ) from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names."""
    if path.is_file():
        return digest_file(path)
    hashed = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        hashed.update(f"{file.relative_to(path)} {digest_file(file)}\n".encode())
    return hashed.hexdigest()


def digest_source(source: str | Path) -> str:
    """Return the digest of a file or folder, and of a hub name itself."""
    path = Path(source).expanduser()
    return digest(path) if path.exists() else str(source)


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever was written
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    write_text_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file."""
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSONL file, whole or not at all."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def clear(path: Path) -> None:
    """Remove what an unfinished step left."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _checkpoints(output: Path) -> Path:
    """Return where a phase that leaves a model keeps what it resumes from."""
    return output.with_name("checkpoints")


def _refuse_other_inputs(path: Path, record: StepRecord, inputs: Mapping[str, Any]) -> None:
    if record.sha256 is None:
        return
    before = record.inputs
    names = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
    raise ConfigError(
        f"{path}: step '{path.stem}' was finished from other inputs ({', '.join(names)}). Set "
        "the settings back, choose another folder, or delete this file to run the step again; the "
        "judgments in the store stay."
    )
