"""A user takes one point of a pair home by `lambdasweep export` or `lambdasweep serve`.

point.py        settles which point that is, by flags, or by a run and its λ*
export.py       writes the point as a checkpoint on disk
model_card.py   writes the model card of that checkpoint
serve.py        puts the point behind vLLM's server
"""
