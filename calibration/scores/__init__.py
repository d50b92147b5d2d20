"""Token tables → scores of documents and of tokens."""
