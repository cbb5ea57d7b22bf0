"""A file that gets its final name only when it is complete."""

from __future__ import annotations

import os
from pathlib import Path

from dped_live.errors import OutputError

_NAME_BYTES = 255
"""The longest file name that common file systems take."""


def shortened(stem: str, ending: str) -> str:
    """A file name of both, for which the stem loses what a file system would have no room for."""
    room = _NAME_BYTES - len(os.fsencode(ending))
    encoded = os.fsencode(stem)
    return stem + ending if len(encoded) <= room else encoded[:room].decode(errors="ignore") + ending


def partial_path(final: Path) -> Path:
    """The temporary name of a file: NAME.part.EXT beside NAME.EXT."""
    return final.with_name(shortened(final.stem, f".part{final.suffix}"))


class PartialFile:
    """The temporary name `NAME.part.EXT` beside `NAME.EXT`: a rename is atomic only within a file system.

    The constructor refuses to touch what exists, and checks that the folder can be written to. Then the owner writes
    to `path`, and calls publish() or discard(). resume: whether the owner goes on with a temporary file that is there;
    None if it never can.
    """

    def __init__(self, final: Path, overwrite: bool, resume: bool | None = None) -> None:
        self._final = final
        self.path = partial_path(final)
        try:
            if final.is_dir():
                raise OutputError(f"{final} is a folder; name a file in it")
            for path in (final, self.path):
                if path.exists() and not path.is_file():
                    raise OutputError(f"{path} is no file that could be replaced; name another one")
            if not final.parent.is_dir():
                raise OutputError(f"{final}: there is no folder {final.parent}; make it first")
            if not os.access(final.parent, os.W_OK):
                raise OutputError(f"{final}: the folder {final.parent} is not writable; name another one")
            if not overwrite:
                if final.exists():
                    raise OutputError(f"{final} exists; add -y to replace it")
                if self.path.exists() and not resume:
                    go_on = "" if resume is None else "--resume to go on with it, or "
                    raise OutputError(
                        f"{self.path} exists, from a run that did not finish; add {go_on}-y to begin anew"
                    )
        except OSError as error:
            raise OutputError(f"{final}: {error.strerror}; name another file") from error

    def publish(self) -> None:
        """Make the complete file durable and give it its final name, replacing what had it."""
        try:
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())
            self.path.replace(self._final)
        except OSError as error:
            raise OutputError(f"{self._final}: {error.strerror}; the complete file is {self.path}") from error

    def discard(self) -> None:
        """Remove the temporary file, if it is there."""
        self.path.unlink(missing_ok=True)
