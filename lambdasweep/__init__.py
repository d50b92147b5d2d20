"""lambdasweep: scores every model on the line between a language model before and after alignment."""
