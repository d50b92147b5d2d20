"""This folder takes lm-eval's tasks by name: lm-eval's own task objects, their requests, and its own metrics of the scores.

spec.py           holds the task that a user asks for
load.py           finds lm-eval's own objects for the name of a task or group of lm-eval
outputs.py        settles how a model writes the answers of a task
answers.py        reads a document's choices, and the right one, off lm-eval's instances, if it has those
requests.py       puts lm-eval's instances into requests tables, and finds the way back
own_metrics.py    computes lm-eval's own metrics from committed scores
grade.py          grades written answers as lm-eval does
right_outputs.py  finds out by which of a task's metrics an output is right
process_state.py  keeps loggers and random generators as they were while lm-eval's code runs
"""
