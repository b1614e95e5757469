"""Every protection, by where it stands. Short texts are named: long ones change too often."""

from tests.protections.protection import Protection
from tests.protections.removals import (
    answers,
    archiving,
    crashes,
    edge,
    following,
    holding,
    noticing,
    observing,
    operating,
    readings,
    resolving,
    scheduling,
    submitting,
    uploading,
)

PROTECTIONS: tuple[Protection, ...] = (
    *submitting.PROTECTIONS,
    *answers.PROTECTIONS,
    *resolving.PROTECTIONS,
    *readings.PROTECTIONS,
    *following.PROTECTIONS,
    *scheduling.PROTECTIONS,
    *holding.PROTECTIONS,
    *observing.PROTECTIONS,
    *uploading.PROTECTIONS,
    *archiving.PROTECTIONS,
    *noticing.PROTECTIONS,
    *edge.PROTECTIONS,
    *operating.PROTECTIONS,
    *crashes.PROTECTIONS,
)
