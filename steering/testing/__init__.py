"""Contracts as runnable checks, for plugins of ours and of others."""

from steering.testing.rules import check_rule as check_rule
from steering.testing.selectors import check_selector as check_selector
from steering.testing.tasks import check_task as check_task
