"""Curvature Tuning: a smoother unit in place of every ReLU of a trained network (Hu et al. 2025)."""

from steering.curvature.replace import Replacement, Site, replace_relus
from steering.curvature.unit import CurvatureUnit, set_beta, units

__all__ = ["CurvatureUnit", "Replacement", "Site", "replace_relus", "set_beta", "units"]
