"""InternImage and FlashInternImage: networks of DCNv3 and DCNv4, in timm's interface.

Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions", 2023, and
Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications", 2024.
Inside the networks images are channels-last, [N, H, W, C]. The returned features are [N, C, H, W].
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from timm.layers import SelectAdaptivePool2d, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from dcn_ops import DCNv3, DCNv4
from zoo.networks.parts import TO_FIRST, Block, Level, Stem


class InternImage(nn.Module):
    """Four levels of blocks, each a deformable aggregation and an MLP. The resolution halves between levels.

    Args:
        channels: Channels of the first level; each further level has twice as many.
        depths: Blocks of each level.
        groups: Groups of the aggregations of each level.
        operator: "v3" for InternImage, "v4" for FlashInternImage.
        offset_scale: Offset scale of the aggregations.
        dw_kernel_size: Kernel size of the depthwise convolution that predicts offsets. None means 3 for v3, and no
            convolution for v4.
        post_norm: Whether blocks normalise what they add instead of what they read. Then levels end without a norm.
        layer_scale: Initial value of the scales of the residual branches; None means no scale.
        branch_bias: Whether the last projections of a block's branches have a bias.
        num_classes: Number of classes; 0 leaves the classifier out.
        in_chans: Channels of the image.
        global_pool: Type of pooling, as in timm's ``SelectAdaptivePool2d``.
        drop_rate: Rate of the dropout before the classifier.
        drop_path_rate: Rate of stochastic depth in the last block. It rises linearly, from 0 in the first block.
    """

    def __init__(
        self,
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        operator: Literal["v3", "v4"] = "v3",
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        post_norm: bool = False,
        layer_scale: float | None = None,
        branch_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if operator not in ("v3", "v4"):
            raise ValueError(f'expected operator "v3" or "v4", got {operator=}')
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.patch_embed = Stem(in_chans, channels)
        rates = iter(_linear(drop_path_rate, sum(depths)))
        widths = [channels * 2**i for i in range(len(depths))]
        self.levels = nn.ModuleList()
        for i, (width, depth, group) in enumerate(zip(widths, depths, groups, strict=True)):
            arguments: dict[str, Any] = {"group": group, "offset_scale": offset_scale}
            arguments["dw_kernel_size"] = dw_kernel_size
            if operator == "v4":
                arguments["output_bias"] = branch_bias
            blocks = [
                Block(
                    width,
                    DCNv3(width, **arguments) if operator == "v3" else DCNv4(width, **arguments),
                    post_norm=post_norm,
                    layer_scale=layer_scale,
                    bias=branch_bias,
                    drop_path=next(rates),
                )
                for _ in range(depth)
            ]
            self.levels.append(Level(width, blocks, has_norm=not post_norm, is_last=i == len(depths) - 1))
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"levels.{i}"} for i, width in enumerate(widths)
        ]
        self.num_features, self.head_hidden_size = widths[-1], widths[-1] * 3 // 2
        self.conv_head = nn.Sequential(
            nn.Conv2d(self.num_features, self.head_hidden_size, 1, bias=False),
            nn.Sequential(nn.BatchNorm2d(self.head_hidden_size)),
            nn.GELU(),
        )
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(_initialise)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names without weight decay besides biases, norms and scales: none."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns of timm's layer-wise decay: a group for each level if coarse, else for each block."""
        by_block = [(r"^levels\.(\d+)\.(?:norm|downsample)", (99998,)), (r"^levels\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": r"^levels\.(\d+)" if coarse else by_block}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping their intermediate results."""
        for level in self._levels():
            level.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear layer that predicts the classes."""
        return self.head

    def _levels(self) -> list[Level]:
        return list(self.levels)  # type: ignore[arg-type]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with a new one."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        like = self.conv_head[0].weight
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            _initialise(self.head)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features of levels, each before its resolution is halved.

        Args:
            x: [N, C, H, W].
            indices: Indices of levels, or the number of last levels; all by default.
            norm: Has no effect: there is no norm after the levels.
            stop_early: Don't run the levels after the last requested one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return only the list, else also the last features.

        Raises:
            ValueError: For another output_fmt.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f'expected output_fmt "NCHW" or "NHWC", got {output_fmt=}')
        taken, last = feature_take_indices(len(self.levels), indices)
        found = []
        x = self.patch_embed(x)
        levels = self._levels()[: last + 1] if stop_early else self._levels()
        for i, level in enumerate(levels):
            x = level(x)
            if i in taken:
                found.append(x.permute(TO_FIRST) if output_fmt == "NCHW" else x)
            if level.downsample is not None and i < len(levels) - 1:
                x = level.downsample(x)
        return found if intermediates_only else (x.permute(TO_FIRST), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the levels after the requested ones, and the head."""
        taken, last = feature_take_indices(len(self.levels), indices)
        self.levels = self.levels[: last + 1]
        self._levels()[-1].downsample = None
        if prune_head:
            self.conv_head = nn.Identity()  # type: ignore[assignment]
            self.num_classes, self.head = 0, nn.Identity()
        return taken

    def forward_features(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, 8C, H / 32, W / 32]
        """Return the features of the last level."""
        x = self.patch_embed(x)
        for level in self._levels():
            x = level(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return x.permute(TO_FIRST)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the class scores of features [N, C, H, W], or the classifier's input."""
        x = self.head_drop(self.global_pool(self.conv_head(x)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores, [N, num_classes], of images [N, C, H, W]."""
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Rename the authors' weights, or those of a copy on the Hugging Face hub, to the names in this network."""
    weights: Mapping[str, Any] = state_dict.get("model", state_dict)
    renamed = {"layer_scale1": "gamma1", "layer_scale2": "gamma2"}
    return {
        ".".join(renamed.get(part, part) for part in key.removeprefix("model.").split(".")): value
        for key, value in weights.items()
    }


def _linear(last: float, count: int) -> list[float]:
    return [last * i / max(count - 1, 1) for i in range(count)]


def _initialise(module: nn.Module) -> None:
    # This runs on children first, so a layer's own initialisation of its projections comes last and stays.
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DCNv3 | DCNv4):
        module.reset_parameters()
