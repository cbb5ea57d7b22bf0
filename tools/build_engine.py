"""Build TensorRT engines: `dped-live build`, for who works in a checkout.

python tools/build_engine.py --model iphone --size 1280x720 1920x1080
"""

from __future__ import annotations

import sys

from dped_live.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
