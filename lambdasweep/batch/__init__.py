"""`lambdasweep score` reads Parquet files of prompts and streams scores into Parquet files.

config.py     what the user asks for
files.py      the input files as their footers tell of them: columns, identity, the cut into units
repeats.py    ids that stand in more than one row, found in bounded memory
reader.py    rows of a file, in bounded memory
rows.py       some rows → requests, and scores → rows
source.py     a unit's rows, read and tokenised where they are scored
scoredir.py   names of the output's files
score.py      the command
status.py     what of it is done
"""
