"""Weighting rules, one file each."""

from steering.rules.auto import Auto as Auto
from steering.rules.chi_square import ChiSquare as ChiSquare
from steering.rules.cvar import CVaR as CVaR
from steering.rules.global_contrastive import GlobalContrastive as GlobalContrastive
from steering.rules.individual import Individual as Individual
from steering.rules.info_nce import InfoNCE as InfoNCE
from steering.rules.kl import KL as KL
from steering.rules.rule import Exponential as Exponential
from steering.rules.rule import Rule as Rule
from steering.rules.rule import Tempered as Tempered
from steering.rules.uniform import Uniform as Uniform
