"""Residents: the one used least recently makes room, what is in use never does."""

from __future__ import annotations

import random
import time

import pytest

from actors.residency import Residents


def test_least_recently_used_makes_room() -> None:
    gone: list[str] = []
    residents: Residents[str] = Residents(2, gone.append)
    for key in ("a", "b", "a", "c"):
        assert residents.take([key], str.upper) == [key.upper()]
        residents.give_back([key])
    assert (residents.keys, gone) == (("a", "c"), ["b"])
    assert (residents.loads, residents.unloads) == (3, 1)


def test_what_is_in_use_stays_whatever_is_asked_for() -> None:
    residents: Residents[str] = Residents(2, lambda _: None)
    residents.take(["a", "b"], str.upper)
    assert residents.has_room(["a", "b"])
    assert not residents.has_room(["c"])
    assert residents.unload_idle() == []
    residents.give_back(["a", "b"])
    assert residents.has_room(["c"])
    assert not residents.fits(["a", "b", "c"])


def test_used_twice_is_in_use_until_both_gave_it_back() -> None:
    residents: Residents[str] = Residents(1, lambda _: None)
    residents.take(["a"], str.upper)
    residents.take(["a"], str.upper)
    residents.give_back(["a"])
    assert not residents.has_room(["b"])
    residents.give_back(["a"])
    assert residents.has_room(["b"])


def test_model_that_cannot_be_loaded_is_not_in_use() -> None:
    residents: Residents[str] = Residents(2, lambda _: None)

    def load(key: str) -> str:
        if key == "b":
            raise OSError("no such file")
        return key

    with pytest.raises(OSError, match="no such file"):
        residents.take(["a", "b"], load)
    assert residents.keys == ("a",)
    assert residents.unload_idle() == ["a"]


def test_idle_ones_are_unloaded_after_their_time_and_others_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    residents: Residents[str] = Residents(3, lambda _: None)
    residents.take(["a", "b"], str.upper)
    residents.give_back(["a"])
    now = 109.0
    assert residents.unload_idle(10) == []
    now = 111.0
    assert residents.unload_idle(10) == ["a"]
    assert residents.keys == ("b",)


def test_any_order_of_uses_keeps_the_room_and_what_is_in_use() -> None:
    dice = random.Random(3)
    in_use: list[str] = []

    def gone(key: str) -> None:
        assert key not in in_use

    residents: Residents[str] = Residents(3, gone)
    for _ in range(5000):
        if in_use and dice.random() < 0.5:
            key = in_use.pop(dice.randrange(len(in_use)))
            residents.give_back([key])
        else:
            key = dice.choice("abcdef")
            if residents.has_room([key]):
                residents.take([key], str.upper)
                in_use.append(key)
        assert len(residents.keys) <= 3
        assert set(in_use) <= set(residents.keys)
