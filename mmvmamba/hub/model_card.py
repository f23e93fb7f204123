"""Model cards: the README.md of a folder, with the metadata that the Hugging Face Hub reads."""

from mmvmamba.checkpoint.released import RELEASED_URLS
from mmvmamba.nn import VMambaNet
from mmvmamba.nn.settings import check_choice

from .config import config_of
from .released import REPORTED

_REPOSITORY = 'https://github.com/MzeroMiko/VMamba'
_PAPER = 'https://arxiv.org/abs/2401.10166'
_CARD = """\
---
{metadata}
---

# {name}

{description}

| | |
|---|---|
{facts}

## Use

`FOLDER` is the folder with these files. If they are on the Hub, replace `local-dir:FOLDER` with
`hf-hub:OWNER/NAME`, and `FOLDER` elsewhere with `OWNER/NAME`.

{use}

## Citation

```bibtex
@inproceedings{{liu2024vmamba,
  title={{{{VMamba}}: Visual State Space Model}},
  author={{Liu, Yue and Tian, Yunjie and Zhao, Yuzhong and Yu, Hongtian and Xie, Lingxi and
          Wang, Yaowei and Ye, Qixiang and Jiao, Jianbin and Liu, Yunfan}},
  booktitle={{Advances in Neural Information Processing Systems}},
  year={{2024}}
}}
```
"""
_BLOCK = """\
With {library}:

```python
{code}
```"""
_USE = {
    'mmvmamba': """\
import torch
from mmvmamba.nn import VMambaNet
model = VMambaNet.from_pretrained('FOLDER')
{result} = model(torch.randn(1, {channels}, 224, 224))  # {comment}""",
    'timm': """\
import timm, torch
import mmvmamba.timm  # registers the models in timm
model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()
{result} = model(torch.randn(1, {channels}, 224, 224))""",
}
_PIPELINE = """\
import mmvmamba.timm  # registers the models in timm
from transformers import pipeline
classify = pipeline('image-classification', model='FOLDER')
print(classify('image.jpg'))"""
_BACKBONE = """\
import mmvmamba.timm, torch
from transformers import TimmBackbone
backbone = TimmBackbone.from_pretrained('local-dir:FOLDER', out_indices={indices}{more})
maps = backbone(torch.randn(1, {channels}, 224, 224)).feature_maps"""


def model_card(
    net: VMambaNet, released: str | None = None, license: str | None = None, notes: str = ''
) -> str:
    """Return the model card of a network.

    Args:
        net (VMambaNet): The network.
        released (str, optional): The architecture if the weights are those that the authors have
            released for it, a key of :data:`mmvmamba.hub.REPORTED`. The card then has their
            results, dataset and license. Defaults to None.
        license (str, optional): License of the weights, e.g. 'apache-2.0', if they are not the
            released ones. Defaults to None, which omits the license.
        notes (str): A paragraph on the origin of the weights. Defaults to ''.

    Raises:
        ValueError: If ``released`` is unknown, or the number of ``net.class_names`` is wrong.
    """
    config = config_of(net)
    is_classifier = net.out_indices is None
    task = 'image-classification' if is_classifier else 'image-feature-extraction'
    metadata = ['library_name: mmvmamba', f'pipeline_tag: {task}', 'tags:', f'- {task}']
    metadata += ['- vmamba', '- timm', '- pytorch_model_hub_mixin']
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    facts = {'parameters': f'{parameters:.1f} M'}
    if released is not None:
        check_choice('released', released, REPORTED)
        license = 'mit'
        metadata += ['datasets:', '- imagenet-1k']
        facts |= _facts_of(released, 'accuracy' if is_classifier else 'accuracy of the classifier')
    if license is not None:
        metadata.insert(0, f'license: {license}')
    if is_classifier:
        facts['classes'] = str(net.num_classes)
    else:
        dims, stride = net.settings.dims, net.settings.stem_stride
        maps = [f'{dims[i]} channels at stride {stride * 2**i}' for i in net.out_indices or ()]
        facts['maps'] = ', '.join(maps)
    kind = 'Classifier' if is_classifier else 'Backbone'
    return _CARD.format(
        metadata='\n'.join(metadata),
        name=config['architecture'],
        description=f'{kind} of [VMamba: Visual State Space Model]({_PAPER}). {notes}'.rstrip(),
        facts='\n'.join(f'| {name} | {value} |' for name, value in facts.items()),
        use='\n\n'.join(_blocks(net)),
    )


def _facts_of(released: str, accuracy: str) -> dict[str, str]:
    """Return what is known about released weights, marked as others' results where it is."""
    reported = REPORTED[released]
    return {
        'multiply-adds at 224 x 224': f'{reported.gflops} G (classifier)',
        f'top-1 {accuracy} on ImageNet-1k': (
            f'{reported.top1:.2f}%, as reported by the paper and its authors (not measured here)'
        ),
        'weights': f"converted from the [authors' file]({RELEASED_URLS[released]})",
        'license': f"MIT, as in the [authors' repository]({_REPOSITORY})",
    }


def _blocks(net: VMambaNet) -> list[str]:
    """Return four lines of code for each library."""
    if net.out_indices is None:
        names = dict(result='scores', comment=f'(1, {net.num_classes})')
        transformers = _PIPELINE
    else:
        names = dict(result='maps', comment='normalized maps (1, C, H, W)')
        more = '' if net.in_channels == 3 else f', num_channels={net.in_channels}'
        names |= dict(indices=str(sorted(net.out_indices)), more=more)
        transformers = _BACKBONE
    names['channels'] = str(net.in_channels)
    texts = {**_USE, 'transformers': transformers}
    return [_BLOCK.format(library=k, code=v.format(**names)) for k, v in texts.items()]
