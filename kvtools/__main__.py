"""`python -m kvtools` is `kvtools`."""

from kvtools.cli import main

main()
