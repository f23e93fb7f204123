"""Wording and severity of the problems of COCO files."""

import pytest

from mmvmamba.engine.checks.coco_rules import RULES
from mmvmamba.engine.checks.report import SEVERITIES


@pytest.mark.parametrize('key', RULES)
def test_rules(key):
    rule = RULES[key]
    assert {rule.train, rule.evaluation} <= {*SEVERITIES, ''}
    assert key in ('entry', 'category.similar_name') or '`' in rule.kind
    assert not rule.kind.endswith('.') and not rule.hint.endswith('.')
    assert (
        rule.hint[:1] in ('', '[')
        or rule.hint[0].isupper()
        or rule.hint.startswith(('mmdet', 'pycocotools'))
    )


def test_kinds_are_unique():
    assert len({rule.kind for rule in RULES.values()}) == len(RULES)
