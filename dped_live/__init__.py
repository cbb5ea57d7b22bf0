"""DPED on photos and video: the picture of a cheap camera as if a good one had taken it."""
