"""Tables → figures, and a page that shows them. The one place that knows the plotting library; imported late."""
