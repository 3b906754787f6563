"""The model held against the running kernel: drive ksmd, watch it, forecast, replay, calibrate."""
