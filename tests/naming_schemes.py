"""The parameter names of released files, from the current ones."""

import re


def january_names(state):
    """Rename tensors as in the files of January 2024."""
    for new, old in (
        ('patch_embed.0.', 'patch_embed.proj.'),
        ('patch_embed.2.', 'patch_embed.norm.'),
        ('.norm.', '.ln_1.'),
        ('.op.', '.self_attention.'),
        ('classifier.norm.', 'norm.'),
        ('classifier.head.', 'head.'),
    ):
        pattern = r'(blocks\.\d+)' + re.escape(new) if new in ('.norm.', '.op.') else re.escape(new)
        group = r'\1' if new in ('.norm.', '.op.') else ''
        state = {re.sub(pattern, group + old, k, count=1): v for k, v in state.items()}
    return state


def one_file_names(state):
    """Rename and reshape tensors as in the authors' one-file version."""
    renamed = {}
    for key, value in state.items():
        if key.endswith('.x_proj_weight'):
            key, value = key.replace('x_proj_weight', 'x_proj.weight'), value.flatten(0, 1)
        elif '.dt_projs_' in key:
            key, value = key.replace('dt_projs_', 'dt_projs.'), value.flatten(0, 1)
        key = key.replace('downsample.norm.', 'downsample.1.')
        key = key.replace('downsample.reduction.', 'downsample.2.')
        renamed[key] = value
    return renamed


def convolution_weights(state):
    """Reshape linear weights to those of 1x1 convolutions, as in the files of early March 2024."""
    return {
        k: v[:, :, None, None] if v.dim() == 2 and k.endswith('.weight') else v
        for k, v in state.items()
    }
