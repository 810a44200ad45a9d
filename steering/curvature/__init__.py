"""Curvature Tuning: steering a trained model's decision boundaries by the shape of its activations (Hu et al. 2025).

The names below are loaded when first used, so that ``steer --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steering.curvature.bridge import TunedReference as TunedReference
    from steering.curvature.replace import Replacement as Replacement
    from steering.curvature.replace import Site as Site
    from steering.curvature.replace import replace_relus as replace_relus
    from steering.curvature.unit import CurvatureUnit as CurvatureUnit
    from steering.curvature.unit import curvature_at_zero as curvature_at_zero
    from steering.curvature.unit import largest_deviation as largest_deviation
    from steering.curvature.unit import mean_shift as mean_shift
    from steering.curvature.unit import set_beta as set_beta
    from steering.curvature.unit import units as units

_HOME = {
    "TunedReference": "bridge",
    "Replacement": "replace",
    "Site": "replace",
    "replace_relus": "replace",
    "CurvatureUnit": "unit",
    "curvature_at_zero": "unit",
    "largest_deviation": "unit",
    "mean_shift": "unit",
    "set_beta": "unit",
    "units": "unit",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'steering.curvature' has no attribute {name!r}")
    return getattr(import_module(f"steering.curvature.{_HOME[name]}"), name)
