"""What is on each dashboard: one file each."""

from monitoring.panels.accuracy import ACCURACY
from monitoring.panels.cluster import CLUSTER
from monitoring.panels.data import DATA
from monitoring.panels.loss import LOSS
from monitoring.panels.neighbours import NEIGHBOURS
from monitoring.panels.overview import OVERVIEW

__all__ = ["DASHBOARDS"]

DASHBOARDS = (OVERVIEW, LOSS, DATA, NEIGHBOURS, ACCURACY, CLUSTER)
"""In the order of reading."""
