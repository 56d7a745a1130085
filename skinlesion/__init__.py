"""Train, judge and show a skin lesion classifier on HAM10000.

Research and education only; not a medical device.

The steps that a user calls are in `skinlesion.workflow`; `python -m skinlesion --help` offers the
same steps as commands. Importing the package imports none of its heavy dependencies.
"""

__version__ = "0.2.0"
