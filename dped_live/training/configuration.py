"""What a run of training is: the choices that must stay the same while it is interrupted and resumed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Literal

from dped_live.errors import TrainingError
from dped_live.training.pairs import Pair, Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The options of `dped-live train` on which the trained weights depend; its names are theirs.

    phone: the name of the folder with the phone's pictures. data: what `fingerprint` says, for DIR may move.
    init: the model that training starts from; None for random values.
    channels, blocks: of DPED's kind of network; None for that of lite.
    """

    phone: str
    hold_out: int | None = None
    recipe: Literal["repository", "paper"] = "repository"
    content: Literal["vgg", "off"] = "vgg"
    batch: int = 50
    learning_rate: float = 5e-4
    channels: int | None = 64
    blocks: int | None = 4
    patch: int = 100
    augment: bool = False
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    init: str | None = None
    data: str

    def expect_same(self, other: Configuration) -> None:
        """Raise TrainingError, which names the first option that differs, unless `other`, to be resumed, is equal."""
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if mine != others:
                option = f"--{field.name.replace('_', '-')}"
                raise TrainingError(
                    f"this run was begun with another {option} ({_said(others)}, now {_said(mine)}); "
                    f"type what it was begun with, or begin another with --out"
                )


def fingerprint(pairs: Pairs) -> str:
    """The number of pairs, and a checksum of their names and sizes."""

    def line(pair: Pair) -> bytes:
        names = f"{pair.phone.name}/{pair.camera.name}".encode(errors="surrogateescape")
        return names + f"/{pair.width}x{pair.height}\n".encode()

    sha256 = hashlib.sha256()
    for group in (pairs.train, pairs.test):
        sha256.update(b"\n".join(map(line, group)) + b"\0")
    return f"{len(pairs.train)} pairs to train on, {len(pairs.test)} to test on, names {sha256.hexdigest()[:12]}"


def _said(value: object) -> str:
    return "none" if value is None else str(value)
