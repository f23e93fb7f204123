"""A converted folder in transformers, through its wrappers of timm's models."""

import numpy as np
import pytest
import torch

timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')
pytest.importorskip('safetensors')

import mmvmamba.timm  # noqa: E402, F401  (registers the models)
from mmvmamba.hub import load_folder, write_folder  # noqa: E402
from mmvmamba.nn import ARCHS, VMambaNet  # noqa: E402

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
NAMES = ('cat', 'dog', 'bird')
UPERNET = dict(hidden_size=16, auxiliary_in_channels=24, auxiliary_channels=8)
MASK2FORMER = dict(
    hidden_dim=32,
    feature_size=32,
    mask_feature_size=32,
    encoder_feedforward_dim=32,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    dim_feedforward=32,
    num_queries=5,
    train_num_points=64,
)


def write(folder, arch='tiny', **kwargs):
    torch.manual_seed(0)
    net = VMambaNet(arch, **THIN, num_classes=3, **kwargs).eval()
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(0.1 * torch.randn_like(value))
    net.class_names = NAMES
    write_folder(net, folder)
    return net


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def picture():
    Image = pytest.importorskip('PIL.Image')
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))


def test_pipeline(tmp_path):
    """The labels and scores are the network's on what timm's transform makes of the image."""
    net = write(tmp_path)
    classify = transformers.pipeline('image-classification', model=str(tmp_path))
    given = {answer['label']: answer['score'] for answer in classify(picture())}
    cfg = timm.data.resolve_data_config({}, model=load_folder(tmp_path))
    x = timm.data.create_transform(**cfg)(picture())[None]
    assert x.shape == (1, 3, 224, 224)
    with torch.no_grad():
        want = dict(zip(NAMES, net(x).softmax(-1)[0].tolist(), strict=True))
    assert given == pytest.approx(want, abs=1e-6)


def test_pipeline_prints_imagenets_names(tmp_path):
    """A folder without names, of a thousand classes."""
    write_folder(VMambaNet('tiny', **THIN), tmp_path)
    classify = transformers.pipeline('image-classification', model=str(tmp_path))
    names = timm.data.ImageNetInfo().label_descriptions()
    assert all(answer['label'] in names for answer in classify(picture()))


@pytest.mark.parametrize('arch', [a for a in ARCHS if a not in ('tiny', 'small', 'base')])
def test_classifiers(arch, tmp_path):
    net = write(tmp_path / 'a', arch)
    auto = transformers.AutoModelForImageClassification
    model = auto.from_pretrained(tmp_path / 'a')
    with torch.no_grad():
        assert torch.equal(model(images()).logits, net(images()))
    model.save_pretrained(tmp_path / 'b')
    back = load_folder(tmp_path / 'b').eval()
    assert back.class_names == NAMES and back.settings == net.settings
    with torch.no_grad():
        assert torch.equal(back(images()), net(images()))


def test_fine_tuning(tmp_path):
    """Another number of classes, a step and a folder that loads again."""
    write(tmp_path / 'a')
    auto = transformers.AutoModelForImageClassification
    model = auto.from_pretrained(tmp_path / 'a', num_labels=5, ignore_mismatched_sizes=True)
    model.train().gradient_checkpointing_enable()
    model(images(), labels=torch.tensor([0, 4])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path / 'b')
    net = load_folder(tmp_path / 'b')
    assert net.num_classes == 5
    for key, value in net.state_dict().items():
        assert torch.equal(value, model.timm_model.state_dict()[key]), key


@pytest.mark.parametrize('kind', ['classifier', 'backbone'])
@pytest.mark.parametrize('auto', [False, True])
def test_backbone(kind, auto, tmp_path):
    """The maps are those of timm: as they are, without the norms of a backbone of this package."""
    net = write(tmp_path, out_indices=(0, 1, 2, 3) if kind == 'backbone' else None)
    if auto:
        config = transformers.TimmBackboneConfig(
            backbone=f'local-dir:{tmp_path}', out_indices=[1, 3]
        )
        # Version 4 loads the weights by default.
        pretrained = {} if transformers.__version__.startswith('4.') else dict(pretrained=True)
        model = transformers.AutoBackbone.from_config(config, **pretrained)
    else:
        model = transformers.TimmBackbone.from_pretrained(
            f'local-dir:{tmp_path}', out_indices=[1, 3]
        )
    assert model.channels == [16, 32]
    with torch.no_grad():
        want = net.forward_intermediates(images(), (1, 3), intermediates_only=True)
        for a, b in zip(model.eval()(images()).feature_maps, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def upernet(config):
    config = transformers.UperNetConfig(backbone_config=config, num_labels=4, **UPERNET)
    model = transformers.UperNetForSemanticSegmentation(config)
    return model, model.backbone, dict(labels=torch.randint(0, 4, (2, 64, 64)))


def mask2former(config):
    config = transformers.Mask2FormerConfig(backbone_config=config, num_labels=4, **MASK2FORMER)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    masks = [torch.randint(0, 2, (3, 64, 64)).float() for _ in range(2)]
    labels = dict(mask_labels=masks, class_labels=[torch.tensor([0, 1, 3])] * 2)
    return model, model.model.pixel_level_module.encoder, labels


@pytest.mark.parametrize('build', [upernet, mask2former])
def test_segmentors(build, tmp_path):
    """A step of training on the folder's weights, saved and loaded."""
    write(tmp_path / 'a', out_indices=(0, 1, 2, 3))
    trained = transformers.TimmBackbone.from_pretrained(
        f'local-dir:{tmp_path / "a"}', out_indices=[0, 1, 2, 3]
    )
    trained.config.use_pretrained_backbone = False  # for version 4
    model, backbone, labels = build(trained.config)
    backbone.load_state_dict(trained.state_dict())
    loss = model(images(), **labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.save_pretrained(tmp_path / 'b')
    again = type(model).from_pretrained(tmp_path / 'b').eval()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
