"""What every mask tracker promises: memory is a value, bounded, and the same through a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.networks.load import load_network
from actors.networks.tracking import xmem
from actors.networks.tracking.bank import Bank, Limits, Projected, Tokens, fresh, store_frame
from actors.networks.tracking.cutie import Cutie, CutieMemory
from actors.networks.tracking.deaot import DeAOT, DeAOTLimits, DeAOTMemory
from actors.networks.tracking.masks import Mask, from_labels
from actors.networks.tracking.xmem import XMem, XMemMemory
from tests.actors.networks import goldens

FRAMES = 200


@dataclass(frozen=True)
class Tracker:
    """A network in a small size, its memory's class, and limits that 200 small frames reach several times."""

    build: Callable[[], Any]
    memory: type[Any]
    limits: Any
    gain: float = 1.0
    size: tuple[int, int] = (30, 47)


BANKS = Limits(every=3, top_k=8, max_frames=4, min_frames=2, prototypes=4, max_long=13, long_spare=2)
TRACKERS = {
    "xmem": Tracker(lambda: XMem(key=8, value=32, hidden=8, width=32), XMemMemory, BANKS, gain=1.2),
    "cutie": Tracker(lambda: Cutie("resnet18", channels=32, key=8), CutieMemory, replace(BANKS, stagger=2)),
    "deaot": Tracker(
        lambda: DeAOT(layers=2, channels=32), DeAOTMemory, DeAOTLimits(every=3, max_frames=4), gain=1.4, size=(33, 49)
    ),
}


@pytest.fixture(scope="module", params=TRACKERS)
def tracker(request: pytest.FixtureRequest) -> Tracker:
    return TRACKERS[request.param]


@pytest.fixture(scope="module")
def network(shared: Path, tracker: Tracker) -> Any:
    return goldens.fill(shared, tracker.build, gain=tracker.gain, keep=["inv_freq"])


@pytest.fixture(autouse=True, scope="module")
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def labels_at(time: int, size: tuple[int, int]) -> Tensor:
    """[H,W]: object 4 stays; object 7 is out of the picture from frame 60 to frame 120."""
    labels = torch.zeros(size, dtype=torch.long)
    labels[2:12, 4 + time % 9 : 16 + time % 9] = 4
    if not 60 <= time < 120:
        labels[size[0] - 14 : size[0] - 2, 20 : 32 + time % 5] = 7
    return labels


def frame_at(time: int, size: tuple[int, int]) -> Tensor:
    """[3,H,W] of about ImageNet's range: noise with the objects in their colours."""
    frame = torch.from_numpy(np.random.default_rng(time).normal(0, 0.3, (3, *size)).astype(np.float32))
    for label, colour in ((4, (1.5, -1.0, 0.3)), (7, (-1.2, 0.8, 1.6))):
        frame += (labels_at(time, size) == label) * torch.tensor(colour)[:, None, None]
    return frame


def walk(network: Any, tracker: Tracker, memory: Any, times: range) -> Iterator[tuple[Tensor, Any]]:
    """The steps of these frames; the first frame's mask shows both objects."""
    for time in times:
        mask = from_labels(labels_at(0, tracker.size), (4, 7)) if time == 0 else None
        prob, memory = network.step(frame_at(time, tracker.size), mask, memory, tracker.limits)
        yield prob, memory


def assert_equal(memory: Any, other: Any) -> None:
    arrays, others = memory.to_arrays(), other.to_arrays()
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_a_long_video_is_bounded_and_resumes_from_a_file_to_the_last_bit(
    network: Any, tracker: Tracker, tmp_path: Path
) -> None:
    probs, sizes, memory = [], [], None
    for time, (prob, memory) in enumerate(walk(network, tracker, None, range(FRAMES))):
        probs.append(prob)
        sizes.append(memory.nbytes)
        if time % 50 == 49:
            print(f"memory after frame {time}: {memory.nbytes} bytes")
        if time == 77:
            np.savez(tmp_path / "memory.npz", **memory.to_arrays())
    assert max(sizes[100:]) <= max(sizes[:100])  # the limits were reached early on, and hold
    assert torch.stack(probs).isfinite().all()
    assert len({round(float(prob[1].mean()), 6) for prob in probs}) > FRAMES // 2  # frames are not all alike

    with np.load(tmp_path / "memory.npz", allow_pickle=False) as stored:
        restored = tracker.memory.from_arrays(dict(stored))
    resumed = None
    for time, (prob, resumed) in enumerate(walk(network, tracker, restored, range(78, FRAMES)), 78):  # noqa: B007
        assert torch.equal(prob, probs[time]), time
    assert_equal(resumed, memory)


def test_memory_through_numpy_after_each_frame_gives_the_same_bits(network: Any, tracker: Tracker) -> None:
    stays = carried = None
    for time in range(14):
        [(prob, stays)] = walk(network, tracker, stays, range(time, time + 1))
        [(other, carried)] = walk(network, tracker, carried, range(time, time + 1))
        carried = tracker.memory.from_arrays({name: array.copy() for name, array in carried.to_arrays().items()})
        assert torch.equal(prob, other), time
        assert_equal(stays, carried)


def test_a_step_can_be_repeated_from_an_old_memory(network: Any, tracker: Tracker) -> None:
    memories, probs = [None], []
    for prob, memory in walk(network, tracker, None, range(8)):
        probs.append(prob)
        memories.append(memory)
    for time in reversed(range(8)):
        before = memories[time] and {name: array.copy() for name, array in memories[time].to_arrays().items()}
        [(prob, memory)] = walk(network, tracker, memories[time], range(time, time + 1))
        assert torch.equal(prob, probs[time])
        assert_equal(memory, memories[time + 1])
        if before:
            assert_equal(memories[time], tracker.memory.from_arrays(before))


def test_probabilities_are_of_the_background_and_the_objects_in_the_order_they_came(
    network: Any, tracker: Tracker
) -> None:
    size = tracker.size
    prob, memory = network.step(frame_at(0, size), from_labels(labels_at(0, size), (7,)), None, tracker.limits)
    assert memory.objects == (7,) and prob.shape == (2, *size)
    assert torch.equal(prob.argmax(0) == 1, labels_at(0, size) == 7)
    prob, memory = network.step(frame_at(1, size), None, memory, tracker.limits)
    assert memory.objects == (7,) and prob.shape == (2, *size)

    late = from_labels(labels_at(2, size), (4,))
    prob, memory = network.step(frame_at(2, size), late, memory, tracker.limits)
    assert memory.objects == (7, 4) and prob.shape == (3, *size)
    assert torch.equal(prob.argmax(0) == 2, labels_at(2, size) == 4)
    for time in range(3, 12):
        prob, memory = network.step(frame_at(time, size), None, memory, tracker.limits)
    assert memory.objects == (7, 4) and prob.shape == (3, *size)
    torch.testing.assert_close(prob.sum(0), torch.ones(size))
    assert_equal(memory, tracker.memory.from_arrays(memory.to_arrays()))

    both = from_labels(labels_at(12, size), (4, 7))  # said in another order than they came
    prob, memory = network.step(frame_at(12, size), both, memory, tracker.limits)
    assert memory.objects == (7, 4)
    assert torch.equal(prob.argmax(0) == 1, labels_at(12, size) == 7)


def test_a_corrected_object_is_where_the_mask_says_and_others_where_they_were_seen(
    network: Any, tracker: Tracker
) -> None:
    *_, (_, memory) = walk(network, tracker, None, range(4))
    planes = torch.zeros(1, *tracker.size)
    planes[0, 5:9, 30:40] = 1
    predicted, _ = network.step(frame_at(4, tracker.size), None, memory, tracker.limits)
    prob, corrected = network.step(frame_at(4, tracker.size), Mask((7,), planes), memory, tracker.limits)
    assert corrected.objects == (4, 7)
    assert torch.equal(prob.argmax(0) == 2, planes[0] > 0)
    assert not (prob[1][planes[0] > 0] > 0.01).any()
    elsewhere = (planes[0] == 0) & (predicted.argmax(0) == 1) & (predicted[1] > 0.6)
    assert (prob.argmax(0)[elsewhere] == 1).all()


def test_the_layout_of_the_weights_changes_nothing_but_the_last_bits(network: Any, tracker: Tracker) -> None:
    other = deepcopy(network).to(memory_format=torch.channels_last)
    stays = carried = plain = None
    for time in range(8):
        [(expected, plain)] = walk(network, tracker, plain, range(time, time + 1))
        [(prob, stays)] = walk(other, tracker, stays, range(time, time + 1))
        [(through_numpy, carried)] = walk(other, tracker, carried, range(time, time + 1))
        carried = tracker.memory.from_arrays(carried.to_arrays())
        torch.testing.assert_close(prob, expected, rtol=0, atol=1e-4)
        assert torch.equal(prob, through_numpy)


def test_halves_stay_halves_and_near(network: Any, tracker: Tracker) -> None:
    assert network.half_safe
    half = deepcopy(network).half()
    memory = single = None
    for time in range(tracker.limits.every * tracker.limits.max_frames + 2):
        frame = frame_at(time, tracker.size)
        mask = from_labels(labels_at(0, tracker.size), (4, 7)) if time == 0 else None
        prob, memory = half.step(frame.half(), mask, memory, tracker.limits)
        expected, single = network.step(frame, mask, single, tracker.limits)
        assert prob.dtype == torch.float32 and prob.isfinite().all()
        # Later, labels and prototypes may be chosen otherwise where weights are random and nothing is clear.
        assert time > 2 or (prob - expected).abs().max() < 0.02, time
    late = from_labels(labels_at(0, tracker.size), (4, 5))
    prob, memory = half.step(frame.half(), late, memory, tracker.limits)
    assert prob.dtype == torch.float32 and prob.isfinite().all()
    assert_equal(memory, tracker.memory.from_arrays(memory.to_arrays()))


def test_the_loader_knows_it_by_its_keys(network: Any, tracker: Tracker, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "net.pth")
    loaded = load_network(tmp_path / "net.pth")
    assert type(loaded.network) is type(network)
    assert TRACKERS[loaded.kind] is tracker


def test_what_cannot_be_is_an_error_that_says_why(network: Any, tracker: Tracker) -> None:
    size = tracker.size
    with pytest.raises(ValueError, match="first frame of a video needs a mask"):
        network.step(frame_at(0, size), None, None, tracker.limits)
    *_, (_, memory) = walk(network, tracker, None, range(1))
    with pytest.raises(ValueError, match=r"frames of \dx\d places of 16 pixels, the frame has \dx\d"):
        network.step(frame_at(1, (size[0] + 32, size[1])), None, memory, tracker.limits)
    with pytest.raises(ValueError, match=rf"the mask is {size[0]}x20, its frame {size[0]}x{size[1]}"):
        network.step(frame_at(0, size), Mask((4,), torch.zeros(1, size[0], 20)), None, tracker.limits)
    with pytest.raises(ValueError, match="lack"):
        tracker.memory.from_arrays({"time": np.int64(3)})
    with pytest.raises(ValueError, match="each once"):
        Mask((4, 4), torch.zeros(2, *size))
    with pytest.raises(ValueError, match=r"planes \[2,H,W\]"):
        Mask((4, 7), torch.zeros(1, *size))


def tokens_of(frame: int, objects: int = 1, places: int = 3) -> Tokens:
    """Tokens that say in their value which frame they are of."""
    generator = torch.Generator().manual_seed(frame)
    key = torch.rand(2, places, generator=generator)
    return fresh(key, torch.ones(1, places), torch.full((objects, 1, places), float(frame)), torch.ones(2, places))


def test_without_long_term_memory_the_frame_of_the_mask_and_the_newest_stay() -> None:
    bank = Bank.of(tokens_of(0))
    for frame in range(1, 9):
        bank = bank.stored(tokens_of(frame), replace(BANKS, long_term=False, max_frames=3), xmem.survivors)
    assert bank.first.value[0, 0].tolist() == [0, 0, 0]
    assert bank.recent.value[0, 0].tolist() == [7, 7, 7, 8, 8, 8]
    assert len(bank.long) == 0


def test_prototypes_lie_between_the_tokens_they_stand_for() -> None:
    bank = Bank.of(tokens_of(0))
    for frame in range(1, 4):
        bank = bank.stored(tokens_of(frame), replace(BANKS, min_frames=1), xmem.survivors)
    assert len(bank.recent) == 0 and len(bank.long) == BANKS.prototypes
    assert ((bank.long.value > 1) & (bank.long.value < 3)).all()


def test_objects_of_a_mask_share_a_bank_and_later_ones_have_their_own() -> None:
    places = Projected(torch.rand(1, 2, 1, 3), torch.ones(1, 1, 1, 3), torch.ones(1, 2, 1, 3))
    banks = store_frame((), places, torch.rand(2, 4, 1, 3), BANKS, xmem.survivors)
    banks = store_frame(banks, places, torch.rand(3, 4, 1, 3), BANKS, xmem.survivors)
    assert [bank.objects for bank in banks] == [2, 1]
    assert [len(bank.first) + len(bank.recent) for bank in banks] == [6, 3]


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"min_frames": 4}, {"max_long": 6}, {"long_spare": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_limits_that_cannot_hold_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"min_frames|max_long|at least 1"):
        replace(BANKS, **wrong)
