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
    def build(
        cls,
        name: str,
        wanted: int,
        grid: Grid | Sequence[float],
        path: Any,
        options: Mapping[str, Any],
        cost: str = "nfe",
    ) -> Student:
        """A student of a given cost, on a rule (whose steps are found) or on listed levels.

        Args:
            name: Its family.
            wanted: What it costs, exactly.
            grid: The rule, or the levels.
            path: Of the family.
            options: Hyperparameters of the family.
            cost: In what this is counted: "nfe", evaluations, or "depth", sequential network calls.
        Raises:
            ValueError: no number of steps, or not that of the listed levels, costs this.
        """
        if isinstance(grid, Grid):
            build = families.build_for_nfe if cost == "nfe" else families.build_for_depth
            family = build(name, wanted, grid, path, **options)
            return cls(family, grid.with_steps(family.steps), options, name)
        family = families.build(name, grid, path, **options)
        own = getattr(family, cost)
        if own != wanted:
            what = f"spends {own} evaluations" if cost == "nfe" else f"has a depth of {own}"
            raise ValueError(
                f"solver.grid lists {len(grid)} noise levels, on which {name} {what} and not "
                f"solver.{cost}={wanted}; set solver.{cost}={own} or list another number of levels"
            )
        return cls(family, None, options, name)

    @classmethod
    def of(cls, family: Family) -> Student:
        """A student on the grid of a family."""
        options = family.hyperparameters()
        name, _, _ = (options.pop(key) for key in ("name", "grid", "path"))
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
