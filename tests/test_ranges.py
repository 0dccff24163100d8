"""Settings and their ranges: every one of them refuses what it may not be, and names its key."""

import math

import pytest

from ijepa_jax.settings import evaluation, plain, ranges, run

TREES = {"run": run.SETTINGS, "evaluation": evaluation.SETTINGS}
EVERY = [(kind, key, setting) for kind, tree in TREES.items() for key, setting in plain.flat(tree)]
NUMBERS = [entry for entry in EVERY if entry[2].kind in (int, float)]
_PAIR = ranges.whole((1, 2), 0, 9, length=2, rising=True)


def wrong_values(setting: ranges.Setting) -> list:
    """Values that no setting of this kind may have, and those just beyond its ends."""
    if setting.kind is bool:
        return [1, "True", None]
    if setting.kind is str:
        return [7, *(["", "no such name"] if setting.names else []), *([] if setting.optional else [None])]
    step = 1 if setting.kind is int else 1e-9
    beyond = [setting.low - step, setting.high + max(step, setting.high * 1e-9)]
    beyond += [setting.low] if setting.ends[0] == "(" else []
    beyond += [setting.high] if setting.ends[1] == ")" else []
    beyond += [] if setting.never is None else [setting.never]
    odd = [math.nan, math.inf, -math.inf, 1e300, 10**20, True, "7", *([] if setting.optional else [None])]
    return [*beyond, *odd, *([setting.low + 0.5] if setting.kind is int else [])]


@pytest.mark.parametrize(("kind", "key", "setting"), EVERY, ids=lambda value: value if isinstance(value, str) else "")
def test_a_setting_takes_its_default_and_refuses_what_it_may_not_be_by_name(kind, key, setting):
    assert setting.problem(setting.default) == ""
    for value in wrong_values(setting):
        given = value if setting.length is None else (value,) * max(2, setting.length)
        made = ranges.defaults(TREES[kind]).to_dict()
        *sections, name = key.split(".")
        section = made
        for part in sections:
            section = section[part]
        section[name] = given
        with pytest.raises(ValueError, match=f"^{key} .* must be ") as refused:
            ranges.check(made, TREES[kind])
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "key", "setting"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_number_may_be_the_ends_that_belong_to_it(kind, key, setting):
    assert math.isfinite(setting.low) and math.isfinite(setting.high)
    ends = [end for end, mark in zip((setting.low, setting.high), setting.ends, strict=True) if mark in "[]"]
    for end in (setting.kind(end) for end in ends):
        assert setting.problem(end if setting.length is None else (end,) * max(1, setting.length)) == ""


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (ranges.whole(3, 1, 2000), 0, "a whole number from 1 to 2,000"),
        (ranges.whole(None, 1, 9), 0, "a whole number from 1 to 9, or None"),
        (ranges.whole(-1, -1, 9, never=0), 0, "a whole number from -1 to 9, but not 0"),
        (ranges.number(0.5, 0, 1, "(]"), 0, "a number above 0 and at most 1"),
        (ranges.number(0.5, 0, 1, "[)"), 1, "a number at least 0 and below 1"),
        (ranges.number(0.5, 0, 1, "()"), 1, "a number between 0 and 1"),
        (ranges.choice("a", ("a", "b")), "c", "one of a, b"),
        (ranges.choice(("a",), ("a", "b"), length=0), (), "one or more values, one of a, b"),
        (ranges.flag(True), 0, "True or False"),
        (ranges.text(""), 0, "a text"),
        (ranges.whole((1, 1), 1, 9, length=2), (1,), "2 values, whole numbers from 1 to 9"),
        (ranges.whole(4, 1, 9, each_axis=True), (1, 2, 3, 4), "a whole number from 1 to 9, or one for each axis"),
        (ranges.whole((4, 4), 1, 9, length=0, each_axis=True), 4, "one to three values, whole numbers from 1 to 9"),
        (_PAIR, (2, 1), "2 values, whole numbers from 0 to 9, the first not above the second"),
        (ranges.number((1.0, 2.0), 0, 9, length=2), 1.0, "2 values, numbers from 0 to 9"),
    ],
)  # fmt: skip
def test_what_a_setting_may_be_is_said_in_words(setting, value, words):
    assert setting.problem(setting.default) == "" and setting.problem(value) == words
