"""What is hung into vLLM's model runner and sampler: scores of chosen tokens, and draws of samples."""
