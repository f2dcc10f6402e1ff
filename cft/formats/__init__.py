"""Options of `format`: formats of `cft export` for other trainers."""

from cft.formats.conversations import MsSwift, ShareGPT
from cft.formats.preferences import Preferences
from cft.formats.problems import Verl
from cft.formats.tokens import TRL, Axolotl, Labels, LlamaFactory, Tinker

__all__ = ["TRL", "Axolotl", "Labels", "LlamaFactory", "MsSwift", "Preferences", "ShareGPT", "Tinker", "Verl"]
