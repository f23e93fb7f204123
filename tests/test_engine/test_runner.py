"""What the tools' runner makes of a config's key ``compile`` where there is no GPU."""

import pytest
from mmengine.config import Config

from mmvmamba.engine import runner
from mmvmamba.engine.runner import build_runner

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
