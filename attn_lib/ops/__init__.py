"""Tensor operations that several modules share.

    attend           softmax attention, without the attention matrix where nothing asks for it
    SelfAttention    softmax attention of tokens to each other, with its four matrices
    relative_logits  q · r for every offset along an axis
    relative_bias    a learned number for every offset of two pixels
    pad_to_multiple  a feature map that windows fill; `cropped` undoes it
    windows          a feature map as windows; `unwindows` is the way back
    neighbourhoods   the k × k neighbours of every pixel; `neighbours_on_map` says which of them there are
    neighbour_logits q · k of every pixel and its neighbours, `neighbour_sum` their weighted sum: no copies of them
    mean_and_max     pooling along any axes, `maximum` alone; `strip_means` of rows and columns, `grid_means` of cells
    bilinear_sample  a feature map at positions between its pixels; `resize` at another size
    output_size      of a convolution; its `same_padding` and `tap_positions`
    open_size        whether a recorded graph leaves a size open; `at_one_size` binds the graph to one; `ceil_div`
    traced           whether `torch.jit.trace` records a graph
    conv2d_per_image a convolution with a kernel for each image; `KernelMixture` mixes it from several
    channel_shuffle  the channels of groups dealt out; `covariance` of channels over positions
    scale_weights    weights of several maps by what each holds on average; `weighted_sum` applies them, `total` adds up
    to_tokens        a feature map as tokens; `from_tokens` is the way back
    in_float32       a product of features that half precision cannot hold; `widened` is a layer behind it
"""

from .attention import SelfAttention, attend
from .channels import channel_shuffle, covariance
from .geometry import Geometry, at_one_size, ceil_div, open_size, output_size, same_padding, tap_positions, traced
from .kernels import KernelMixture, conv2d_per_image
from .layouts import from_tokens, to_tokens
from .neighbours import neighbour_logits, neighbour_sum
from .pooling import grid_means, maximum, mean_and_max, strip_means
from .positions import relative_bias, relative_logits
from .precision import in_float32, widened
from .sampling import bilinear_sample, resize
from .scales import scale_weights, total, weighted_sum
from .windows import cropped, neighbourhoods, neighbours_on_map, pad_to_multiple, unwindows, windows

__all__ = [
    "Geometry",
    "KernelMixture",
    "SelfAttention",
    "at_one_size",
    "attend",
    "bilinear_sample",
    "ceil_div",
    "channel_shuffle",
    "conv2d_per_image",
    "covariance",
    "cropped",
    "from_tokens",
    "grid_means",
    "in_float32",
    "maximum",
    "mean_and_max",
    "neighbour_logits",
    "neighbour_sum",
    "neighbourhoods",
    "neighbours_on_map",
    "open_size",
    "output_size",
    "pad_to_multiple",
    "relative_bias",
    "relative_logits",
    "resize",
    "same_padding",
    "scale_weights",
    "strip_means",
    "tap_positions",
    "to_tokens",
    "total",
    "traced",
    "unwindows",
    "weighted_sum",
    "widened",
    "windows",
]
