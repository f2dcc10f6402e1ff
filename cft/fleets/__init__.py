"""Options of `fleet`, which selects where units of work are computed."""

from cft.fleets.in_process import InProcess
from cft.fleets.ray_cluster import Ray

__all__ = ["InProcess", "Ray"]
