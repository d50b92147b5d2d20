"""This folder puts several runs side by side: the tasks that all of them have, and a row for each run."""
