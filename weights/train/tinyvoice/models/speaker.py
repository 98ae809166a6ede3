"""CAM++ speaker encoder (arXiv 2303.00332): fbank [B, T, 80] -> embedding [B, 192].

A 2-D residual head over frequency, then a densely connected TDNN with context-aware masking, statistics pooling and
a batch-normalised projection. Module names give upstream's ONNX names when exported (`campplus.onnx`).
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ..config import MEL_BINS, SPK_DIM

SEGMENT = 100      # frames of one context window


def _norm_relu(channels):
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


class ResBlock2d(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, (stride, 1), bias=False),
                                          nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Head(nn.Module):
    """[B, 80, T] -> [B, channels * 10, T], channel-major over frequency."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(ResBlock2d(channels, 2), ResBlock2d(channels, 1))
        self.layer2 = nn.Sequential(ResBlock2d(channels, 2), ResBlock2d(channels, 1))
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, (2, 1), 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        x = F.relu(self.bn2(self.conv2(self.layer2(self.layer1(x)))))
        shape = x.shape
        return x.reshape(shape[0], shape[1] * shape[2], shape[3])


class Tdnn(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Conv1d(inputs, outputs, 5, 2, 2, bias=False)
        self.nonlinear = _norm_relu(outputs)

    def forward(self, x):
        return self.nonlinear(self.linear(x))


class CamLayer(nn.Module):
    """Local convolution gated by the mean over the utterance plus the mean over 100-frame segments."""

    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.linear_local = nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1, self.relu = nn.Conv1d(inputs, inputs // 2, 1), nn.ReLU()
        self.linear2, self.sigmoid = nn.Conv1d(inputs // 2, outputs, 1), nn.Sigmoid()

    def segments(self, x):
        mean = F.avg_pool1d(x, SEGMENT, SEGMENT, ceil_mode=True)
        shape = mean.shape
        return mean.unsqueeze(-1).expand(shape[0], shape[1], shape[2], SEGMENT).reshape(
            shape[0], shape[1], -1)[..., :x.shape[-1]]

    def forward(self, x):
        context = x.mean(-1, keepdim=True) + self.segments(x)
        return self.linear_local(x) * self.sigmoid(self.linear2(self.relu(self.linear1(context))))


class DenseTdnnLayer(nn.Module):
    def __init__(self, inputs, growth, bottleneck, dilation):
        super().__init__()
        self.nonlinear1 = _norm_relu(inputs)
        self.linear1 = nn.Conv1d(inputs, bottleneck, 1, bias=False)
        self.nonlinear2 = _norm_relu(bottleneck)
        self.cam_layer = CamLayer(bottleneck, growth, dilation)

    def forward(self, x):
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class DenseTdnnBlock(nn.Module):
    def __init__(self, inputs, layers, dims, dilation):
        super().__init__()
        for i in range(layers):
            layer = DenseTdnnLayer(inputs + i * dims.growth, dims.growth, dims.bottleneck * dims.growth, dilation)
            self.add_module(f"tdnnd{i + 1}", layer)

    def forward(self, x):
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Transit(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.nonlinear = _norm_relu(inputs)
        self.linear = nn.Conv1d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x):
        return self.linear(self.nonlinear(x))


class Statistics(nn.Module):
    """Mean and unbiased deviation over time. [B, C, T] -> [B, 2 C]."""

    def forward(self, x):
        return torch.cat([x.mean(-1), x.std(-1, unbiased=True)], dim=-1)


class Dense(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Conv1d(inputs, SPK_DIM, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(SPK_DIM, affine=False)))

    def forward(self, x):
        return self.nonlinear(self.linear(x.unsqueeze(-1)).squeeze(2))


class SpeakerEncoder(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.head = Head(dims.head_channels)
        width = dims.init_channels
        parts = OrderedDict(tdnn=Tdnn(dims.head_channels * MEL_BINS // 8, width))
        for i, (layers, dilation) in enumerate(zip(dims.layers, dims.dilations), start=1):
            parts[f"block{i}"] = DenseTdnnBlock(width, layers, dims, dilation)
            width += layers * dims.growth
            parts[f"transit{i}"] = Transit(width)
            width //= 2
        parts["out_nonlinear"] = _norm_relu(width)
        parts["stats"] = Statistics()
        parts["dense"] = Dense(2 * width)
        self.xvector = nn.Sequential(parts)

    def forward(self, feats):
        """fbank minus its mean, [B, T, 80] -> [B, 192]."""
        return self.xvector(self.head(feats.permute(0, 2, 1)))
