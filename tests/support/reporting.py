"""A module that trains nothing but logs a metric and leaves samples, for callbacks and loggers."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader


class ReportingModule(pl.LightningModule):
    """One weight; logs `train/loss` and leaves three validation samples."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.validation_samples = []

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self):
        self.validation_samples = []

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.weight * batch).square().mean())
        number = int(batch)
        self.validation_samples.append(
            {"prompt": f"prompt {number}", "response": "bien sûr\n", "score": number / 2}
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader([1.0, 2.0])

    def val_dataloader(self):
        return DataLoader([0.0, 1.0, 2.0])


def quiet_trainer(folder, **changes):
    """Return a CPU trainer that writes nothing but what is asked for."""
    options = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**options | changes)
