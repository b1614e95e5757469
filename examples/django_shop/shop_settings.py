"""Django's settings: the database of the service, by the address that its producers use."""

import os

from sqlalchemy import make_url

_url = make_url(os.environ["SEEDANCE_DATABASE_URL"])

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "for-an-example-only")
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["shop"]
MIDDLEWARE: list[str] = []
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.database,
        "USER": _url.username or "",
        "PASSWORD": _url.password or "",
        "HOST": _url.host or _url.query.get("host", ""),
        "PORT": str(_url.port or ""),
    }
}
