"""The ASGI application: `uvicorn shop_asgi:application`."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop_settings")
application = get_asgi_application()
