"""``python -m fedsieve``."""

from fedsieve.cli import main

main()
