"""Which tokens of a correct response decide its answer?   python annotate.py --help"""

import hydra
from omegaconf import DictConfig

from cft.config.build import check_command_line, checked
from cft.entry import reported


@hydra.main(version_base="1.3", config_path="conf", config_name="annotate")
def main(cfg: DictConfig) -> None:
    with reported():
        cfg = checked(cfg, "annotate")
        from cft.stages.annotate import annotate  # heavy imports follow the check

        annotate(cfg)


if __name__ == "__main__":
    check_command_line("annotate")
    main()
