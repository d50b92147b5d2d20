"""One point of a pair, to be taken home: `lambdasweep export` and `lambdasweep serve`.

point.py        which point: given by flags, or by a run and its λ*
export.py       the point as a checkpoint on disk
model_card.py   the model card of that checkpoint
serve.py        the point behind vLLM's server
"""
