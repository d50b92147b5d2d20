"""Results go into the tools that people use.

lm_eval_files.py    lm-eval's own files of results and samples, for each λ
lm_eval_samples.py  the documents of a task at one λ as lm-eval's samples
texts.py            the texts of requests, from their tokens
trackers.py         experiment trackers: W&B, MLflow, trackio
logged.py           what a tracker is given of a run
hub.py              an exported checkpoint on the model hub
"""
