import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame

from retinaconf.interop.exportable import _EvenSame


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(2, 4), (32, 64), (160, 96)], ids=str)
def test_padding_as_numbers_is_same_padding_where_the_stride_divides(kernel, stride, size):
    """timm computes the padding from the image's sides; these are multiples of 32, so that the stride divides them."""
    conv = Conv2dSame(3, 6, kernel, stride=stride, groups=3)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = conv(x)
    conv.__class__ = _EvenSame
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=0)
