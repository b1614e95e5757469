"""What can go wrong with the embedded servers.

EmbeddedError
├── NotInstalledError   the extra `embedded` is missing
├── InUseError          another process owns the data folder
└── ServerStartError    a server ended, or did not answer, while starting
"""


class EmbeddedError(RuntimeError):
    """An embedded server could not do what was asked; the message says why."""


class NotInstalledError(EmbeddedError):
    """The wheels with the servers are not installed."""


class InUseError(EmbeddedError):
    """Another living process owns the data folder."""


class ServerStartError(EmbeddedError):
    """A server ended, or did not answer, while starting; the message has its log's end."""
