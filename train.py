"""Fine-tune on the tokens a mask picks.   python train.py --help, or cft train --help"""

import sys

from cft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
