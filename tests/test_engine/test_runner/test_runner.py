"""What the tools' runner makes of a config before it builds of it."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import ToolRunnerMixin, build_runner, runner

OFF = dict(layout_optimization=False)


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (True, dict(options=OFF)),
        (dict(dynamic=True), dict(dynamic=True, options=OFF)),
        (
            dict(options=dict(epilogue_fusion=True)),
            dict(options=dict(epilogue_fusion=True, **OFF)),
        ),
        (dict(options=dict(layout_optimization=True)), None),
        (dict(mode='max-autotune'), None),
        (dict(backend='aot_eager'), None),
        (False, None),
        (None, None),
    ],
    ids=str,
)
@pytest.mark.parametrize('on_cpu', [True, False])
def test_options_of_inductor(given, expected, on_cpu, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, 'runs_on_cpu', lambda: on_cpu)
    settings = dict(model=dict(type='mmengine.ToyModel'), work_dir=str(tmp_path), compile=given)
    built = {}
    monkeypatch.setattr(runner.Runner, 'from_cfg', lambda cfg: built.update(cfg))
    build_runner(Config(settings))
    assert built['compile'] == (expected if on_cpu and expected else given)


class Base:
    """What stands below the mixin: a loop over a data set of two classes."""

    metainfo = dict(classes=('green', 'blue'))

    def __init__(self, **model):
        self.cfg = Config(dict(model=model))
        self.logger = logging.getLogger('runner')

    def build_train_loop(self, loop):
        dataset = SimpleNamespace(metainfo=self.metainfo)
        return SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), of=loop)

    def build_optim_wrapper(self, optim_wrapper):
        return optim_wrapper


class Mixed(ToolRunnerMixin, Base):
    pass


@pytest.mark.parametrize('kind', ['AdamW', torch.optim.SGD, None])
def test_optimizers_that_are_registered_or_none(kind):
    wrapper = dict(optimizer=dict(type=kind)) if kind else dict(type='AmpOptimWrapper')
    assert Mixed().build_optim_wrapper(wrapper) == wrapper


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match=r"optimizer 'AdamX' is not registered.*'AdamW'"):
        Mixed().build_optim_wrapper(dict(optimizer=dict(type='AdamX')))


@pytest.mark.parametrize(('classes', 'warned'), [(2, False), (80, True)])
def test_heads_for_the_classes_of_the_data_or_more(classes, warned, caplog):
    loop = Mixed(bbox_head=dict(num_classes=classes)).build_train_loop('loop')
    assert loop.of == 'loop'
    assert ('but model.bbox_head.num_classes is 80' in caplog.text) == warned


def test_a_head_for_fewer_classes_than_the_data_has():
    with pytest.raises(UserError, match='has 2 classes, but model.bbox_head.num_classes is 1'):
        Mixed(bbox_head=dict(num_classes=1)).build_train_loop('loop')


def test_boxes_of_a_panoptic_data_set_are_of_things(monkeypatch, caplog):
    panoptic = dict(classes=('green', 'blue', 'sky'), thing_classes=('green', 'blue'))
    monkeypatch.setattr(Base, 'metainfo', panoptic)
    Mixed(roi_head=dict(bbox_head=dict(num_classes=2))).build_train_loop('loop')
    assert not caplog.text
