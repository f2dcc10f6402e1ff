"""Accuracy, pass@k, diversity and entropy of a model or a checkpoint.   python evaluate.py --help, or cft evaluate --help"""

import sys

from cft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
