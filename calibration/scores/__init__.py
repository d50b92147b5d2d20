"""This folder turns tables of tokens into scores of documents and of tokens."""
