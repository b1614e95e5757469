"""The secrets that webhooks are signed with, as Standard Webhooks writes them.

`whsec_` and 24 to 64 random bytes in base64. https://www.standardwebhooks.com
"""

import base64
import binascii
import secrets

PREFIX = "whsec_"
FEWEST_BYTES, MOST_BYTES = 24, 64


def is_webhook_secret(text: str) -> bool:
    """Whether it is one."""
    if not text.startswith(PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return FEWEST_BYTES <= len(key) <= MOST_BYTES


def new_webhook_secret() -> str:
    """A fresh one."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
