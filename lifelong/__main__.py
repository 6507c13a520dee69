"""`python -m lifelong`."""

from lifelong.cli.main import main

main()
