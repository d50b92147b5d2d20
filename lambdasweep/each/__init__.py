"""`lambdasweep each` runs a command of the user at every λ of one live server, and collects what it measured.

config.py    makes one checked `EachConfig` of the flags and the command
command.py   checks the words of the command, and makes its environment
children.py  starts processes that end with this one, however it ends
server.py    starts `lambdasweep serve`, moves it, and asks it where it is
results.py   reads metrics.json, lm-eval's results and Inspect's logs
record.py    records which pair, engine and command a run directory belongs to
run.py       goes from λ to λ
"""
