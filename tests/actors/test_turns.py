"""Turns: requests first, in order of arrival, and batch never starves."""

from __future__ import annotations

from actors.turns import Turns


def anything(_: str) -> bool:
    return True


def taken(turns: Turns[str], count: int) -> list[str]:
    """Items that take one turn each."""
    found = []
    for _ in range(count):
        item = turns.next(anything)
        assert item is not None
        turns.remove(item)
        found.append(item)
    return found


def test_requests_go_before_batch_and_each_class_in_order_of_arrival() -> None:
    turns: Turns[str] = Turns()
    for item in ("b1", "i1", "b2", "i2"):
        turns.add(item, "batch" if item.startswith("b") else "interactive")
    assert taken(turns, 4) == ["i1", "i2", "b1", "b2"]
    assert turns.next(anything) is None


def test_request_goes_between_two_turns_of_a_batch_call_that_then_goes_on() -> None:
    turns: Turns[str] = Turns()
    turns.add("b1", "batch")
    turns.add("b2", "batch")
    assert turns.next(anything) == "b1"
    turns.add("i1", "interactive")
    assert turns.next(anything) == "i1"
    turns.remove("i1")
    assert turns.next(anything) == "b1"
    turns.remove("b1")
    assert turns.next(anything) == "b2"


def test_batch_gets_two_of_any_twenty_turns_under_a_constant_stream_of_requests() -> None:
    turns: Turns[str] = Turns()
    for number in range(500):
        turns.add(f"i{number}", "interactive")
        turns.add(f"b{number}", "batch")
    order = "".join(item[0] for item in taken(turns, 400))
    counts = [order[first : first + 20].count("b") for first in range(381)]
    assert min(counts) == 2
    assert max(counts) == 2


def test_batch_that_comes_late_waits_for_nine_requests_at_most() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.add(f"i{number}", "interactive")
    taken(turns, 50)
    turns.add("b", "batch")
    assert taken(turns, 10).index("b") == 9


def test_removed_items_never_have_a_turn() -> None:
    turns: Turns[str] = Turns()
    for item in ("b1", "b2", "b3"):
        turns.add(item, "batch")
    turns.remove("b2")
    assert taken(turns, 2) == ["b1", "b3"]
    turns.remove("b1")


def test_held_batch_does_not_begin_and_what_has_begun_goes_on() -> None:
    turns: Turns[str] = Turns()
    turns.add("b1", "batch")
    turns.add("b2", "batch")
    assert turns.next(anything) == "b1"
    turns.held = "the GPU is hot"
    assert turns.next(anything) == "b1"
    turns.remove("b1")
    assert turns.next(anything) is None
    turns.add("i1", "interactive")
    assert taken(turns, 1) == ["i1"]
    turns.held = ""
    assert turns.next(anything) == "b2"


def test_item_that_cannot_run_waits_for_the_other_class() -> None:
    turns: Turns[str] = Turns()
    turns.add("b1", "batch")
    assert turns.next(anything) == "b1"
    turns.add("i1", "interactive")
    turns.add("i2", "interactive")
    assert turns.next(lambda item: item == "b1") == "b1"
    turns.remove("b1")
    assert taken(turns, 2) == ["i1", "i2"]


def test_what_waits_and_has_begun_is_counted() -> None:
    turns: Turns[str] = Turns()
    for item in ("b1", "b2", "i1"):
        turns.add(item, "batch" if item.startswith("b") else "interactive")
    turns.next(anything)
    assert (turns.count("interactive"), turns.count("batch")) == (1, 2)
    assert turns.begun() == ["i1"]
    assert turns.waiting() == ["b1", "b2"]
