"""This package is vLLM's own server with θ(λ) live: it starts it, adds a route for λ, and says who is served at which λ."""
