"""Scripts that run alike on a live kernel's KSM and on a model of it; see script.py."""
