"""This folder makes the requests table, which is the same at every λ, from JSONL files and from lm-eval's tasks.

It knows tokenizers, but neither engines nor models.

convert.py      turns rows of data sets into rows of a task file
datasets.py     loads data sets of a model hub
make_file.py    writes a task file of a data set
documents.py    reads a JSONL file as checked documents, or reports every problem it has
formats.py      renders a document as the text that is conditioned on and the texts that are scored
chat.py         reads a checkpoint's chat template, and renders messages with it
tokens.py       turns texts into tokens: pairs of context and continuation, and windows over long texts
requests.py     puts a task's texts into the requests table, and cuts it into shards
prompts.py      reads a JSONL file as prompts to be sampled from, and cuts them into shards
lm_eval_tasks/  does the same for lm-eval's tasks, and computes lm-eval's own metrics of their scores
"""
