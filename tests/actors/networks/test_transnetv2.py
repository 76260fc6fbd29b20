"""TransNet V2 agrees with the official network, and a film in pieces of any length scores as in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.networks.transnetv2 import Scores, TransNetV2, detect, finish, step
from tests.actors.networks import goldens
from tests.conftest import SoakCount


@pytest.fixture(scope="module")
def network(shared: Path) -> TransNetV2:
    return goldens.fill(shared, TransNetV2, gain=1.4)


class Recorder(TransNetV2):
    """Answers at once, with numbers that tell each frame, its place in the window and the window's other frames."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        assert frames.shape == (1, 100, 27, 48, 3)
        place = torch.linspace(-1, 1, 100)
        values = frames.float().mean((2, 3, 4))[0] / 255
        one_hot = values + place * values.flip(0)
        return one_hot[None, :, None], values.cumsum(0)[None, :, None] / 100


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


def film(length: int) -> Tensor:
    """Noise with a cut every 31 frames."""
    generator = torch.Generator().manual_seed(length)
    noise = torch.randint(0, 96, (length, 27, 48, 3), generator=generator)
    shots = torch.randint(0, 160, (length // 31 + 1, 1, 1, 3), generator=generator)
    return (noise + shots.repeat_interleave(31, 0)[:length]).to(torch.uint8)


def in_pieces(network: TransNetV2, frames: Tensor, size: int) -> Scores:
    state = None
    found = []
    for piece in frames.split(size):
        scores, state = step(network, piece, state)
        found.append(scores)
    assert state is not None
    found.append(finish(network, state))
    return Scores(torch.cat([s.one_hot for s in found]), torch.cat([s.many_hot for s in found]))


def as_the_authors_do(network: TransNetV2, frames: Tensor) -> Scores:
    """The whole film at once, windows written out from the published description."""
    length = len(frames)
    behind = 25 + 50 - (length % 50 or 50)
    padded = torch.cat([frames[:1].repeat(25, 1, 1, 1), frames, frames[-1:].repeat(behind, 1, 1, 1)])
    found = []
    for start in range(0, len(padded) - 99, 50):
        logits = network(padded[None, start : start + 100])
        found.append([torch.sigmoid(x[0, 25:75, 0]) for x in logits])
    return Scores(*(torch.cat(x)[:length] for x in zip(*found, strict=True)))


def outputs(network: TransNetV2, frames: Tensor) -> dict[str, Tensor]:
    one_hot, many_hot = network(frames)
    return {"one_hot": one_hot, "many_hot": many_hot, "one_hot_sigmoid": torch.sigmoid(one_hot)}


@torch.inference_mode()
def test_logits_equal_the_official_network(shared: Path, network: TransNetV2) -> None:
    goldens.check(shared, "transnetv2", outputs(network, goldens.arrays(shared, "transnetv2")["frames"]))


def test_state_dict_has_the_official_names_shapes_and_order(shared: Path, network: TransNetV2) -> None:
    goldens.check_keys(shared, "transnetv2", network)
    found = detect(network.state_dict())
    assert found is not None
    found.load_state_dict(network.state_dict(), strict=True)
    assert detect({}) is None


def test_every_tensor_of_the_state_dict_matters(network: TransNetV2) -> None:
    frames = film(24)[None]
    assert goldens.dead(network, lambda: outputs(network, frames).values()) == set()


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 20, 33])
def test_a_batch_gives_what_its_stretches_give_at_any_length(network: TransNetV2, length: int) -> None:
    a, b = film(length), film(length).flip(0)
    for together, alone_a, alone_b in zip(
        network(torch.stack([a, b])), network(a[None]), network(b[None]), strict=True
    ):
        torch.testing.assert_close(together, torch.cat([alone_a, alone_b]), rtol=0, atol=1e-5)


@pytest.mark.soak
@torch.inference_mode()
def test_a_film_in_pieces_scores_bit_for_bit_as_in_one(network: TransNetV2, soak_count: SoakCount) -> None:
    frames = film(80)
    whole = as_the_authors_do(network, frames)
    assert whole.one_hot.shape == whole.many_hot.shape == (80,)
    for size in (7, 333, 1, 50)[: soak_count(1, 4)]:
        scores = in_pieces(network, frames, size)
        assert torch.equal(scores.one_hot, whole.one_hot), size
        assert torch.equal(scores.many_hot, whole.many_hot), size


@pytest.mark.parametrize("length", [1, 2, 24, 25, 26, 49, 50, 51, 74, 75, 76, 99, 100, 101, 125, 333, 400, 1001])
@pytest.mark.parametrize("size", [1, 7, 50, 333])
def test_pieces_see_the_windows_of_the_whole_film_at_every_length(recorder: Recorder, size: int, length: int) -> None:
    frames = film(length)
    whole, scores = as_the_authors_do(recorder, frames), in_pieces(recorder, frames, size)
    assert len(scores.one_hot) == length
    assert torch.equal(scores.one_hot, whole.one_hot)
    assert torch.equal(scores.many_hot, whole.many_hot)


def test_pieces_may_differ_in_length(recorder: Recorder) -> None:
    frames = film(500)
    state, found = None, []
    for piece in frames.split([3, 97, 1, 149, 50, 200]):
        scores, state = step(recorder, piece, state)
        found.append(scores.one_hot)
    assert state is not None
    assert torch.equal(
        torch.cat([*found, finish(recorder, state).one_hot]), as_the_authors_do(recorder, frames).one_hot
    )


def test_state_is_a_small_value_of_its_own(recorder: Recorder) -> None:
    frames = film(800)
    _, state = step(recorder, frames[:640])
    most = 0
    for piece in frames[640:].split(9):
        before = state.clone()
        stored = torch.from_numpy(np.frombuffer(state.numpy().tobytes(), np.uint8).reshape(state.shape).copy())
        ours, following = step(recorder, piece, state)
        theirs, _ = step(recorder, piece, stored)
        assert torch.equal(state, before)
        assert torch.equal(ours.one_hot, theirs.one_hot)
        most = max(most, state.untyped_storage().nbytes())
        state = following
    assert most <= 99 * 27 * 48 * 3


def test_frames_of_another_kind_are_refused(network: TransNetV2) -> None:
    for frames in (torch.zeros(4, 27, 48, 3), torch.zeros(4, 48, 27, 3, dtype=torch.uint8), film(1)[0], film(1)[:0]):
        with pytest.raises(ValueError, match=r"uint8 \[N,27,48,3\], got"):
            step(network, frames)
    with pytest.raises(ValueError, match=r"uint8 \[B,T,27,48,3\], got"):
        network(film(4))
