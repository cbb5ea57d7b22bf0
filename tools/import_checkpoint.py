"""Convert a TensorFlow checkpoint of the original's train_model.py into a .safetensors file of dped-live.

    python tools/import_checkpoint.py models/iphone_iteration_19000.ckpt mine.safetensors

`dped-live --model` takes the checkpoint itself as well; the converted file is one instead of two, and has a checksum.
TensorFlow is not needed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dped_live import weights
from dped_live.errors import DpedError
from dped_live.partial import PartialFile


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a TensorFlow checkpoint into a .safetensors file.")
    parser.add_argument("checkpoint", help="its prefix, or one of its two files")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("-y", "--overwrite", action="store_true", help="replace the target if it exists")
    options = parser.parse_args()
    try:
        PartialFile(options.target, options.overwrite)  # refuses what must not be replaced
        weights.save(weights.load(options.checkpoint), options.target)
    except DpedError as error:
        sys.exit(str(error))
    print(options.target)


if __name__ == "__main__":
    main()
