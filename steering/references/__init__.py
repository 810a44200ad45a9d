"""References: anything that answers a batch with its losses, and one store for what they answer."""

from steering.references.kinds import Checkpoint as Checkpoint
from steering.references.kinds import CrossFitted as CrossFitted
from steering.references.kinds import Estimator as Estimator
from steering.references.kinds import OwnPast as OwnPast
from steering.references.kinds import Reference as Reference
from steering.references.kinds import as_reference as as_reference
from steering.references.store import ReferenceLosses as ReferenceLosses
from steering.references.table import LossTable as LossTable
