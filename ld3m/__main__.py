"""`python -m ld3m` is the command `ld3m`."""

import sys

from ld3m.cli import main

sys.exit(main())
