"""These are the names of the formats of a task's documents, and how many choices a document may have in each."""

# The cloze format is limited by `choice`, an int16 in the requests table; the letters format has only A to Z.
MAX_CHOICES = {"cloze": 2**15 - 1, "letters": 26}
GENERATE = "generate"  # the format of rows whose answers the model writes
FORMATS = (*MAX_CHOICES, GENERATE)
