"""A file that gets its final name only when it is complete."""

from __future__ import annotations

import os
from pathlib import Path

from dped_live.errors import OutputError

_NAME_BYTES = 255
"""The longest file name that common file systems take."""


class PartialFile:
    """The temporary name `NAME.part.EXT` beside `NAME.EXT`.

    The constructor refuses to touch what exists, and checks that the folder can be written to; then the owner writes
    to `path`, and calls either publish() or discard().
    """

    def __init__(self, final: Path, overwrite: bool) -> None:
        self._final = final
        ending = f".part{final.suffix}"
        stem = os.fsencode(final.stem)[: _NAME_BYTES - len(os.fsencode(ending))]
        self.path = final.with_name(os.fsdecode(stem) + ending)
        if final.is_dir():
            raise OutputError(f"{final} is a folder; name a file in it")
        if not final.parent.is_dir():
            raise OutputError(f"{final}: there is no folder {final.parent}; create it first")
        if not os.access(final.parent, os.W_OK):
            raise OutputError(f"{final}: no permission to write into {final.parent}")
        if not overwrite:
            if final.exists():
                raise OutputError(f"{final} exists; add -y to replace it")
            if self.path.exists():
                raise OutputError(f"{self.path} exists, from a run that did not finish; add -y to replace it")

    def publish(self) -> None:
        """Make the complete file durable and give it its final name, replacing what had it."""
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(self._final)
        except OSError as error:
            raise OutputError(f"{self._final}: {error.strerror}; the complete file is {self.path}") from error

    def discard(self) -> None:
        """Remove the temporary file, if it is there."""
        self.path.unlink(missing_ok=True)
