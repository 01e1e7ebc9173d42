import logging
import warnings

import pytest

from lit_rlhf import cli, data, quiet


@pytest.fixture
def quietened():
    """Be quiet in this test alone."""
    names = (*quiet._SILENT_LOGGERS, *quiet._LIGHTNINGS_LOGGERS)
    before = {name: [*logging.getLogger(name).filters] for name in names}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet.quieten()
        yield caught
    for name, filters in before.items():
        logging.getLogger(name).filters = filters


def record(path, level):
    return logging.LogRecord("any", level, path, 1, "text", (), None)


def test_our_lines_and_all_warnings_of_lightning_are_shown(quietened):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    ours, theirs = data.__file__, "/site-packages/lightning/pytorch/trainer/setup.py"
    assert logger.filter(record(ours, logging.INFO))
    assert not logger.filter(record(theirs, logging.INFO))
    assert logger.filter(record(theirs, logging.WARNING))
    assert not logging.getLogger("torchao").filter(record(theirs, logging.WARNING))
    assert logging.getLogger("torchao").filter(record(theirs, logging.ERROR))


def test_repeated_warnings_of_others_are_left_out_and_ours_stay(quietened):
    warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
    warnings.warn("The number of training batches (2) is smaller than", UserWarning, stacklevel=1)
    log = "It is recommended to use `self.log('{}', ..., sync_dist=True)` when logging on epoch"
    warnings.warn(log.format("val/sft/loss"), UserWarning, stacklevel=1)
    warnings.warn(log.format("my_own"), UserWarning, stacklevel=1)
    warnings.warn("float16 is slow on this machine", UserWarning, stacklevel=1)
    shown = [log.format("my_own"), "float16 is slow on this machine"]
    assert [str(one.message) for one in quietened] == shown


@pytest.mark.parametrize("words", [["fit", "--model.policy", "x"], ["fit", "--verbose"]])
def test_verbose_shows_all_and_is_no_option_of_the_phase(monkeypatch, words):
    calls = []
    monkeypatch.setattr("lit_rlhf.cli.quieten", lambda: calls.append("quiet"))
    monkeypatch.setattr("lit_rlhf.phase_cli.run_phase", lambda *given: calls.append(given))
    assert cli.main(["sft", *words]) == 0
    is_verbose = "--verbose" in words
    given = ("sft", [word for word in words if word != "--verbose"])
    assert calls == ([given] if is_verbose else ["quiet", given])


def test_all_commands_are_quiet_and_take_verbose(monkeypatch):
    calls = []
    monkeypatch.setattr("lit_rlhf.cli.quieten", lambda: calls.append("quiet"))
    monkeypatch.setattr("lit_rlhf.data.show.data_command", lambda words: calls.append(words) or 0)
    cli.main(["data", "show"])
    cli.main(["data", "show", "--verbose"])
    assert calls == ["quiet", ["show"], ["show"]]
