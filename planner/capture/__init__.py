"""Captures: page hashes of running processes, containers and machines, read into a trace."""

from planner.capture.session import CaptureRequest, capture

__all__ = ["CaptureRequest", "capture"]
