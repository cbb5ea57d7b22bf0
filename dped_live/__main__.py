"""`python -m dped_live`."""

import sys

from dped_live.cli import main

sys.exit(main())
