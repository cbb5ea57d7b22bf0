"""A large photo through the command line: peak resident memory and time.

    python benchmarks/large_picture.py [--megapixels 50] [--model resnet_8_32] [OPTIONS of dped-live]

Makes a synthetic 4:3 JPEG, enhances it in a child process and prints the child's largest resident memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil


def make_photo(path: Path, megapixels: float) -> tuple[int, int]:
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    coarse = np.random.default_rng(0).integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megapixels", type=float, default=50)
    options, passed = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        width, height = make_photo(photo, options.megapixels)
        begin = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "dped_live", str(photo), *passed])
        process, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
        code = child.wait()
    print(f"{width}x{height}: {time.monotonic() - begin:.0f} s, at most {peak / 1e6:.0f} MB resident, exit code {code}")


if __name__ == "__main__":
    main()
