from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from jepa_lightning.models import AffineMLP, AffineTransformer, ConvNeXt, VisionTransformer

EncoderFactory = Callable[..., VisionTransformer]


@pytest.fixture
def encoder() -> ConvNeXt:
    return ConvNeXt(img_size=(16, 24), widths=(8, 16), depths=(1, 1), num_heads=2)


def test_every_layer_of_the_mlp_is_a_module_of_its_own(encoder: ConvNeXt) -> None:
    predictor = AffineMLP(encoder, depth=4)
    assert len({id(layer) for layer in predictor.layers}) == 4
    assert len({layer.weight.data_ptr() for layer in predictor.layers}) == 4
    before = [layer.weight.clone() for layer in predictor.layers]
    torch.nn.init.zeros_(predictor.layers[1].weight)
    assert [torch.equal(a, layer.weight) for a, layer in zip(before, predictor.layers, strict=True)].count(False) == 1


def test_the_mlp_of_the_original_width_has_the_parameters_of_three_layers() -> None:
    encoder = ConvNeXt(img_size=4, widths=(1536,), depths=(0,))
    count = sum(p.numel() for p in AffineMLP(encoder).layers.parameters())
    assert count == 3 * (1536 * 1536 + 1536)  # 7.08 million; the original shares one layer and has 4.72


def test_the_mlp_equals_the_formula(encoder: ConvNeXt) -> None:
    predictor = AffineMLP(encoder, depth=3, hidden_dim=20)
    tokens, code = torch.randn(5, 6, 16), torch.randn(5, 36)
    features = predictor.select(tokens)
    torch.testing.assert_close(features[:, 0], tokens.mean(dim=1), rtol=0, atol=1e-6)
    one, two, three = predictor.layers
    x = features[:, 0] + predictor.code_embed(F.gelu(code))
    expected = three(F.gelu(two(F.gelu(one(x)))))
    torch.testing.assert_close(predictor(features, code, (1, 2, 3))[:, 0], expected, rtol=0, atol=1e-6)


def test_an_mlp_without_layers_is_refused(encoder: ConvNeXt) -> None:
    with pytest.raises(ValueError, match="use at least 1, not 0"):
        AffineMLP(encoder, depth=0)


def test_the_transformer_predicts_every_token_from_all_and_from_the_code(encoder: ConvNeXt) -> None:
    predictor = AffineTransformer(encoder, embed_dim=24, depth=1, init_std=None)
    tokens, code = torch.randn(2, 6, 16), torch.randn(2, 36)
    assert predictor.select(tokens) is tokens
    predicted = predictor(tokens, code, (1, 2, 3))
    assert predicted.shape == (2, 6, 16)
    other = tokens.clone()
    other[0, 5] += 1.0
    changed = (predictor(other, code, (1, 2, 3)) - predicted).abs().amax(dim=2)
    assert (changed[0] > 1e-5).all()
    assert (changed[1] < 1e-6).all()
    assert ((predictor(tokens, code + 1.0, (1, 2, 3)) - predicted).abs().amax(dim=2) > 1e-3).all()


def test_the_transformer_knows_where_a_token_is(encoder: ConvNeXt) -> None:
    predictor = AffineTransformer(encoder, embed_dim=24, depth=1, init_std=None)
    tokens, code = torch.randn(1, 6, 16), torch.randn(1, 36)
    backwards = predictor(tokens.flip(1), code, (1, 2, 3)).flip(1)
    assert (backwards - predictor(tokens, code, (1, 2, 3))).abs().max() > 1e-2


def test_the_transformer_takes_views_of_other_sizes_and_heads_from_the_encoder(encoder: ConvNeXt) -> None:
    predictor = AffineTransformer(encoder, depth=2)
    assert [block.attn.num_heads for block in predictor.predictor_blocks] == [2, 2]
    assert predictor(torch.randn(1, 20, 16), torch.randn(1, 36), (1, 4, 5)).shape == (1, 20, 16)


def test_both_work_behind_a_vision_transformer(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    tokens = encoder(torch.randn(2, 3, 32, 32))
    for predictor in (AffineMLP(encoder), AffineTransformer(encoder, depth=1)):
        features = predictor.select(tokens)
        assert predictor(features, torch.randn(2, 36), encoder.grid).shape == features.shape
