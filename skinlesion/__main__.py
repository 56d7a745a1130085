"""`python -m skinlesion`."""

import sys

from skinlesion.cli import main

if __name__ == "__main__":
    sys.exit(main())
