from __future__ import annotations

import pytest
from datasketch.lsh import _optimal_param

from datamix.core.errors import RecipeError
from datamix.dedup import DedupeSpec, NearSpec
from datamix.dedup.spec import balanced_banding, recall


def test_the_measured_bands_and_those_asked_for():
    assert NearSpec().banding == (18, 6)
    assert NearSpec(threshold=0.7).banding == (22, 5)
    assert NearSpec(bands=14, rows=8).banding == (14, 8)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.65, 0.75, 0.85, 0.9, 0.99, 1.0])
def test_other_thresholds_find_nearly_every_pair_at_the_threshold(threshold):
    bands, rows = NearSpec(threshold=threshold).banding
    assert bands * rows <= 128
    assert recall(threshold, bands, rows) >= 0.995


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.8, 128), (0.5, 64), (0.9, 100)])
def test_a_number_of_permutations_gives_the_bands_of_datasketch(threshold, num_perm):
    assert balanced_banding(threshold, num_perm) == _optimal_param(threshold, num_perm, 0.5, 0.5)
    assert NearSpec(threshold=threshold, num_perm=num_perm).banding == balanced_banding(threshold, num_perm)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearSpec(threshold=0), "threshold"),
        (lambda: NearSpec(threshold=1.2), "threshold"),
        (lambda: NearSpec(ngram=0), "ngram"),
        (lambda: NearSpec(bands=3), "belong together"),
        (lambda: DedupeSpec(keep=0), "keep"),
        (lambda: DedupeSpec(exact=False), "nothing would be deduplicated"),
    ],
)
def test_specs_that_make_no_sense_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
