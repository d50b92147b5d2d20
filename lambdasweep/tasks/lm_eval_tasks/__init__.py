"""lm-eval's tasks by name: its own task objects, their requests, and its own metrics of what was scored.

load.py         the name of a task or group of lm-eval → lm-eval's own objects
answers.py      lm-eval's instances of a document → its choices and the right one, where it has those
requests.py     lm-eval's instances → requests tables, and the way back
own_metrics.py  committed scores → lm-eval's own metrics
"""
