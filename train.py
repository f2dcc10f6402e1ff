"""Fine-tune on the tokens a mask picks.   python train.py --help"""

import hydra
from omegaconf import DictConfig

from cft.config.build import check_command_line, checked
from cft.entry import reported


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    with reported():
        cfg = checked(cfg, "train")
        from cft.stages.train import train  # heavy imports follow the check

        return train(cfg)


if __name__ == "__main__":
    check_command_line("train")
    main()
