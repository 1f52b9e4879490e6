"""DNSMOS: what listeners would say of speech, by a network that was trained on their ratings, without a reference.

OVRL, SIG and BAK are ITU-T P.835's overall quality, the voice's alone and the background's (Reddy et al. 2022,
arXiv:2110.01763); P808 is P.808's overall quality (Reddy et al. 2021, arXiv:2010.15258).
"""

from dataclasses import dataclass
from typing import Literal

from .metric import Metric, compute_rating


@dataclass
class DNSMOSSettings:
    axis: Literal["OVRL", "SIG", "BAK", "P808"] = "OVRL"


DNSMOS = Metric(
    name="dnsmos",
    title="DNSMOS",
    unit="points of 1 to 5",
    higher_is_better=True,
    reads=frozenset({"dnsmos"}),
    needs=None,
    compute=compute_rating,
    settings=DNSMOSSettings,
)
