"""The race that every way of swapping `current` runs against its readers, measured on this host.

run_race() makes a scratch deploy path, lets readers open a file through `current` while each way of swapping
it runs, first on the plain directory, then over a relfs mount, and counts what failed. Printing the table is
the command's.
"""

from relfs.race.engine import Commands, RaceResult, Row, run_race

__all__ = ["Commands", "RaceResult", "Row", "run_race"]
