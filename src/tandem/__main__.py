"""`python -m tandem` is `tandem`: what a service calls, whose PATH has no virtual environment."""

from tandem.cli import main

main()
