"""The old name of steering.references.store."""

from steering.references.store import ReferenceLosses as ReferenceLosses
