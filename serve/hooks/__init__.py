"""What is hung into vLLM: scores of chosen tokens, draws of samples, and a CPU kernel that is given what it takes."""
