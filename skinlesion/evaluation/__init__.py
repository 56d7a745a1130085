"""Notebook 4: figures with intervals, calibration, plots and reports."""
