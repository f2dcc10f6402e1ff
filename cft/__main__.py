"""python -m cft: the command `cft` of this very interpreter."""

import sys

from cft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
