"""Arguments that the backbones check in the same way."""

import pytest

from mmvmamba.models.checks import check_init_cfg, resolve_settings

ARCHS = {'tiny': dict(width=8, depth=1), 'small': dict(width=8, depth=2)}


def test_settings_by_name_or_dict():
    assert resolve_settings('small', ARCHS) == dict(width=8, depth=2)
    assert resolve_settings(dict(width=3, depth=4), ARCHS) == dict(width=3, depth=4)
    assert resolve_settings('tiny', ARCHS, d_state=16) == dict(width=8, depth=1, d_state=16)
    given = dict(width=3, depth=4, d_state=5)
    assert resolve_settings(given, ARCHS, d_state=16) == given


@pytest.mark.parametrize(
    ('arch', 'error', 'words'),
    [
        ('huge', ValueError, r"arch must be one of \('tiny', 'small'\), but got 'huge'"),
        (None, TypeError, 'arch must be a str or a dict, but got NoneType'),
        (
            dict(width=3),
            ValueError,
            r"with \['width', 'depth', 'd_state'\], but got {'wid",
        ),
        (dict(width=3, depth=1, height=1), ValueError, "'height': 1"),
    ],
)
def test_wrong_settings(arch, error, words):
    with pytest.raises(error, match=words):
        resolve_settings(arch, ARCHS, d_state=16)


@pytest.mark.parametrize(
    'init_cfg', [dict(checkpoint='http://user:pa55@host/'), ['http://user:pa55@host/']]
)
def test_no_secret_of_a_url(init_cfg):
    with pytest.raises((TypeError, ValueError), match='http://host/') as raised:
        check_init_cfg(init_cfg)
    assert 'pa55' not in str(raised.value)
