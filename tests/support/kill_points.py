"""Places at which a run sends itself a signal: with SIGKILL, what a power cut leaves behind.

`install("PLACE:N")` patches the product in this process (a child that is about to run) so that
the N-th visit to the place is its last moment, or the one at which it is asked to end.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

# In the order of a run. "write": in the middle of a checkpoint's bytes. "renamed": the checkpoint
# is in its place, its folder not synced and nothing logged yet.
PLACES = ("decoding", "step", "batch", "row", "write", "rename", "renamed", "validation", "sample")
OF_PPO_ALONE = ("decoding", "sample")

_signal = signal.SIGKILL


def install(point: str, number: int = signal.SIGKILL) -> None:
    """Arm one place of `PLACES`, as "PLACE:N".

    Args:
        point: the place, and which visit to it.
        number: of the signal. After another one than SIGKILL the run goes on.
    """
    global _signal  # noqa: PLW0603 - the process is patched anyway
    _signal = number
    place, _, visit = point.partition(":")
    _ARMING[place](_Countdown(int(visit)))


class _Countdown:
    """Counts visits down; the last one does not return."""

    def __init__(self, num_visits: int):
        self._num_left = num_visits

    def is_over(self) -> bool:
        self._num_left -= 1
        return self._num_left == 0


def _die():
    os.kill(os.getpid(), _signal)


def _before(owner: object, name: str, countdown: _Countdown, *, after: bool = False) -> None:
    original: Callable = getattr(owner, name)

    def patched(*args, **kwargs):
        is_over = countdown.is_over()
        if is_over and not after:
            _die()
        result = original(*args, **kwargs)
        if is_over:
            _die()
        return result

    setattr(owner, name, patched)


def _decoding(countdown):
    from lit_rlhf.rollout import decoding  # noqa: PLC0415

    owner = next(
        one for one in vars(decoding).values() if isinstance(one, type) and hasattr(one, "_draw")
    )
    _before(owner, "_draw", countdown, after=True)


def _step(countdown):
    from torch.optim import AdamW  # noqa: PLC0415

    _before(AdamW, "step", countdown, after=True)


def _batch(countdown):
    from lit_rlhf.callbacks import LastCheckpoint  # noqa: PLC0415

    _before(LastCheckpoint, "on_train_batch_end", countdown, after=True)


def _row(countdown):
    """Die with half of the rows of `metrics.csv` written."""
    from lit_rlhf.callbacks.csv_logger import MetricsFile  # noqa: PLC0415

    original = MetricsFile.save

    def save(self):
        if self.metrics and countdown.is_over():
            path = Path(self.metrics_file_path)
            text = path.read_text() if path.exists() else ""
            original(self)
            whole = path.read_text()
            num_new = max(2, len(whole) - len(text))
            path.write_text(whole[: len(whole) - num_new // 2])
            _die()
        original(self)

    MetricsFile.save = save


def _write(countdown):
    """Die in the middle of what `torch.save` hands over at one time."""
    from lit_rlhf import checkpoints  # noqa: PLC0415

    class Torn:
        def __init__(self, file):
            self._file = file

        def write(self, content):
            if countdown.is_over():
                self._file.write(bytes(content)[: len(bytes(content)) // 2])
                self._file.flush()
                _die()
            return self._file.write(content)

        def flush(self):
            self._file.flush()

    save = torch.save

    def torn_save(content, file, **options):
        # With options it is a tensor on its way to another process, and no checkpoint.
        return save(content, file if options else Torn(file), **options)

    checkpoints.torch.save = torn_save


def _rename(countdown):
    """Die with the checkpoint written, in front of its rename."""
    from lit_rlhf import whole_files  # noqa: PLC0415

    replace = os.replace

    def patched(source, target):
        if str(target).endswith(".ckpt") and countdown.is_over():
            _die()
        replace(source, target)

    whole_files.os.replace = patched


def _renamed(countdown):
    from lit_rlhf import whole_files  # noqa: PLC0415

    sync = whole_files.sync

    def patched(path):
        if path.name == "checkpoints" and countdown.is_over():
            _die()
        sync(path)

    whole_files.sync = patched


def _validation(countdown):
    from lit_rlhf import modules  # noqa: PLC0415

    for name in ("SFTModule", "RewardModule", "DPOModule", "PPOModule"):
        _before(getattr(modules, name), "validation_step", countdown, after=True)


def _sample(countdown):
    """Die with half of the rows of a validation in `samples.jsonl`."""
    from lit_rlhf.callbacks import samples  # noqa: PLC0415

    original = samples._append

    def append(path, rows):
        if not countdown.is_over():
            original(path, rows)
            return
        before = path.read_bytes() if path.exists() else b""
        original(path, rows)
        whole = path.read_bytes()
        path.write_bytes(whole[: (len(before) + len(whole)) // 2])
        _die()

    samples._append = append


_ARMING = {
    "decoding": _decoding,
    "step": _step,
    "batch": _batch,
    "row": _row,
    "write": _write,
    "rename": _rename,
    "renamed": _renamed,
    "validation": _validation,
    "sample": _sample,
}
