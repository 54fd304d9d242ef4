"""The judge's guarantees, measured: `python -m tests.measurements.NAME` makes one report under reports/."""
