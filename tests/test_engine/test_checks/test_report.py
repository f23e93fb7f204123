"""Groups of problems, and their text."""

import pytest

from mmvmamba.engine.checks.report import Report


def test_problems_are_grouped_and_counted():
    report = Report()
    for i in range(7):
        report.add(
            'warning', 'a.json', '`bbox` has no area', f'annotation {i}', hint='It is left out'
        )
    report.add('error', 'a.json', 'no annotation of class cat')
    report.add('note', 'b.json', 'image has no annotations', 'x.jpg', count=3)
    assert [str(group) for group in report.groups()] == [
        'a.json: no annotation of class cat',
        'a.json: `bbox` has no area (7 times): annotation 0, annotation 1, annotation 2, '
        'annotation 3, annotation 4 and 2 more. It is left out',
        'b.json: image has no annotations (3 times): x.jpg and 2 more',
    ]
    assert [group.path for group in report.groups('note', 'error')] == ['b.json', 'a.json']


def test_unknown_severity():
    with pytest.raises(ValueError, match=r"severity must be one of .*, but got 'fatal'"):
        Report().add('fatal', 'a.json', 'x')


def test_reports_are_merged_with_other_severities():
    report, whole = Report(), Report()
    report.add('error', 'a', 'is wrong')
    report.add('error', 'a', 'is truncated', 'x.jpg', single=True)
    report.add('note', 'a', 'is gray')
    whole.merge(report, errors_as='error', singles_as='warning')
    again = Report()
    again.add('error', 'a', 'is gray')
    again.add('error', 'a', 'is truncated', 'y.jpg', single=True)
    again.add('error', 'a', 'is wrong')
    whole.merge(again)
    assert [(g.severity, g.kind) for g in whole.groups()] == [
        ('error', 'is gray'),  # the more severe of both
        ('error', 'is truncated'),
        ('error', 'is wrong'),
    ]
    files = [(g.count, g.items) for g in whole.groups()]
    assert sorted(files) == [(1, []), (1, []), (2, ['x.jpg', 'y.jpg'])]
