"""What Flower's Celery client needs beside the broker's address, where it is more than that.

Read by that client as its configuration (`CELERY_CONFIG_MODULE`); it imports nothing of the worker
but the reading of the address.
"""

import os

from worker import broker_address

_address = broker_address.read(broker_address.normalise(os.environ["SEEDANCE_BROKER_URL"]))

broker_transport_options = _address.transport_options
broker_use_ssl = _address.ssl
