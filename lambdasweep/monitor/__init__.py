"""How a run does: progress while it runs, and `lambdasweep status` from any machine.

progress.py     the driver's events → counts, and live progress on the terminal that runs the sweep
heartbeat.py    the driver's events → RUN/driver.json, for whoever sees RUN
survey.py       what of a run is there: units and receipts
status.py       all of that in words
watch.py        all of that live
wording.py      times and counts as a person would write them
"""
