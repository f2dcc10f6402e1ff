"""What does a frozen model say of each token of an annotation?   python -m cft.score --help"""

import hydra
from omegaconf import DictConfig

from cft.config.build import CONF_DIR, check_command_line, checked
from cft.entry import reported


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="score")
def main(cfg: DictConfig) -> None:
    with reported():
        cfg = checked(cfg, "score")
        from cft.stages.score import score  # heavy imports follow the check

        score(cfg)


if __name__ == "__main__":
    check_command_line("score")
    main()
