"""`python -m ld3m` is the command `ld3m`."""

import sys

from ld3m.cli import main

if __name__ == "__main__":
    sys.exit(main())
