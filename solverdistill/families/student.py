"""A student as a run knows it: its family at exactly the wanted cost, and how the same student is built elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from solverdistill import families
from solverdistill.families.base import Family
from solverdistill.noise.grids import Grid


@dataclass(frozen=True)
class Student:
    """A family, the grid rule that it was built from, and the options that were asked for.

    Args:
        family: The family on its grid.
        rule: Its grid rule; None where its levels were listed.
        options: Hyperparameters of the family as they were given.
        name: Name of the family as it was given.
    """

    family: Family
    rule: Grid | None
    options: Mapping[str, Any]
    name: str

    @classmethod
    def build(cls, name: str, nfe: int, grid: Grid | Sequence[float], path: Any, options: Mapping[str, Any]) -> Student:
        """A student that spends exactly `nfe` evaluations, on a rule (whose steps are found) or on listed levels.

        Raises:
            ValueError: no number of steps, or not that of the listed levels, spends them.
        """
        if isinstance(grid, Grid):
            family = families.build_for_nfe(name, nfe, grid, path, **options)
            return cls(family, grid.with_steps(family.steps), options, name)
        family = families.build(name, grid, path, **options)
        if family.nfe != nfe:
            raise ValueError(
                f"solver.grid lists {len(grid)} noise levels, on which {name} spends {family.nfe} evaluations and not "
                f"solver.nfe={nfe}; set solver.nfe={family.nfe} or list another number of levels"
            )
        return cls(family, None, options, name)

    def elsewhere(self, grid: Grid | Sequence[float], options: Mapping[str, Any]) -> Student:
        """The same family at the same cost on another grid, with some options changed.

        Raises:
            ValueError: it cannot be built there.
        """
        family, options = self.family, {**self.options, **options}
        if isinstance(grid, Grid):  # as many steps cost as much, unless one grid has a singular end and one has not
            rule = grid.with_steps(family.steps)
            try:
                other = families.build(self.name, rule, family.path, **options)
                if other.nfe == family.nfe:
                    return Student(other, rule, options, self.name)
            except ValueError:
                pass  # perhaps another number of steps can be built
        return self.build(self.name, family.nfe, grid, family.path, options)

    def rebuilt(self, family: Family) -> Student:
        """This student with a family that was stored."""
        return replace(self, family=family)
