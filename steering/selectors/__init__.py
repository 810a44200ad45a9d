"""Selectors: one file each, found by file name."""

from steering.selectors.selector import Selector as Selector
