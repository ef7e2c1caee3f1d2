"""(pixel / 255 - mean) / std, at once in the worker or later on the device."""

import numpy as np
import pytest
import torch
from views_reference import CHINA, FLOWER, NORMALIZED_ATOL, S, draws, view_of

from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD, TwoViews, normalize


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_floats_are_normalised(backend):
    p = draws(1, seed=5)[0]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    for options, expected_mean, expected_std in (
        ({}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ({"mean": mean, "std": std}, mean, std),
    ):
        pixels = view_of(backend, CHINA, p)
        view = TwoViews(S, backend=backend, **options).apply(CHINA, p)
        expected = ((pixels / 255 - expected_mean) / expected_std).transpose(2, 0, 1)
        assert view.dtype == torch.float32
        np.testing.assert_allclose(view.numpy(), expected, rtol=0, atol=NORMALIZED_ATOL)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalising_on_the_device_ends_where_normalising_at_once_does(memory_format):
    p, q = draws(2)
    expected = torch.stack([TwoViews(S).apply(FLOWER, each) for each in (p, q)])
    late = TwoViews(S, normalize_on_device=True)
    views = torch.stack([late.apply(FLOWER, each) for each in (p, q)])
    views = views.to(memory_format=memory_format)
    returned = normalize(views)
    assert returned.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(returned, expected, rtol=0, atol=NORMALIZED_ATOL)
    batch = torch.zeros(2, 2, 3, S, S)
    assert normalize(views, IMAGENET_MEAN, IMAGENET_STD, out=batch[1]) is not None
    torch.testing.assert_close(batch[1], expected, rtol=0, atol=NORMALIZED_ATOL)
    assert not batch[0].any()


U8 = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("views", "options", "named"),
    [
        (normalize(U8), {}, "float32 .* neither scaled nor normalised"),
        (U8.double(), {}, "float64"),
        (U8[:, :1], {}, r"\(2, 1, 4, 4\): give uint8 RGB of shape \(\.\.\., 3, S, S\)"),
        (U8.permute(0, 2, 3, 1), {}, r"\(2, 4, 4, 3\)"),
        (U8, {"mean": (0.5, 0.5, 0.5), "std": (0.2,)}, "std .* 3 numbers"),
        (U8, {"mean": (123.7, 116.3, 103.5)}, r"mean\[0\] is 123.7"),
        (U8, {"out": torch.zeros(1, 3, 4, 4)}, r"out is .*\(1, 3, 4, 4\)"),
        (U8, {"out": torch.zeros(2, 3, 4, 4).half()}, "out is torch.float16"),
    ],
)
def test_what_would_be_normalised_wrongly_is_refused(memory_format, views, options, named):
    with pytest.raises(ValueError, match=named):
        normalize(views.contiguous(memory_format=memory_format), **options)
