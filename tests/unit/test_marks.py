"""The mark that makes a remote task recognisable."""

from itertools import pairwise

import pytest

from models.marks import ECHOED, SEED_BOUND, draw_seed, fingerprint, producer_seed

REQUEST = {
    "model": "seedance-2.0",
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 5,
    "generate_audio": True,
    "content": [{"type": "text", "text": "a cat"}],
}


@pytest.mark.parametrize(
    ("seed", "fixed"), [(None, None), (-1, None), (0, 0), (7, 7), (SEED_BOUND - 1, SEED_BOUND - 1)]
)
def test_minus_one_counts_as_not_given_and_zero_as_a_seed(seed, fixed):
    assert producer_seed({"seed": seed}) == fixed


def test_no_seed_is_not_given():
    assert producer_seed({}) is None


def test_drawn_seeds_are_in_bounds_and_spread():
    seeds = [draw_seed() for _ in range(2000)]
    assert all(0 <= seed < SEED_BOUND for seed in seeds)
    assert len(set(seeds)) > 1990
    assert max(seeds) > SEED_BOUND * 0.9
    assert min(seeds) < SEED_BOUND * 0.1


def test_the_fingerprint_is_of_what_the_list_echoes_and_the_seed():
    others: list[dict[str, object]] = [
        {"model": "seedance-2.0-fast"},
        {"resolution": "1080p"},
        {"ratio": "21:9"},
        {"duration": 6},
        {"generate_audio": False},
    ]
    assert {name for other in others for name in other} == set(ECHOED)
    marks = [fingerprint({**REQUEST, **other}, 7) for other in [{}, *others]]
    marks.append(fingerprint(REQUEST, 8))
    assert len(set(marks)) == len(marks)


def test_what_the_list_does_not_echo_is_not_in_it():
    """Two prompts with one seed can't be told apart in the list: they must share a fingerprint."""
    other = {**REQUEST, "content": [{"type": "text", "text": "a dog"}], "watermark": True}
    assert fingerprint(other, 7) == fingerprint(dict(reversed(list(REQUEST.items()))), 7)


def test_the_fingerprint_does_not_change_between_versions():
    """It is stored: rows of an older worker and a newer one must find each other."""
    assert fingerprint(REQUEST, 7) == "ceb8a2c7d008cd2b815d0034ecaa1f2b"


def test_neighbouring_values_do_not_run_together():
    marks = [fingerprint({"model": "1", "duration": n}, m) for n, m in [(1, 12), (11, 2), (112, 0)]]
    assert all(a != b for a, b in pairwise(marks))
