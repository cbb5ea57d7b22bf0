"""The figures of a run: log.csv, a row for each evaluation, and on request the same for TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from dped_live.errors import OutputError, TrainingError
from dped_live.weights import replace_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """The rows so far, and where new ones go."""

    def __init__(self, run: Path, step: int, board: type[SummaryWriter] | None) -> None:
        """Take up the log of a run at a step: rows of later steps, which are to be done again, are dropped.

        board: what `summary_writer` returns, to write for TensorBoard too. Raises TrainingError if log.csv is no log.
        """
        self._path = run / "log.csv"
        self._rows: list[dict[str, str]] = []
        if self._path.exists():
            try:
                with self._path.open(newline="", encoding="utf-8") as file:
                    self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise TrainingError(f"{self._path}: cannot be read; move it away") from error
        self._board = board(str(run / "tensorboard"), purge_step=step + 1) if board else None

    def add(self, step: int, figures: dict[str, float | None]) -> None:
        """Add a row; None where there is no figure. The file is the old one or the whole new one at any time."""
        row = {"step": str(step)}
        row |= {name: "" if value is None else f"{value:.6g}" for name, value in figures.items()}
        self._rows.append(row)
        text = io.StringIO()
        table = csv.DictWriter(text, list(row))
        table.writeheader()
        table.writerows(self._rows)
        try:
            replace_file(self._path, text.getvalue().encode())
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}; make room and add --resume") from error
        if self._board:
            for name, value in figures.items():
                if value is not None:
                    self._board.add_scalar(name.replace("_", "/", 1), value, step)
            self._board.flush()


def summary_writer() -> type[SummaryWriter]:
    """TensorBoard's, which is an optional part. Raises TrainingError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError('--tensorboard needs TensorBoard; run pip install "tensorboard>=2.19"') from error
    return SummaryWriter
