"""Measurements: ours beside peers, in one run. `python -m bench` runs all; each module runs alone."""
