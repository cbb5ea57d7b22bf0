"""Where frames go: files and photos. No torch."""

# Before av, which the modules here import: with both wheels' libraries in one process, cv2's windows hang for ever if
# av came first.
import cv2  # noqa: F401
