"""The metrics, one file each. A file that defines a `Metric` is found by itself: nothing else lists it."""

from ..libraries import members
from .metric import Metric

METRICS: dict[str, Metric] = {metric.name: metric for _, metric in members(__name__, __path__, Metric)}
