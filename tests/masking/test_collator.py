from __future__ import annotations

import torch
from torch import Tensor

from jepa_lightning.masking import MaskCollator, MaskedBatch, MultiBlock, MultiBlock3D, Padded, Sample, seeded


def samples(*indices: int, epoch: int = 0, step: int = 0) -> list[Sample]:
    return [Sample(torch.full((3, 8, 8), float(i)), label=i % 3, index=i, epoch=epoch, step=step) for i in indices]


def masks_of(batch: MaskedBatch) -> list[list[int]]:
    return [*batch.masks[0].context.tolist(), *batch.masks[0].targets.flatten(1).tolist()]


def test_inputs_labels_and_index_are_stacked() -> None:
    batch = MaskCollator(MultiBlock(14))(samples(4, 7, 2))
    assert batch.inputs.shape == (3, 3, 8, 8)
    assert batch.inputs[:, 0, 0, 0].tolist() == [4.0, 7.0, 2.0]
    assert batch.labels.tolist() == [1, 1, 2]
    assert batch.index.tolist() == [4, 7, 2]
    assert len(batch.masks) == 1
    assert batch.masks[0].context.shape[0] == batch.masks[0].targets.shape[0] == 3


def test_the_same_seed_epoch_and_sample_give_the_same_masks_whatever_happened_before() -> None:
    expected = masks_of(MaskCollator(MultiBlock(14), seed=5)(samples(1, 2, 3, epoch=4)))
    collator = MaskCollator(MultiBlock(14), seed=5)
    for i in range(3):
        collator(samples(i, i + 1))
    torch.rand(3)
    assert masks_of(collator(samples(1, 2, 3, epoch=4))) == expected


def test_another_epoch_sample_or_seed_gives_other_masks() -> None:
    base = masks_of(MaskCollator(MultiBlock(14), seed=5)(samples(1, 2, 3, epoch=4)))
    others = [
        MaskCollator(MultiBlock(14), seed=5)(samples(1, 2, 3, epoch=5)),
        MaskCollator(MultiBlock(14), seed=5)(samples(2, 1, 3, epoch=4)),
        MaskCollator(MultiBlock(14), seed=6)(samples(1, 2, 3, epoch=4)),
    ]
    drawn = [base, *[masks_of(batch) for batch in others]]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])


def test_the_masks_do_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    MaskCollator(MultiBlock(14))(samples(1, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_official_sampler_gets_the_number_of_the_batch() -> None:
    collator, direct = MaskCollator(MultiBlock(14, compat=True)), MultiBlock(14, compat=True)
    batch = collator(samples(3, 4, epoch=1, step=9))
    (expected,) = direct.sample(2, seeded("masks", 0, 1, 3), step=9)
    assert torch.equal(batch.masks[0].context, expected.context)
    assert torch.equal(batch.masks[0].targets, expected.targets)


def test_plain_pairs_of_image_and_label_work() -> None:
    pairs: list[tuple[Tensor, int]] = [(torch.ones(3, 8, 8), 2), (torch.zeros(3, 8, 8), 0)]
    batch = MaskCollator(MultiBlock(14))(pairs)
    assert batch.inputs.shape == (2, 3, 8, 8)
    assert batch.labels.tolist() == [2, 0]
    assert batch.index is None  # nothing tells which samples they are
    assert batch.masks[0].targets.shape[:2] == (2, 4)


def test_samples_that_do_not_tell_their_index_get_other_masks_in_every_batch() -> None:
    collator, unknown = MaskCollator(MultiBlock(14)), [Sample(torch.zeros(3, 8, 8))] * 3
    first, second = collator(unknown), collator(unknown)
    assert first.index is None
    assert masks_of(first) != masks_of(second)


def test_a_sample_that_is_drawn_again_in_an_epoch_gets_other_masks_the_same_after_a_resume() -> None:
    collator = MaskCollator(MultiBlock(14))

    def batch(turn: int) -> list[list[int]]:
        return masks_of(collator([sample._replace(turn=turn) for sample in samples(1, 2, 3, epoch=4)]))

    drawn = [batch(turn) for turn in (0, 3, 6)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
    assert drawn == [batch(turn) for turn in (0, 3, 6)]
    assert drawn[0] == masks_of(collator(samples(1, 2, 3, epoch=4)))  # the first turn is that of a plain shuffle


def test_without_a_sampler_there_are_no_masks() -> None:
    assert MaskCollator(None)(samples(1, 2)).masks == ()


def test_pixels_keep_their_type() -> None:
    image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    assert MaskCollator(None)([Sample(image), Sample(image)]).inputs.dtype == torch.uint8


def test_a_key_gives_the_same_numbers_everywhere_and_every_part_of_it_counts() -> None:
    keys = [
        ("masks", 0, 0, 1),
        ("masks", 0, 1, 0),
        ("masks", 1, 0, 0),
        ("order", 0, 0, 1),
        ("masks", 0, 0),
        ("masks0",),
    ]
    drawn = [torch.rand(4, generator=seeded(*key)).tolist() for key in keys]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
    assert drawn == [torch.rand(4, generator=seeded(*key)).tolist() for key in keys]
    assert seeded("masks", 0, 0, 1).initial_seed() == 5338578424428651916  # the same in every process and version


def test_the_collator_says_where_tokens_are_if_samples_have_different_numbers_of_them() -> None:
    batch = MaskCollator(MultiBlock3D((2, 8, 8), per_sample=True))(samples(1, 2, 3))
    assert len(batch.places) == 2
    for family, masks in zip(batch.families(), batch.masks, strict=True):
        assert isinstance(family.context, Padded)
        assert isinstance(family.targets, Padded)
        assert len(family.context.places) == int((masks.context >= 0).sum()) < masks.context.numel()
        assert len(family.targets.places) == int((masks.targets >= 0).sum()) < masks.targets.numel()


def test_where_nothing_is_padded_the_collator_says_so() -> None:
    for batch in (
        MaskCollator(MultiBlock(14))(samples(1, 2)),
        MaskCollator(MultiBlock(14))([(torch.ones(3, 8, 8), 2)]),
    ):
        assert batch.places == ((),)
        assert batch.families()[0].context is batch.masks[0].context
