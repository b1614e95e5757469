"""The shop's addresses."""

from django.urls import path

from shop import views

urlpatterns = [
    path("orders", views.take),
    path("orders/<uuid:order_id>", views.status),
]
