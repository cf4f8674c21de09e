"""vox2vec's network and heads as functions of their state dicts, in evaluation mode, by the published names."""

from torch.nn import functional as F


def _conv(state, name, x):
    weight = state[name + ".weight"]
    return F.conv3d(x, weight, state.get(name + ".bias"), padding=weight.shape[-1] // 2)


def _block(state, name, x):
    y = x
    for norm, conv in ((0, 2), (3, 5)):
        bn = f"{name}.layers.{norm}."
        mean, var = state[bn + "running_mean"], state[bn + "running_var"]
        y = F.batch_norm(y, mean, var, state[bn + "weight"], state[bn + "bias"], eps=1e-5)
        y = _conv(state, f"{name}.layers.{conv}", F.relu(y))
    return x + y


def _stack(state, name, x):
    return _block(state, name + ".layers.1", _block(state, name + ".layers.0", x))


def repeat(x, ratio, size):
    for axis, r in enumerate(ratio, start=2):
        x = x.repeat_interleave(r, axis)
    return x[:, :, : size[0], : size[1], : size[2]]


def fpn(state, x, strides):
    """strides: per stage, each relative to the one before -> levels, finest first"""
    scales = len(strides)
    x = _conv(state, "first_conv", x)
    left = []
    for i in range(scales - 1):
        x = _stack(state, f"left_blocks.{i}", x)
        left.append(x)
        x = F.max_pool3d(x, strides[i + 1], ceil_mode=True)
        x = _conv(state, f"down_blocks.{i}.1", x)
    x = _stack(state, "bottom_block", x)
    levels = [x]
    for i in range(scales - 1):  # from the bottom up
        skip = left[scales - 2 - i]
        x = repeat(_conv(state, f"up_blocks.{i}.0", x), strides[scales - 1 - i], skip.shape[2:])
        x = _stack(state, f"right_blocks.{i}", x + _conv(state, f"skip_blocks.{i}", skip))
        levels.insert(0, x)
    return levels


def nonlinear_head(state, levels, ratios):
    x = _block(state, "seg_layers.bottom_block", levels[-1])
    for i in range(len(levels) - 1):
        level = levels[len(levels) - 2 - i]
        x = repeat(_conv(state, f"seg_layers.up_blocks.{i}", x), ratios[len(levels) - 2 - i], level.shape[2:])
        x = _block(state, f"seg_layers.right_blocks.{i}", x + _conv(state, f"seg_layers.skip_blocks.{i}", level))
    return _conv(state, "seg_layers.final_block", x)
