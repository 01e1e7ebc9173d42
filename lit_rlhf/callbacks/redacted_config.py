"""The run's `config.yaml`, without secrets, once the run has begun."""

from __future__ import annotations

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lit_rlhf.redaction import redact


class RedactedConfig(SaveConfigCallback):
    """Saves the run's configuration as Lightning does, without passwords and keys."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: a run that is refused leaves the file of an earlier one."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `config.yaml` into the run's folder."""
        if self.already_saved:
            return
        folder = trainer.log_dir  # on every rank: Lightning agrees on it by a broadcast
        assert folder is not None
        if trainer.is_global_zero:
            files = get_filesystem(folder)  # which may be remote
            files.makedirs(folder, exist_ok=True)
            text = self.parser.dump(self.config, skip_none=False)
            with files.open(f"{folder}/{self.config_filename}", "w", encoding="utf-8") as file:
                file.write(redact(text))
        self.already_saved = True

    on_validation_start = on_test_start = on_fit_start
