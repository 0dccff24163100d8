"""Unreadable images are named once, listed for good, and stop the run when they are too many."""

import numpy as np
import pytest
from etils import epath

from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.bad import BadImages
from ijepa_jax.data.source import DataError

SOURCE = ArraySource(np.zeros((1000, 2, 2), np.uint8), {}, "pictures")


def _bad(*rows: int, size: int = 100) -> np.ndarray:
    return np.array([*rows, *[-1] * (size - len(rows))], np.int64)


def test_each_is_named_once_and_listed(tmp_path):
    lines = []
    listing = epath.Path(tmp_path / "bad_images.txt")
    account = BadImages(listing, 1000, 0.01, lines.append)
    account.account(SOURCE, _bad())
    assert not listing.exists()
    account.account(SOURCE, _bad(7, 3))
    account.account(SOURCE, _bad(7))
    assert lines == [
        "skipped unreadable image pictures image 3 (1 so far)",
        "skipped unreadable image pictures image 7 (2 so far)",
    ]
    again = BadImages(listing, 1000, 0.01, lines.append)
    again.account(SOURCE, _bad(7, 8))
    assert lines[2:] == ["skipped unreadable image pictures image 8 (3 so far)"]
    assert listing.read_text().splitlines() == ["pictures image 3", "pictures image 7", "pictures image 8"]


def test_the_limit_is_a_share_of_an_epoch_and_later_of_all_that_was_shown(tmp_path):
    account = BadImages(epath.Path(tmp_path / "bad"), 1000, 0.01, print)
    account.account(SOURCE, _bad(*range(10)))  # one in ten of those shown, but 1% of an epoch
    with pytest.raises(
        DataError, match=r"11 of 1000 images are unreadable, more than data\.max_bad_fraction 0\.01: for example"
    ):
        account.account(SOURCE, _bad(10))
    later = BadImages(epath.Path(tmp_path / "later"), 1000, 0.01, print)
    for _ in range(50):  # five epochs of a share of 1%: the same ten again and again
        later.account(SOURCE, _bad(0))
    with pytest.raises(DataError, match="of 5100 images"):
        later.account(SOURCE, _bad(*range(20)))


def test_no_bad_image_at_all_can_be_asked_for(tmp_path):
    account = BadImages(epath.Path(tmp_path / "bad"), 1000, 0.0, print)
    account.account(SOURCE, _bad())
    with pytest.raises(DataError, match="for example pictures image 3"):
        account.account(SOURCE, _bad(3))


def test_a_damaged_list_stops_nothing_and_is_said(tmp_path):
    listing, lines = epath.Path(tmp_path / "bad_images.txt"), []
    listing.write_bytes(b"pictures image 3\n\xff\x00")
    account = BadImages(listing, 1000, 0.01, lines.append)
    account.account(SOURCE, _bad(7))
    assert lines == [
        f"{listing} is no list of names: set aside as {tmp_path}/damaged-bad_images.txt, unreadable images are listed anew",
        "skipped unreadable image pictures image 7 (1 so far)",
    ]
    assert listing.read_text() == "pictures image 7\n"
