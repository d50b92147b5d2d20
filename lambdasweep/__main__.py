"""`python -m lambdasweep`."""

from lambdasweep.cli import main

main()
