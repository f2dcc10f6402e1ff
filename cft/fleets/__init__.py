"""Options of `fleet`: where units of work are computed (in this process, or on a Ray cluster)."""

from cft.fleets.in_process import InProcess
from cft.fleets.ray_cluster import Ray

__all__ = ["InProcess", "Ray"]
