"""A stand-in for the provider, over real HTTP.

>>> import simulator
>>> with simulator.serve(simulator.Config(speed=60)) as sim:
...     sim.url, sim.api_key  # doctest: +SKIP

`python -m simulator` starts one alone; README.md beside this file has the rest.
"""

from simulator.cli import cli_main, run
from simulator.client import Admin, AdminError
from simulator.config import DEFAULT_API_KEY, Config
from simulator.inprocess import Simulator, serve

__all__ = [
    "DEFAULT_API_KEY",
    "Admin",
    "AdminError",
    "Config",
    "Simulator",
    "cli_main",
    "run",
    "serve",
]
