"""This folder shows how a run does: progress while it runs, and `lambdasweep status` from any machine.

progress.py     counts the driver's events, and shows live progress on the terminal that runs the sweep
heartbeat.py    writes the driver's events to RUN/driver.json, for every machine that sees RUN
run_counts.py   counts the units and receipts that a run has
status.py       says all of that in words
watch.py        shows all of that live
wording.py      writes times and counts as a person would
"""
