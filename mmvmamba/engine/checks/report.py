"""Problems of datasets, grouped and counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

#: 'error': training or evaluation would fail, or would silently give wrong results. 'warning': some
#: samples are not used, or something looks wrong. 'note': for information.
SEVERITIES = ('error', 'warning', 'note')
_SHOWN = 5  # of the items of a group, of which there can be many thousands


@dataclass
class Group:
    """Problems of one kind in one file.

    Attributes:
        severity (str): One of ``SEVERITIES``.
        path (str): The annotation file or folder.
        kind (str): The problem in plain words, with the field, e.g. '`bbox` has no area'.
        hint (str): The likely cause and the remedy, if known.
        count (int): Number of problems.
        items (list[str]): The first items that have it, e.g. "annotation 12 of 'a.jpg'".
        single (bool): Whether these are single samples, which training can replace by others.
    """

    severity: str
    path: str
    kind: str
    hint: str = ''
    count: int = 0
    items: list[str] = field(default_factory=list)
    single: bool = False

    def __str__(self) -> str:
        more = f' and {self.count - len(self.items)} more' if self.count > len(self.items) else ''
        items = f': {", ".join(self.items)}{more}' if self.items else ''
        count = f' ({self.count} times)' if self.count > 1 else ''
        hint = f'. {self.hint}' if self.hint else ''
        return f'{self.path}: {self.kind}{count}{items}{hint}'


class Report:
    """Problems by severity, file and kind."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str], Group] = {}

    def add(
        self,
        severity: str,
        path: str,
        kind: str,
        item: str = '',
        hint: str = '',
        count: int = 1,
        single: bool = False,
    ) -> None:
        """Count a problem; see :class:`Group` for the arguments.

        Raises:
            ValueError: If ``severity`` is unknown.
        """
        if severity not in SEVERITIES:
            raise ValueError(f'severity must be one of {SEVERITIES}, but got {severity!r}')
        new = Group(severity, path, kind, hint, single=single)
        group = self._groups.setdefault((severity, path, kind), new)
        group.count += count
        if item and len(group.items) < _SHOWN:
            group.items.append(item)

    def merge(self, other: 'Report', errors_as: str = 'error', singles_as: str = 'error') -> None:
        """Add the problems of another report with other severities.

        A problem that both have gets the more severe one.

        Args:
            other (Report): The other report.
            errors_as (str): The severity of errors. Defaults to 'error'.
            singles_as (str): That of errors in single samples. Defaults to 'error'.
        """
        known = {(group.path, group.kind): group for group in self.groups()}
        for group in other.groups():
            if group.severity == 'error':
                group.severity = singles_as if group.single else errors_as
            if before := known.get((group.path, group.kind)):
                del self._groups[before.severity, before.path, before.kind]
                group = _merged(before, group)
            self._groups[group.severity, group.path, group.kind] = group

    def groups(self, *severities: str) -> Iterator[Group]:
        """Yield the groups of the given severities, or all, the most severe first."""
        for severity in severities or SEVERITIES:
            yield from (g for g in self._groups.values() if g.severity == severity)


def _merged(first: Group, second: Group) -> Group:
    """Return the union of two groups of one problem in one file or folder."""
    new = [item for item in second.items if item not in first.items]
    # Without new items the same problem was found twice, as a file may be read in two stages.
    count = first.count + second.count if new else max(first.count, second.count)
    severity = min(first.severity, second.severity, key=SEVERITIES.index)
    items = (first.items + new)[:_SHOWN]
    return replace(first, severity=severity, count=count, items=items)
