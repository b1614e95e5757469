"""A secret from the environment, or from the file that the environment names.

A value in the environment shows in `docker inspect`, in crash reports and to every child process;
a file is read when it is needed, and can be readable for one user alone.
"""

from collections.abc import Mapping
from pathlib import Path

SUFFIX = "_FILE"
MOST_BYTES = 64 * 1024


class SecretFileError(ValueError):
    """A secret can't be read. The message names the variable and the file, never the secret."""


def given(environ: Mapping[str, str], variable: str) -> str | None:
    """The value of `variable`, or what the file named by `<variable>_FILE` has; None for neither.

    An empty variable counts as not given. White space around a file's content, such as the newline
    that editors add, is no part of the secret. Raises SecretFileError.
    """
    value, file = environ.get(variable), environ.get(variable + SUFFIX)
    if not file:
        return value or None
    if value:
        raise SecretFileError(f"{variable} is set, and so is {variable}{SUFFIX}: unset one of them")
    return _read(f"{variable}{SUFFIX}", Path(file))


def _read(variable: str, path: Path) -> str:
    where = f"{variable} is {str(path)[:200]!r}"
    try:
        if path.exists() and not path.is_file():
            # A pipe would keep us waiting, and be empty when it is read again.
            raise SecretFileError(f"{where}, which is no regular file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, SecretFileError):
            raise
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise SecretFileError(f"{where}, which can't be read: {why}") from None
    if len(content) > MOST_BYTES:
        raise SecretFileError(f"{where}, which has over {MOST_BYTES} bytes: is it the right file?")
    try:
        secret = content.decode().strip()
    except UnicodeDecodeError:
        raise SecretFileError(f"{where}, which is not text in UTF-8") from None
    if not secret:
        raise SecretFileError(f"{where}, which is empty")
    return secret
