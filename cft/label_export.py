"""Any mask as input_ids and labels, for other trainers.   python -m cft.label_export --help"""

import hydra
from omegaconf import DictConfig

from cft.config.build import CONF_DIR, check_command_line, checked
from cft.entry import reported


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="label_export")
def main(cfg: DictConfig) -> None:
    with reported():
        cfg = checked(cfg, "label_export")
        from cft.stages.label_export import label_export  # heavy imports follow the check

        label_export(cfg)


if __name__ == "__main__":
    check_command_line("label_export")
    main()
