"""Captures: page hashes of running processes, containers and machines, read into a trace."""

from planner.capture.session import CaptureRequest, Progress, capture

__all__ = ["CaptureRequest", "Progress", "capture"]
