"""A method is a way from base to one aligned checkpoint, tensor by tensor. A new one is a module here, and a name below.

A module has the formula with its source and its error bound, what it is called, and its arithmetic. None of them imports
torch while it is imported, because the methods are listed where there is no torch, too. A report and a model card write a
method as `name(base, aligned; λ)`; see `contract.formula`.
"""

from merge.methods import linear, slerp
from merge.methods.method import Method, TensorPath

METHODS: dict[str, Method] = {one.name: one for one in (linear.METHOD, slerp.METHOD)}

__all__ = ["METHODS", "Method", "TensorPath"]
