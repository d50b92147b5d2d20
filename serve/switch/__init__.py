"""The λ switch of a rank: how θ(λ) gets into its live parameters, and where its parents are kept."""
