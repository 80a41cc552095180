"""The parts of InternImage: stem, levels, blocks. Inside a network images are channels-last, [N, H, W, C]."""

from collections.abc import Sequence

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_EPS = 1e-6
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # orders of dimensions: channels last, channels first


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with a norm."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.Sequential(Permute(*TO_LAST), nn.LayerNorm(channels // 2, eps=_EPS), Permute(*TO_FIRST))
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.Sequential(Permute(*TO_LAST), nn.LayerNorm(channels, eps=_EPS))

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, H / 4, W / 4, C]
        """Embed images."""
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class Level(nn.Module):
    """Blocks of one resolution, and a layer after them that halves it."""

    downsample: "Downsample | None"

    def __init__(self, channels: int, blocks: Sequence[nn.Module], *, has_norm: bool, is_last: bool) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Sequential(nn.LayerNorm(channels, eps=_EPS)) if has_norm else nn.Identity()
        self.downsample = None if is_last else Downsample(channels)

    def forward(self, x: Tensor) -> Tensor:  # [N, H, W, C]
        """Run the blocks, without the layer that halves the resolution."""
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_scripting():  # type: ignore[attr-defined]
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels, and a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.Sequential(Permute(*TO_LAST), nn.LayerNorm(2 * channels, eps=_EPS))

    def forward(self, x: Tensor) -> Tensor:  # [N, H, W, C] -> [N, H / 2, W / 2, 2C]
        """Halve the resolution."""
        return self.norm(self.conv(x.permute(TO_FIRST)))


class Block(nn.Module):
    """An aggregation and an MLP, each in a residual branch."""

    def __init__(
        self,
        channels: int,
        dcn: nn.Module,
        *,
        post_norm: bool,
        layer_scale: float | None,
        bias: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.Sequential(nn.LayerNorm(channels, eps=_EPS))
        self.dcn = dcn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.Sequential(nn.LayerNorm(channels, eps=_EPS))
        self.mlp = Mlp(channels, 4 * channels, bias=(True, bias))
        self.gamma1: Tensor | None
        self.gamma2: Tensor | None
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.register_parameter(name, scale)

    def forward(self, x: Tensor) -> Tensor:  # [N, H, W, C]
        """Add both branches."""
        x = x + self.drop_path(self._branch(x, self.norm1, self.dcn, self.gamma1))
        return x + self.drop_path(self._branch(x, self.norm2, self.mlp, self.gamma2))

    def _branch(self, x: Tensor, norm: nn.Module, layer: nn.Module, scale: Tensor | None) -> Tensor:
        x = norm(layer(x)) if self.post_norm else layer(norm(x))
        return x if scale is None else x * scale


class Permute(nn.Module):
    """A view with the dimensions in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Return the view."""
        return x.permute(self.order)

    def extra_repr(self) -> str:
        """Return the order."""
        return str(self.order)
