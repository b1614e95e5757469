"""How fast the fleet may submit to one provider account, and why it may not.

Belongs here: the discovered request rate, the adaptive concurrency limit, the failure throttle,
outage probing, the ramp after an outage, and the circuit breakers of an account. A generation's
own retry delay is here too, since it answers the same refusals. Does not belong here: which
generation goes next (`models.schedule`), what it may spend (`models.credit`), operators' pauses.
"""
