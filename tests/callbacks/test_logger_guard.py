import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.callbacks import guard_loggers
from tests.support.reporting import ReportingModule, quiet_trainer


class Lost(CSVLogger):
    """A backend that is gone after its first row."""

    num_calls = 0

    def log_metrics(self, metrics, step=None):
        self.num_calls += 1
        if self.num_calls > 1:
            raise ConnectionError("the server is gone")
        super().log_metrics(metrics, step)

    def finalize(self, status):
        raise ConnectionError("still gone")


def trained(folder, logger):
    guard_loggers([logger])
    trainer = quiet_trainer(folder, logger=[logger], max_epochs=3)
    trainer.fit(ReportingModule())
    return trainer


# Of the module that is trained: loaders without workers.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_lost_logger_is_reported_once_and_training_goes_on(tmp_path):
    with pytest.warns(UserWarning, match="the server is gone") as warned:
        trainer = trained(tmp_path, Lost(tmp_path))
    messages = [str(one.message) for one in warned if "the server is gone" in str(one.message)]
    assert messages == [
        "Lost.log_metrics failed: ConnectionError: the server is gone. Training goes on without "
        "what it should have logged (error 1)"
    ]
    assert trainer.global_step == 6
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").exists()


def test_an_interrupt_is_no_error_of_the_logger(tmp_path):
    logger = CSVLogger(tmp_path)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    logger.save = interrupt
    guard_loggers([logger])
    with pytest.raises(KeyboardInterrupt):
        logger.save()
