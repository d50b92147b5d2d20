"""This folder draws figures, and a page that shows them. Only it knows the plotting library, so it is imported late."""
