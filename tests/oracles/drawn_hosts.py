"""Slow twin of planner/population/hosts.py for whole memories: what a guest holds, page by page.

Contents are told by identity: zero, a common content, or one of the guest's own in a pass.
"""

from __future__ import annotations

from planner.population.model import ContentKind, Contents, Template

#: What a page holds; None: absent.
Identity = tuple[object, ...] | None


def identity(contents: Contents, content: int, guest: str, life: int, number: int) -> Identity:
    """The content that a drawn guest's page holds for a captured one, in pass `number`."""
    if content < 0:
        return None
    kind = contents.kind[content]
    if kind == ContentKind.ZERO:
        return ("zero",)
    if kind <= ContentKind.RARE_COMMON:
        return ("common", content)
    if contents.is_lasting[content]:
        return ("own", guest, life, content)
    return ("own", guest, life, content, number)


class Guest:
    """A drawn guest at its epochs' ends: contents and frames of each captured site."""

    def __init__(self, contents: Contents, template: Template, name: str, life: int, number: int,
                 snapshot: int) -> None:
        self._contents, self._template, self._name, self._life = contents, template, name, life
        self.content: list[Identity] = []
        self.frame: list[int] = []
        for site in range(template.n_sites):
            self.content.append(None)
            self.frame.append(-1)
            self._take(site, snapshot, number)

    def _take(self, site: int, snapshot: int, number: int) -> None:
        self.content[site] = identity(self._contents, int(self._template.content[snapshot, site]),
                                      self._name, self._life, number)
        self.frame[site] = int(self._template.frame[snapshot, site])

    def pass_to(self, before: int, after: int, after_pass: int) -> list[int]:
        """Go on to a snapshot; the sites that were written."""
        template = self._template
        written = [site for site in range(template.n_sites)
                   if template.content[before, site] != template.content[after, site]
                   or template.frame[before, site] != template.frame[after, site]]
        for site in written:
            self._take(site, after, after_pass)
        return written
