"""Running a network piece by piece, in the precision asked for, as fast as this machine can."""

from .base import Prepared
from .registry import PRECISIONS, RUNTIMES, availability, prepare

__all__ = ["PRECISIONS", "RUNTIMES", "Prepared", "availability", "prepare"]
