"""One named, guarded UPDATE for each transition, with its event, in the caller's transaction.

Every function here compares and sets: it names the statuses (and the lease or attempt) it may
leave, and returns None when another was faster; whoever loses the race changes nothing. A
transition that leaves doubt also wakes the oldest generation that waited for its fingerprint.
"""

from models.transitions.answers import (
    Answered,
    adopt,
    close_attempt,
    declined,
    doubt,
    not_sent,
    refused,
    submitted,
)
from models.transitions.before import (
    Intending,
    admit,
    intend,
    lapse,
    lapse_waiting,
    poison,
    put_back,
    reject,
)
from models.transitions.cancelling import cancel, cancel_many, cancel_sent
from models.transitions.core import LOCK_ORDER, Moved, in_seconds, move, note
from models.transitions.following import (
    apply_observation,
    calm,
    decided,
    need_attention,
    overdue,
    reschedule,
    stay,
)
from models.transitions.page import Page, apply_page, told_by
from models.transitions.settling import absent, give_up

__all__ = [
    "LOCK_ORDER",
    "Answered",
    "Intending",
    "Moved",
    "Page",
    "absent",
    "admit",
    "adopt",
    "apply_observation",
    "apply_page",
    "calm",
    "cancel",
    "cancel_many",
    "cancel_sent",
    "close_attempt",
    "decided",
    "declined",
    "doubt",
    "give_up",
    "in_seconds",
    "intend",
    "lapse",
    "lapse_waiting",
    "move",
    "need_attention",
    "not_sent",
    "note",
    "overdue",
    "poison",
    "put_back",
    "refused",
    "reject",
    "reschedule",
    "stay",
    "submitted",
    "told_by",
]
