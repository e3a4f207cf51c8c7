"""Plan -> PathInfo: opt_einsum's numbers for a path, and ours."""

from __future__ import annotations

from convein.planner.plan import Plan


class PathInfo: ...


def path_info(plan: Plan) -> PathInfo:
    raise NotImplementedError
