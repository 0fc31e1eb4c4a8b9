"""`python -m smalti.cli` is the command `smalti`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current directory, added by `python -m`: files in it must not be imported
    from smalti.cli import main

    sys.exit(main())
