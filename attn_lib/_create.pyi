"""What `attn_lib.create` takes and returns for each id. Made by `python -m book.tools.signatures --write`."""

from typing import Any, Literal, overload

import torch
import torch.nn.modules

from .branch.condconv import CondConv2d
from .branch.dynamic_conv import DynamicConv2d
from .branch.highway import HighwayConv2d
from .branch.resnest import SplitAttention
from .branch.sk import SKAttention
from .channel.eca import ECAAttention
from .channel.encnet import EncodingAttention
from .channel.epsa import PSAAttention
from .channel.fca import FcaAttention
from .channel.gct import GCTAttention
from .channel.gsop import GSoPAttention
from .channel.nam import NAMAttention
from .channel.se import SEAttention
from .channel.soca import SOCAAttention
from .channel.srm import SRMAttention
from .channel_spatial.bam import BAM
from .channel_spatial.cbam import CBAM
from .channel_spatial.coord import CoordinateAttention
from .channel_spatial.danet import DANetAttention
from .channel_spatial.ema import EMAAttention
from .channel_spatial.gala import GALAAttention
from .channel_spatial.gam import GAMAttention
from .channel_spatial.parnet import ParNetBlock
from .channel_spatial.residual_attention import ResidualAttentionModule
from .channel_spatial.scnet import SelfCalibratedConv
from .channel_spatial.scse import SCSEAttention
from .channel_spatial.shuffle import ShuffleAttention
from .channel_spatial.simam import SimAM
from .channel_spatial.triplet import TripletAttention
from .conv.aspp import ASPP
from .conv.dcnv3 import DCNv3
from .conv.deform import DeformConv2d
from .conv.depthwise_separable import DepthwiseSeparableConv
from .conv.dilated import DilatedConv
from .conv.pconv import PartialConv
from .conv.scconv import SpatialChannelReconstructionConv
from .conv.snake import DynamicSnakeConv
from .fusion.gated import GatedFusion
from .fusion.mfe import MultiFeatureExtraction
from .fusion.msf import MultiScaleSelectiveFusion
from .fusion.safm import SAFM
from .mlp.s2mlpv2 import S2Attention
from .mlp.vip import WeightedPermuteMLP
from .self_attention.a2 import DoubleAttention
from .self_attention.acmix import ACmix
from .self_attention.aft import AFTAttention
from .self_attention.axial import AxialAttention
from .self_attention.biformer import BiLevelRoutingAttention
from .self_attention.cloformer import CloAttention
from .self_attention.cot import CoTAttention
from .self_attention.crossformer import LongShortDistanceAttention
from .self_attention.dilateformer import DilateAttention
from .self_attention.emo import InvertedResidualMobileBlock
from .self_attention.emsa import EMSA
from .self_attention.external import ExternalAttention
from .self_attention.halo import HaloAttention
from .self_attention.mhsa import MHSA2d
from .self_attention.mobilevit import MobileViTBlock
from .self_attention.osra import OSRAttention
from .self_attention.seaformer import SeaAttention
from .self_attention.stvit import SuperTokenAttention
from .self_attention.swiftformer import EfficientAdditiveAttention
from .self_attention.ufo import UFOAttention
from .self_attention.vit import EncoderBlock
from .spatial.ccnet import CrissCrossAttention
from .spatial.genet import GatherExcite
from .spatial.non_local import NonLocalAttention
from .spatial.psanet import PointwiseSpatialAttention
from .spatial.ram import GlimpseSensor
from .spatial.spnet import StripPooling
from .spatial.stn import SpatialTransformer
from .temporal.gltr import GLTR
from .temporal.mtgnn import TemporalConv
from .temporal.pyraformer import PyramidalAttention
from .temporal.tam import TemporalAdaptiveModule

@overload
def create(
    id: Literal["a2"], channels: int, *, m: int | None = None, n: int | None = None, bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DoubleAttention: ...
@overload
def create(
    id: Literal["acmix"], channels: int, out_channels: int | None = None, *, heads: int = 4,
    kernel_size: int = 7, kernel_conv: int = 3, stride: int = 1, dilation: int = 1, padding: str = 'masked',
    conv_order: str = 'heads', device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> ACmix: ...
@overload
def create(
    id: Literal["aft"], channels: int, *, form: str = 'full', length: int | None = None, rank: int | None = 128,
    window: int = 32, heads: int = 1, kernel_size: int = 11, causal: bool = False, bias: bool = True,
    layout: str = 'B N C', device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> AFTAttention: ...
@overload
def create(
    id: Literal["aspp"], channels: int, out_channels: int = 256, *, rates: tuple[int, ...] = (6, 12, 18),
    image_pooling: bool = True, momentum: float = 0.0003, dropout: float = 0.0,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> ASPP: ...
@overload
def create(
    id: Literal["axial"], channels: int, *, heads: int = 8, form: str = 'sequence', depth: int = 1,
    mlp_ratio: float = 1.0, height: int | None = None, width: int | None = None, causal: str | None = None,
    qkv_bias: bool = True, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> AxialAttention: ...
@overload
def create(
    id: Literal["bam"], channels: int, *, reduction: int = 16, dilation: int = 4, combine: str = 'sum',
    norm: str = 'end', relu: bool = True, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> BAM: ...
@overload
def create(
    id: Literal["biformer"], channels: int, *, heads: int = 8, regions: int = 7, topk: int = 4,
    lepe_kernel: int = 5, scale: str = 'head', device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> BiLevelRoutingAttention: ...
@overload
def create(
    id: Literal["cbam"], channels: int, *, reduction: int = 16, kernel_size: int = 7, bias: bool = True,
    max_branch: bool = True, spatial: bool = True, norm: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> CBAM: ...
@overload
def create(
    id: Literal["ccnet"], channels: int, *, reduction: int = 8, recurrence: int = 2,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> CrissCrossAttention: ...
@overload
def create(
    id: Literal["cloformer"], channels: int, *, heads: int = 8, group_split: tuple[int, ...] = (4, 4),
    kernel_sizes: tuple[int, ...] = (7,), window_size: int = 2, qkv_bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> CloAttention: ...
@overload
def create(
    id: Literal["condconv"], channels: int, out_channels: int | None = None, *, experts: int = 8,
    kernel_size: int | tuple[int, int] = 3, stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None, dilation: int | tuple[int, int] = 1, groups: int = 1,
    bias: bool = False, routing: bool = True, routing_bias: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> CondConv2d: ...
@overload
def create(
    id: Literal["coord"], channels: int, *, reduction: int = 32, min_hidden: int = 8,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> CoordinateAttention: ...
@overload
def create(
    id: Literal["cot"], channels: int, *, kernel_size: int = 3, groups: int = 4, share: int = 8,
    cardinality: int = 1, reduction: int = 4, min_dim: int = 32, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> CoTAttention: ...
@overload
def create(
    id: Literal["crossformer"], channels: int, *, heads: int = 2, group: int | None = 7,
    interval: int | None = None, distance: str = 'short', position_bias: bool = True, reduction: int = 4,
    shrink: bool = False, qkv_bias: bool = True, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> LongShortDistanceAttention: ...
@overload
def create(
    id: Literal["danet"], channels: int, *, reduction: int = 8, reverse: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DANetAttention: ...
@overload
def create(
    id: Literal["dcnv3"], channels: int, *, kernel_size: int | tuple[int, int] = 3,
    dw_kernel_size: int | None = None, stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None, dilation: int | tuple[int, int] = 1, groups: int = 4,
    offset_scale: float = 1.0, form: str = 'paper', center_feature_scale: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DCNv3: ...
@overload
def create(
    id: Literal["deform"], channels: int, out_channels: int | None = None, *,
    kernel_size: int | tuple[int, int] = 3, stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None, dilation: int | tuple[int, int] = 1, groups: int = 1,
    offset_groups: int = 1, modulation: bool = True, mask_scale: float = 1.0, bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DeformConv2d: ...
@overload
def create(
    id: Literal["depthwise_separable"], channels: int, out_channels: int | None = None, *,
    kernel_size: int | tuple[int, int] = 3, stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None, dilation: int | tuple[int, int] = 1, multiplier: int = 1,
    form: str = 'xception', activation: str = 'relu', epsilon: float = 0.001, bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DepthwiseSeparableConv: ...
@overload
def create(
    id: Literal["dilated"], channels: int, out_channels: int | None = None, *,
    kernel_size: int | tuple[int, int] = 3, dilation: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] | None = None, bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DilatedConv: ...
@overload
def create(
    id: Literal["dilateformer"], channels: int, *, heads: int = 3, kernel_size: int = 3,
    dilations: tuple[int, ...] = (1, 2, 3), padding: str = 'zeros', qkv_bias: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DilateAttention: ...
@overload
def create(
    id: Literal["dynamic_conv"], channels: int, out_channels: int | None = None, *, kernels: int = 4,
    kernel_size: int | tuple[int, int] = 3, stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None, dilation: int | tuple[int, int] = 1, groups: int = 1,
    bias: bool = True, reduction: int = 4, temperature: float = 30.0,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> DynamicConv2d: ...
@overload
def create(
    id: Literal["eca"], channels: int, *, kernel_size: int | None = None, gamma: float = 2.0, b: float = 1.0,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> ECAAttention: ...
@overload
def create(
    id: Literal["ema"], channels: int, *, groups: int = 32, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> EMAAttention: ...
@overload
def create(
    id: Literal["emo"], channels: int, out_channels: int | None = None, *, expansion: float = 4.0,
    heads: int = 4, window: int | None = 7, kernel_size: int = 3, stride: int = 1, attention: bool = True,
    attend_first: bool = False, norm: str | None = 'layer', activation: str = 'gelu', padding: str = 'masked',
    qkv_bias: bool = True, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> InvertedResidualMobileBlock: ...
@overload
def create(
    id: Literal["emsa"], channels: int, *, heads: int = 8, ratio: int = 1, transform: bool | None = None,
    qkv_bias: bool = True, epsilon: float = 1e-05, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> EMSA: ...
@overload
def create(
    id: Literal["encnet"], channels: int, *, codewords: int = 32, classes: int | None = None,
    aggregate: str = 'sum', residual: bool = False, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> EncodingAttention: ...
@overload
def create(
    id: Literal["epsa"], channels: int, out_channels: int | None = None, *,
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 9), groups: tuple[int, ...] | int = (1, 4, 8, 16),
    stride: int = 1, reduction: int = 16, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> PSAAttention: ...
@overload
def create(
    id: Literal["external"], channels: int, *, slots: int = 64, heads: int | None = None, expansion: int = 1,
    layout: str = 'B C H W', epsilon: float = 0.0, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> ExternalAttention: ...
@overload
def create(
    id: Literal["fca"], channels: int, *, dct_h: int = 7, dct_w: int = 7, reduction: int = 16,
    frequencies: str | tuple[tuple[int, int], ...] = 'top16', device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> FcaAttention: ...
@overload
def create(
    id: Literal["gala"], channels: int, *, reduction: int = 4, squash: str = 'tanh',
    extra_kernel: int | None = None, rectify: bool = False, bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> GALAAttention: ...
@overload
def create(
    id: Literal["gam"], channels: int, *, reduction: int = 4, groups: int = 1, shuffle: str = 'between',
    channel_sigmoid: bool = True, padding_mode: str = 'zeros', device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> GAMAttention: ...
@overload
def create(
    id: Literal["gated"], channels: int, *, layout: str = 'B C H W', output_mlp: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> GatedFusion: ...
@overload
def create(
    id: Literal["gct"], channels: int, *, epsilon: float = 1e-05, mode: str = 'l2',
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> GCTAttention: ...
@overload
def create(
    id: Literal["genet"], channels: int, *, extent: int | None = None, gather: str = 'mean',
    excite: str = 'sigmoid', reduction: int = 16, count_padding: bool = False, height: int | None = None,
    width: int | None = None, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> GatherExcite: ...
@overload
def create(
    id: Literal["gltr"], channels: int, *, dilations: tuple[int, ...] = (1, 2, 3), kernel_size: int = 3,
    with_input: bool = True, reduction: int = 2, pool: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> GLTR: ...
@overload
def create(
    id: Literal["gsop"], channels: int, *, reduced: int = 128, stride: int = 1, pre_relu: bool = False,
    negative_slope: float = 0.1, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> GSoPAttention: ...
@overload
def create(
    id: Literal["halo"], channels: int, *, heads: int = 8, block_size: int = 8, halo_size: int = 3,
    stride: int = 1, masked: bool = True, scale_positions: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> HaloAttention: ...
@overload
def create(
    id: Literal["highway"], channels: int, *, kernel_size: int = 3, activation: str = 'relu',
    transform_bias: float = -1.0, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> HighwayConv2d: ...
@overload
def create(
    id: Literal["mfe"], channels: int, *, atrous_rates: tuple[int, ...] = (2, 4, 8), score_norm: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> MultiFeatureExtraction: ...
@overload
def create(
    id: Literal["mhsa"], channels: int, *, heads: int = 4, height: int | None = None, width: int | None = None,
    position: str | None = 'relative', device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> MHSA2d: ...
@overload
def create(
    id: Literal["mobilevit"], channels: int, *, dim: int = 144, heads: int = 4, depth: int = 2,
    patch_size: int = 2, mlp_ratio: float = 2.0, kernel_size: int = 3,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> MobileViTBlock: ...
@overload
def create(
    id: Literal["msf"], channels: int, *, scales: int = 4, score_norm: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> MultiScaleSelectiveFusion: ...
@overload
def create(
    id: Literal["mtgnn"], channels: int, out_channels: int | None = None, *,
    kernel_sizes: tuple[int, ...] = (2, 3, 6, 7), dilation: int = 1,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> TemporalConv: ...
@overload
def create(
    id: Literal["nam"], channels: int, *, form: str = 'channel', height: int | None = None,
    width: int | None = None, detach: bool = False, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> NAMAttention: ...
@overload
def create(
    id: Literal["non_local"], channels: int, *, pairwise: str = 'embedded_gaussian', reduction: int = 2,
    subsample: int = 1, pool_first: bool = False, scale: float | None = 1.0, bias: bool = False,
    norm: bool = False, zero_init: bool = True, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> NonLocalAttention: ...
@overload
def create(
    id: Literal["osra"], channels: int, *, heads: int = 1, ratio: int = 1, height: int | None = None,
    width: int | None = None, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> OSRAttention: ...
@overload
def create(
    id: Literal["parnet"], channels: int, *, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> ParNetBlock: ...
@overload
def create(
    id: Literal["pconv"], channels: int, *, n_div: int = 4, kernel_size: int = 3,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> PartialConv: ...
@overload
def create(
    id: Literal["psanet"], channels: int, *, height: int, width: int, branches: str = 'both',
    reduction: int = 4, shrink: int = 1, compact: bool = False, softmax: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> PointwiseSpatialAttention: ...
@overload
def create(
    id: Literal["pyraformer"], channels: int, *, heads: int = 4, children: int = 4, scales: int = 4,
    neighbours: int = 3, bottleneck: int | None = None, construct: bool = True, sparse: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> PyramidalAttention: ...
@overload
def create(
    id: Literal["ram"], channels: int, *, size: int | tuple[int, int] = 8, scales: int = 3, factor: float = 2.0,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> GlimpseSensor: ...
@overload
def create(
    id: Literal["residual_attention"], channels: int, *, levels: int = 3, p: int = 1, t: int = 2, r: int = 1,
    reduction: int = 4, mask: str = 'mixed', residual: bool = True, align_corners: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> ResidualAttentionModule: ...
@overload
def create(
    id: Literal["resnest"], channels: int, out_channels: int | None = None, *, kernel_size: int = 3,
    stride: int = 1, dilation: int = 1, cardinality: int = 1, radix: int = 2, reduction: int = 4,
    min_dim: int = 32, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SplitAttention: ...
@overload
def create(
    id: Literal["s2mlpv2"], channels: int, *, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> S2Attention: ...
@overload
def create(
    id: Literal["safm"], channels: int, *, levels: int = 4, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> SAFM: ...
@overload
def create(
    id: Literal["scconv"], channels: int, *, norm_groups: int = 4, threshold: float = 0.5, gate: str = 'fill',
    alpha: float = 0.5, reduction: int = 2, groups: int = 2, kernel_size: int = 3, epsilon: float = 1e-05,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SpatialChannelReconstructionConv: ...
@overload
def create(
    id: Literal["scnet"], channels: int, *, stride: int = 1, pooling_r: int = 4, up: str = 'bilinear',
    norm: bool = False, project: bool = False, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> SelfCalibratedConv: ...
@overload
def create(
    id: Literal["scse"], channels: int, *, reduction: int = 2, fusion: str = 'add', bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SCSEAttention: ...
@overload
def create(
    id: Literal["se"], channels: int, *, reduction: int = 16, bias: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SEAttention: ...
@overload
def create(
    id: Literal["seaformer"], channels: int, *, key_dim: int = 16, heads: int = 8, attn_ratio: float = 2.0,
    positions: int = 16, zero_init: bool = True, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> SeaAttention: ...
@overload
def create(
    id: Literal["shuffle"], channels: int, *, groups: int = 64, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> ShuffleAttention: ...
@overload
def create(
    id: Literal["simam"], channels: int, *, lam: float = 0.0001, unbiased: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SimAM: ...
@overload
def create(
    id: Literal["sk"], channels: int, out_channels: int | None = None, *, dilations: tuple[int, ...] = (1, 2),
    stride: int = 1, groups: int = 32, reduction: int = 16, min_dim: int = 32,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SKAttention: ...
@overload
def create(
    id: Literal["snake"], channels: int, out_channels: int | None = None, *, kernel_size: int = 9,
    axis: str = 'x', extent: float = 1.0, border: str = 'replicate', offset_norm: str = 'group',
    norm_groups: int | None = None, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> DynamicSnakeConv: ...
@overload
def create(
    id: Literal["soca"], channels: int, *, reduction: int = 8, iterations: int = 5,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SOCAAttention: ...
@overload
def create(
    id: Literal["spnet"], channels: int, *, norm: bool = True, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> StripPooling: ...
@overload
def create(
    id: Literal["srm"], channels: int, *, unbiased: bool = False, zero_init: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SRMAttention: ...
@overload
def create(
    id: Literal["stn"], channels: int, *, transform: str = 'affine', points: int = 4,
    size: tuple[int, int] | None = None, hidden: int = 16, cells: int = 4, units: int = 32,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SpatialTransformer: ...
@overload
def create(
    id: Literal["stvit"], channels: int, *, heads: int = 8, token_size: tuple[int, int] = (8, 8),
    iterations: int = 1, padding: str = 'masked', association_gradient: bool = True, qkv_bias: bool = False,
    epsilon: float = 1e-12, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> SuperTokenAttention: ...
@overload
def create(
    id: Literal["swiftformer"], channels: int, out_channels: int | None = None, *, heads: int = 1,
    normalise: bool = True, layout: str = 'B C H W', epsilon: float = 1e-12,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> EfficientAdditiveAttention: ...
@overload
def create(
    id: Literal["tam"], channels: int, *, frames: int, kernel_size: int = 3, expansion: int = 2,
    reduction: int = 4, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> TemporalAdaptiveModule: ...
@overload
def create(
    id: Literal["triplet"], channels: int, *, kernel_size: int = 7, spatial: bool = True,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> TripletAttention: ...
@overload
def create(
    id: Literal["ufo"], channels: int, *, heads: int = 8, bias: bool = True, layout: str = 'B C H W',
    epsilon: float = 1e-12, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> UFOAttention: ...
@overload
def create(
    id: Literal["vip"], channels: int, *, height: int, width: int, segments: int | None = None,
    weighted: bool = True, reduction: int = 4, bias: bool = False,
    device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
) -> WeightedPermuteMLP: ...
@overload
def create(
    id: Literal["vit"], channels: int, *, heads: int = 12, mlp_ratio: float = 4.0, approximate: str = 'none',
    dropout: float = 0.0, epsilon: float = 1e-06, device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> EncoderBlock: ...
@overload
def create(id: str, *arguments: Any, **options: Any) -> torch.nn.Module: ...
