"""This package is the λ switch of a rank: it keeps the parents, and brings θ(λ) into the live parameters."""
