"""Accuracy, pass@k, diversity and entropy of a model or a checkpoint.   python evaluate.py --help"""

import sys

import hydra
from omegaconf import DictConfig

from cft.benchmarks.sweep import in_one_run
from cft.config.build import check_command_line, checked
from cft.entry import reported


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> float:
    with reported():
        cfg = checked(cfg, "evaluate")
        from cft.stages.evaluate import evaluate  # heavy imports follow the check

        return evaluate(cfg)


if __name__ == "__main__":
    sys.argv[1:] = in_one_run(sys.argv[1:])
    check_command_line("evaluate")
    main()
