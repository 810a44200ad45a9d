"""Selectors: which samples of a larger batch get a gradient step; ``jest`` is with the contrastive subject."""

from steering.selectors.by_score import Boltzmann as Boltzmann
from steering.selectors.by_score import ReferenceOnly as ReferenceOnly
from steering.selectors.by_score import TopK as TopK
from steering.selectors.by_score import TopLoss as TopLoss
from steering.selectors.by_score import Uniform as Uniform
from steering.selectors.selector import Selector as Selector
