"""`python -m skinlesion`."""

import sys

from skinlesion.cli import main
from skinlesion.machine import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
