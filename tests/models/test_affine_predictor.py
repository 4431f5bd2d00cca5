from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lightning.models import AffineMLP, ConvNeXt


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
    features, code = torch.randn(5, 16), torch.randn(5, 36)
    one, two, three = predictor.layers
    x = features + predictor.code_embed(F.gelu(code))
    expected = three(F.gelu(two(F.gelu(one(x)))))
    torch.testing.assert_close(predictor(features, code), expected, rtol=0, atol=1e-6)


def test_an_mlp_without_layers_is_refused(encoder: ConvNeXt) -> None:
    with pytest.raises(ValueError, match="use at least 1, not 0"):
        AffineMLP(encoder, depth=0)
