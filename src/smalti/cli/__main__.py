"""`python -m smalti.cli` is the command `smalti`."""

import sys

from smalti.cli import main

if __name__ == "__main__":
    sys.exit(main())
