"""`python -m safemeta`."""

import sys

from safemeta.cli import main

if __name__ == "__main__":
    sys.exit(main())
