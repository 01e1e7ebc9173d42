"""The same report in Weights & Biases: figures, table of samples, pictures."""

from __future__ import annotations

from pathlib import Path

from lit_rlhf.callbacks import WandbAutoLogger
from lit_rlhf.evaluation.figures import Report
from lit_rlhf.evaluation.report import sample_table

_MAX_CELL = 20_000  # characters of a text in the table: W&B drops tables that are too large


def log_to_wandb(report: Report, folder: Path, project: str) -> None:
    """Send a report, or leave it in the folder where there is no key, see `WandbAutoLogger`.

    Every figure becomes `eval/...` with its interval as `.../low` and `.../high`; figures,
    samples and pictures are beside them. Texts are cut at 20,000 characters.

    Args:
        report: what was found.
        folder: of the report.
        project: the project in Weights & Biases.
    """
    import wandb  # noqa: PLC0415 - a second to import

    logger = WandbAutoLogger(project=project, save_dir=str(folder))
    run = logger.experiment
    run.config.update(dict(report.settings))
    ends = ("", "/low", "/high")
    logger.log_metrics(
        {
            f"{figure.name}{end}": value
            for figure in report.figures
            for end, value in zip(ends, figure.estimate, strict=False)
        }
    )
    rows = [figure.as_json() for figure in report.figures]
    logger.log_table(
        "eval/figures", columns=list(rows[0]), data=[list(row.values()) for row in rows]
    )
    samples = sample_table(report)
    columns = list(dict.fromkeys(name for row in samples for name in row))
    cells = [[_cut(row.get(name)) for name in columns] for row in samples]
    logger.log_table("eval/samples", columns=columns, data=cells)
    for name in report.pictures.values():
        run.log({f"eval/{Path(name).stem}": wandb.Image(str(folder / name))})
    run.finish()


def _cut(value: object) -> object:
    return value[:_MAX_CELL] if isinstance(value, str) else value
