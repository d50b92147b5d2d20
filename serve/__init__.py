"""This package runs vLLM with θ(λ) live: it has the engine, the λ switch, and the scorer."""
