"""Training, from the first step to the last: what train_model.py does, and it can be interrupted at any time.

A run is a folder:

    model.safetensors        the generator as it is now, for --model
    best.safetensors         the one with the highest PSNR on the test set
    log.csv                  a row for each evaluation
    crops/step_N.png         test patches: before, after, and the camera's
    checkpoints/step_N.safetensors
    tensorboard/             on request
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dped_live import weights
from dped_live.errors import OutputError, TrainingError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.sinks.images import write_photo
from dped_live.table_network import TableNetwork
from dped_live.training import checkpoint
from dped_live.training.checkpoint import Progress
from dped_live.training.configuration import Configuration
from dped_live.training.discriminator import Discriminator
from dped_live.training.initialise import initialise
from dped_live.training.log import Log, summary_writer
from dped_live.training.losses import RECIPES
from dped_live.training.pairs import Notify, Pairs, PatchBatches, batches
from dped_live.training.processes import Processes
from dped_live.training.trainer import Losses, Trainer, resolve_precision
from dped_live.training.validation import Validation, ValidationScores


class Outcome(NamedTuple):
    """How a run ended: after how many steps, whether for `stop`, and when PSNR on the test set was highest."""

    step: int
    interrupted: bool
    best_step: int
    best_psnr: float


def train(
    pairs: Pairs,
    run: Path,
    configuration: Configuration,
    *,
    steps: int,
    features: nn.Module | None = None,
    init: Network | None = None,
    processes: Processes | None = None,
    resume: bool = False,
    workers: int = 0,
    evaluate_every: int = 1000,
    keep: int = 3,
    tensorboard: bool = False,
    notify: Notify = lambda _line: None,
    progress: Callable[[int, Losses], None] = lambda _step, _losses: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a network on pairs of pictures, and write the run's folder.

    features: what the content loss compares (vgg.load_features); None leaves this term out.
    init: the network to start from, of the configuration's kind and size; None starts from random values.
    processes: those that train together (processes.joined); the first alone writes, and calls notify and progress.
    resume: go on from the last checkpoint, on the CPU to the very bits that an uninterrupted run would have come to.
    evaluate_every: steps. The test set is measured, and a checkpoint written, before the first step, after every so
    many, and after the last. keep: so many of the last checkpoints are kept, and the best.
    progress: called after each step, with the steps that are done and the losses.
    stop: asked after each step; once it says yes in any process, a checkpoint is written and that is all.

    Raises TrainingError if the folder is not as `resume` says, if another configuration is to be resumed, or if a
    loss or a gradient is not finite; the last checkpoint is from before that. Raises other children of DpedError if
    pictures cannot be read, files not written, or the device does not have the precision.
    """
    processes = processes or Processes(torch.device("cpu"))
    if processes.is_first:
        expect_usable(run, resume)
    board = summary_writer() if tensorboard and processes.is_first else None
    patches = PatchBatches(
        pairs.train,
        configuration.seed,
        batch_size=configuration.batch,
        patch_size=configuration.patch,
        augment=configuration.augment,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    validation = Validation(pairs.test, configuration.patch, configuration.batch, configuration.seed, processes)
    trainer = _trainer(configuration, features, init, processes)
    state = checkpoint.load(run, trainer, configuration) if resume else Progress()
    if steps < state.step:
        raise TrainingError(f"{run}: {state.step} steps are done already; type a larger --steps than {steps}")
    if processes.is_first:
        _make(run / "checkpoints")
        _make(run / "crops")
    record = _Record(run, configuration, keep, Log(run, state.step, board)) if processes.is_first else None

    def evaluate() -> None:
        scores = validation.scores(trainer)
        if scores.psnr > state.best_psnr:
            state.best_psnr, state.best_step = scores.psnr, state.step
        means = Losses(*(value / state.summed for value in state.sums)) if state.summed else None
        state.sums, state.summed = [0.0] * len(Losses._fields), 0
        if record:
            notify(_line(state.step, means, scores))
            record.evaluated(trainer, validation, state, means, scores)

    step = state.step
    try:
        if not resume:
            evaluate()
        for batch in batches(patches, range(state.step, steps), workers):
            step += 1
            losses = trainer.step(batch)
            state.step = step
            state.sums = [total + value for total, value in zip(state.sums, losses, strict=True)]
            state.summed += 1
            if record:
                for note in batch.notes:
                    notify(note)
                progress(step, losses)
            stopping = processes.any(stop())
            if step % evaluate_every == 0 or step == steps:
                evaluate()
            elif stopping and record:
                record.save(trainer, state)
            if stopping and step < steps:
                return Outcome(step, True, state.best_step, state.best_psnr)
    except FloatingPointError as error:
        saved = checkpoint.saved_steps(run)
        last = f"the last good checkpoint is {checkpoint.path_of(run, saved[-1])}" if saved else "nothing is saved"
        raise TrainingError(
            f"training failed at step {step}: {error}; {last}; begin another run with a smaller "
            f"--learning-rate, perhaps with --init {run / 'best.safetensors'}"
        ) from error
    return Outcome(step, False, state.best_step, state.best_psnr)


def expect_usable(run: Path, resume: bool) -> None:
    """Raise a DpedError unless the folder is empty or does not exist, or holds a run, as `resume` says."""
    try:
        is_empty = not run.exists() or not any(run.iterdir())
    except OSError as error:
        raise OutputError(f"{run}: {error.strerror}; name another folder") from error
    if resume and is_empty:
        raise TrainingError(f"{run}: there is no run to resume; leave out --resume")
    if not resume and not is_empty:
        raise TrainingError(f"{run} is not empty; add --resume to go on with the run in it, or name another folder")


def _trainer(
    configuration: Configuration, features: nn.Module | None, init: Network | None, processes: Processes
) -> Trainer:
    if (features is not None) != (configuration.content == "vgg"):
        raise ValueError("features are given where the configuration's content is vgg, and only there")
    random = torch.Generator().manual_seed(configuration.seed)
    with torch.random.fork_rng(devices=[]):  # PyTorch draws values of its own
        discriminator = Discriminator(configuration.patch)
        torch.manual_seed(configuration.seed)
        generator = init or _network(configuration.channels, configuration.blocks)
    initialise(discriminator, random)
    if init is None and isinstance(generator, Generator):
        initialise(generator, random)
    return Trainer(
        generator,
        discriminator,
        features,
        RECIPES[configuration.recipe],
        configuration.learning_rate,
        resolve_precision(configuration.precision, processes.device),
        processes,
    )


def _network(channels: int | None, blocks: int | None) -> Network:
    """A table network's first values are PyTorch's own, with which it changes next to nothing."""
    return TableNetwork() if channels is None or blocks is None else Generator(channels, blocks)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; name another folder") from error


class _Record:
    """What is written of a run, by the first process."""

    def __init__(self, run: Path, configuration: Configuration, keep: int, log: Log) -> None:
        self._run = run
        self._configuration = configuration
        self._keep = keep
        self._log = log

    def evaluated(
        self,
        trainer: Trainer,
        validation: Validation,
        state: Progress,
        means: Losses | None,
        scores: ValidationScores,
    ) -> None:
        """Write all. The checkpoint comes last: what it does not know of is done again after a failure."""
        figures: dict[str, float | None] = {}
        for group, losses in (("train", means), ("test", scores.losses)):
            for name in Losses._fields:
                is_known = losses is not None and not (name == "content" and trainer.features is None)
                figures[f"{group}_{name}"] = getattr(losses, name) if is_known else None
        self._log.add(state.step, figures | {"psnr": scores.psnr, "ms_ssim": scores.ms_ssim})
        crops = self._run / "crops" / f"step_{state.step:06}.png"
        write_photo(validation.crops(trainer), crops, overwrite=True)
        if state.best_step == state.step:
            self._save_model(trainer, state, "best")
        self.save(trainer, state)

    def save(self, trainer: Trainer, state: Progress) -> None:
        """Write the model and a checkpoint."""
        self._save_model(trainer, state, "model")
        checkpoint.save(self._run, trainer, state, self._configuration)
        checkpoint.remove_others(self._run, self._keep, state.best_step)

    def _save_model(self, trainer: Trainer, state: Progress, name: str) -> None:
        configuration = self._configuration
        training = {
            "recipe": configuration.recipe,
            "content": configuration.content,
            "phone": configuration.phone,
            "data": configuration.data,
            "steps": str(state.step),
        }
        weights.save(trainer.generator, self._run / f"{name}.safetensors", training)


def _line(step: int, means: Losses | None, scores: ValidationScores) -> str:
    """What train_model.py prints."""
    test = scores.losses

    def both(name: str) -> str:
        trained = f"{getattr(means, name):.4g}, " if means else ""
        return f"{trained}test {getattr(test, name):.4g}"

    return (
        f"step {step}: PSNR {scores.psnr:.2f} dB, MS-SSIM {scores.ms_ssim:.4f}; generator loss {both('generator')}; "
        f"discriminator accuracy {both('accuracy')}"
    )
