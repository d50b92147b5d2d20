"""Two checkpoints → θ(λ): open and check a pair, and the one formula that moves along the line between them."""
