"""The conditions that an experiment may name: a line each."""

from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from audioldm2_pl.conditioners.clap import CLAPConfig
from audioldm2_pl.conditioners.image import ImageConfig
from audioldm2_pl.conditioners.phonemes import PhonemeConfig
from audioldm2_pl.conditioners.t5 import T5EncoderConfig
from audioldm2_pl.fields import without_none


@dataclass
class ConditionersConfig:
    """What encodes the conditions; null where a system has none. {} takes a condition's defaults."""

    clap: CLAPConfig | None = field(default_factory=CLAPConfig)
    t5: T5EncoderConfig | None = field(default_factory=T5EncoderConfig)
    phonemes: PhonemeConfig | None = None
    image: ImageConfig | None = None


CONDITIONS = tuple(f.name for f in fields(ConditionersConfig))


def conditioner_class(name: str) -> Any:
    """The class that a condition's config builds."""
    config = without_none(get_type_hints(ConditionersConfig)[name])
    return get_type_hints(config.build)["return"]
