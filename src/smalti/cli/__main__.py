"""`python -m smalti.cli` is the command `smalti`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current directory, which `python -m` puts there: what lies in it must not be imported
    from smalti.cli import main

    sys.exit(main())
