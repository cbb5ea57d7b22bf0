"""What a run of training is resumed from: one .safetensors file for a step, and which of these are kept.

No state of a random generator is in it: what is drawn depends on the seed and on the step alone (see pairs.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch

from dped_live.errors import OutputError, TrainingError
from dped_live.training.configuration import Configuration
from dped_live.training.trainer import Losses, Trainer
from dped_live.weights import replace_file

FORMAT = "dped-live training 2"


@dataclass(slots=True)
class Progress:
    """How far a run has come.

    step: updates that are done. best_psnr, best_step: the highest PSNR on the test set, and when that was.
    sums, summed: of the losses of the last steps, since the last evaluation, and how many steps these are.
    """

    step: int = 0
    best_psnr: float = float("-inf")
    best_step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * len(Losses._fields))
    summed: int = 0


def path_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06}.safetensors"


def saved_steps(run: Path) -> list[int]:
    """The steps that there is a checkpoint of, in order."""
    names = [path.name for path in (run / "checkpoints").glob("step_*.safetensors")]
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)\.safetensors", name)))


def save(run: Path, trainer: Trainer, progress: Progress, configuration: Configuration) -> None:
    """Write the checkpoint of this step: the whole new file, or none. Raises OutputError if it cannot be written."""
    path = path_of(run, progress.step)
    metadata = {
        "format": FORMAT,
        "configuration": json.dumps(asdict(configuration)),
        "progress": json.dumps(asdict(progress)),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trainer.tensors().items()}
    try:
        replace_file(path, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}; make room and add --resume") from error


def load(run: Path, trainer: Trainer, configuration: Configuration) -> Progress:
    """Restore the last checkpoint of a run.

    Raises TrainingError if there is none, if the run has another configuration, or if the file is damaged.
    """
    steps = saved_steps(run)
    if not steps:
        raise TrainingError(f"{run}: no checkpoint to resume from; delete this folder and leave out --resume")
    path = path_of(run, steps[-1])
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise TrainingError(f"{path}: not a checkpoint of this version of dped-live; begin another run")
            begun = json.loads(metadata["configuration"])
            progress = Progress(**json.loads(metadata["progress"]))
            configuration.expect_same(Configuration(**begun))
            shapes = {name: (list(x.shape), x.dtype) for name, x in trainer.tensors().items()}
            # Copied, because these lie in the file as long as they live.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (safetensors.SafetensorError, OSError) as error:
        raise TrainingError(f"{path}: damaged; delete it to resume from the checkpoint before it") from error
    if {name: (list(x.shape), x.dtype) for name, x in tensors.items()} != shapes:
        raise TrainingError(f"{path}: it holds other tensors than it should; delete it")
    trainer.restore(tensors)
    return progress


def remove_others(run: Path, keep: int, best_step: int) -> None:
    """Delete all checkpoints but the last `keep` and that of the best step."""
    for step in saved_steps(run)[:-keep]:
        if step != best_step:
            path_of(run, step).unlink(missing_ok=True)
