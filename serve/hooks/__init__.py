"""This package hooks into vLLM: it scores chosen tokens, draws samples, and gives a CPU kernel what that kernel can take."""
