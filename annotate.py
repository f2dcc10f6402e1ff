"""Which tokens of a correct response decide its answer?   python annotate.py --help, or cft annotate --help"""

import sys

from cft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["annotate", *sys.argv[1:]]))
