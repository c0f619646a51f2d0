"""``python -m fedsieve`` is the command line."""

import sys

if not sys.flags.safe_path:  # Python has put the current folder first: a stranger's yaml.py there would be imported
    del sys.path[0]

from fedsieve.cli import main

main()
