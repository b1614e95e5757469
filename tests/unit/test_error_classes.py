"""The classes of errors: the provider's refusals of content are final, whoever asks."""

from api_client import errors, verdicts
from models.error_classes import CLASSES, FINAL, ErrorClass, class_of


def test_what_the_provider_refuses_for_its_content_is_what_the_client_says_it_is():
    refused = {code for code, kind in verdicts._KINDS.items() if kind is errors.ContentRefused}
    assert refused == FINAL
    assert {code for code, kind in CLASSES.items() if kind is ErrorClass.REFUSED} == FINAL


def test_what_is_not_known_is_the_providers():
    assert class_of("SOMETHING_NEW") is ErrorClass.PROVIDER
    assert class_of(None) is None


def test_every_class_but_the_providers_has_its_codes():
    assert set(CLASSES.values()) == set(ErrorClass) - {ErrorClass.PROVIDER}
