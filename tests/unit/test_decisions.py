"""Decisions of the submit protocol that the explicit-state model does not take out one by one."""

import pytest

from models.decisions import STRAY_KINDS, outranked


@pytest.mark.parametrize("kind", STRAY_KINDS)
def test_a_first_sighting_is_never_outranked(kind):
    assert not outranked(kind, recorded=None)


@pytest.mark.parametrize("kind", STRAY_KINDS)
def test_a_sighting_of_the_recorded_kind_replaces_it(kind):
    assert not outranked(kind, recorded=kind)


def test_a_weaker_sighting_does_not_replace_what_an_answer_proved():
    assert outranked("possible", recorded="second")
    assert outranked("foreign", recorded="second")
    assert outranked("foreign", recorded="possible")


def test_a_stronger_sighting_replaces_a_weaker_one():
    assert not outranked("second", recorded="possible")
    assert not outranked("possible", recorded="foreign")
