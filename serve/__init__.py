"""vLLM with θ(λ) live: the engine, the λ switch, and the scorer."""
