from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from jepa_lightning.explore.items import Item
from jepa_lightning.explore.subject import Bank, Subject, perplexity, similarity
from jepa_lightning.models.attention_maps import attention_maps

SubjectFactory = Callable[..., Subject]
ItemFactory = Callable[..., list[Item]]


def test_an_image_is_normalised_and_has_no_time_axis(subject: SubjectFactory, items: ItemFactory) -> None:
    pixels = items(1)[0].pixels
    inputs = subject().inputs(pixels)
    assert inputs.shape == (1, 3, 32, 32)
    torch.testing.assert_close(inputs[0], (pixels[:, 0] / 255.0 - 0.5) / 0.25)


def test_a_clip_keeps_its_time_axis(subject: SubjectFactory, items: ItemFactory) -> None:
    network, (item,) = subject(num_frames=4, tubelet_size=2), items(1, frames=4)
    assert network.inputs(item.pixels).shape == (1, 3, 4, 32, 32)
    assert network.grid(item.pixels) == (2, 4, 4)


def test_tokens_are_those_of_the_encoder_at_every_layer(subject: SubjectFactory, items: ItemFactory) -> None:
    network, (item,) = subject(), items(1)
    inputs = network.inputs(item.pixels)
    torch.testing.assert_close(network.tokens(item.pixels), network.encoder(inputs)[0])
    torch.testing.assert_close(network.tokens(item.pixels, 0), network.encoder(inputs, layers=[0])[0][0])


def test_expectation_is_the_prediction_from_the_context_encoder(subject: SubjectFactory, items: ItemFactory) -> None:
    network, (item,) = subject(), items(1)
    hidden = torch.zeros(16, dtype=torch.bool)
    hidden[[3, 7]] = True
    found = network.expect(item.pixels, hidden)
    inputs, context = network.inputs(item.pixels), (~hidden).nonzero().T
    shown = network.context_encoder(inputs, context)
    expected = network.predictor(shown, context, torch.tensor([[[3, 7]]]))[0, 0]
    seen = F.layer_norm(network.encoder(inputs)[0], (32,))
    torch.testing.assert_close(found.predicted, expected)
    torch.testing.assert_close(found.seen, seen[[3, 7]])
    torch.testing.assert_close(found.surprise, (expected - seen[[3, 7]]).square().mean(dim=1))
    torch.testing.assert_close(found.against_mean, (seen.mean(dim=0) - seen[[3, 7]]).square().mean(dim=1))


@pytest.mark.parametrize("count", [0, 16])
def test_hiding_nothing_or_everything_is_refused(subject: SubjectFactory, items: ItemFactory, count: int) -> None:
    with pytest.raises(ValueError, match="hide some patches, and leave some"):
        subject().expect(items(1)[0].pixels, torch.arange(16) < count)


def test_a_checkpoint_without_a_predictor_says_so(subject: SubjectFactory, items: ItemFactory) -> None:
    with pytest.raises(ValueError, match="has no predictor"):
        subject(predictor=False).expect(items(1)[0].pixels, torch.arange(16) < 4)


def test_patches_are_cut_in_raster_order_and_of_a_tubelet_the_first_frame(
    subject: SubjectFactory, items: ItemFactory
) -> None:
    network, (item,) = subject(num_frames=4, tubelet_size=2), items(1, frames=4)
    patches = network.patches(item.pixels)
    assert patches.shape == (32, 3, 8, 8)
    for token, (step, row, column) in {0: (0, 0, 0), 6: (0, 1, 2), 16 + 13: (1, 3, 1)}.items():
        box = item.pixels[:, 2 * step, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert torch.equal(patches[token], box)


def test_the_nearest_patch_to_a_feature_of_the_bank_is_its_own_unless_it_is_left_out(
    subject: SubjectFactory, items: ItemFactory
) -> None:
    network, samples = subject(), items(3)
    bank = Bank(network, [item.pixels for item in samples])
    bank.grow(60)
    own = F.layer_norm(network.tokens(samples[1].pixels), (32,))
    assert torch.equal(bank.nearest(own)[:, 0], network.patches(samples[1].pixels))
    others = bank.nearest(own, count=4, without=1)
    mine = {patch.numpy().tobytes() for patch in network.patches(samples[1].pixels)}
    assert others.shape == (16, 4, 3, 8, 8)
    assert not mine & {patch.numpy().tobytes() for patch in others.flatten(0, 1)}


def test_a_bank_grows_by_two_inputs_at_least_and_ends_where_one_that_had_time_does(
    subject: SubjectFactory, items: ItemFactory
) -> None:
    network, samples = subject(), items(5)
    patient, hurried = (Bank(network, [item.pixels for item in samples]) for _ in range(2))
    patient.grow(60)
    for count in (2, 4, 5, 5):
        hurried.grow(0)
        assert hurried.count == count
        assert hurried.rows is not None
        assert [len(column) for column in hurried.rows] == [16 * count] * 3
    assert patient.rows is not None
    for one, other in zip(hurried.rows, patient.rows, strict=True):
        assert torch.equal(one, other)


def test_a_bank_answers_from_what_it_had_while_it_grows(
    subject: SubjectFactory, items: ItemFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, samples = subject(), items(4)
    bank, targets = Bank(network, [item.pixels for item in samples]), network.targets
    wanted = targets(samples[3].pixels)
    with pytest.raises(ValueError, match="let it grow first"):
        bank.nearest(wanted)
    bank.grow(0)
    before = bank.nearest(wanted, without=0)
    asked: list[torch.Tensor] = []

    def asked_meanwhile(pixels: torch.Tensor) -> torch.Tensor:
        """What another thread would do between one input and the next."""
        asked.append(bank.nearest(wanted, without=0))
        return targets(pixels)

    monkeypatch.setattr(network, "targets", asked_meanwhile)
    bank.grow(0)
    assert len(asked) == 2
    assert all(torch.equal(answer, before) for answer in asked)
    assert not torch.equal(bank.nearest(wanted, without=0), before)


def test_perplexity_is_the_number_of_tokens_that_share_the_attention() -> None:
    assert perplexity(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])).tolist() == pytest.approx([4, 1, 2])


def test_similarity_is_the_cosine() -> None:
    tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    torch.testing.assert_close(similarity(tokens, 0), torch.tensor([1.0, 0.0, 0.5**0.5]))


def test_attention_and_tokens_of_one_pass_are_those_of_two(subject: SubjectFactory, items: ItemFactory) -> None:
    network, (item,) = subject(), items(1)
    passes: list[int] = []
    network.encoder.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    for layer in (0, 1):
        attention, tokens = network.look(item.pixels, layer)
        inputs = network.inputs(item.pixels)
        assert torch.equal(attention, attention_maps(network.encoder, inputs, blocks=(layer,))[0][0])
        assert torch.equal(tokens, network.encoder(inputs, layers=layer)[0])
    assert len(passes) == 2 * 3


def test_all_questions_are_computed_in_one_thread(subject: SubjectFactory, items: ItemFactory) -> None:
    # Every thread that computes would bring OpenMP threads of its own, and these spin for each other.
    network, samples = subject(), items(6)
    threads = set()
    network.encoder.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    hidden = torch.arange(16) < 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: network.expect(item.pixels, hidden), samples))
        list(pool.map(lambda item: network.attention(item.pixels, 0), samples))
    network.tokens(samples[0].pixels)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_questions_asked_at_once_get_the_answers_of_one_after_the_other(
    subject: SubjectFactory, items: ItemFactory
) -> None:
    network, samples = subject(), items(24)
    hidden = torch.arange(16) < 4
    alone = [(network.attention(item.pixels, 0), network.expect(item.pixels, hidden).surprise) for item in samples]
    with ThreadPoolExecutor(8) as pool:
        maps = pool.map(lambda item: network.attention(item.pixels, 0), samples)
        surprises = pool.map(lambda item: network.expect(item.pixels, hidden).surprise, samples)
        for (attention, surprise), found, other in zip(alone, maps, surprises, strict=True):
            assert torch.equal(attention, found)
            assert torch.equal(surprise, other)
