"""vLLM's own server with θ(λ) live: its start, its route for λ, and who is served at which λ."""
