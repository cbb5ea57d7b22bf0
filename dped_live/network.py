"""What a model can be."""

from __future__ import annotations

from dped_live.generator import Generator
from dped_live.table_network import TableNetwork

Network = Generator | TableNetwork
"""DPED's own kind, or that of lite. Both are called in the same way, and told of a scene by Statistics."""
