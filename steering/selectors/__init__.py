"""Selectors, one file each; ``jest`` is with the contrastive subject."""

from steering.selectors.boltzmann import Boltzmann as Boltzmann
from steering.selectors.reference_only import ReferenceOnly as ReferenceOnly
from steering.selectors.selector import Selector as Selector
from steering.selectors.top_k import TopK as TopK
from steering.selectors.top_loss import TopLoss as TopLoss
from steering.selectors.uniform import Uniform as Uniform
