"""Names of models: the plans of the served bundle, as NAME:PLAN."""

from __future__ import annotations

import calendar
import contextlib
import time
from typing import Any

from vtexport.bundle.manifest import AdaptivePlan
from vtexport.bundle.reader import Bundle
from vtexport.errors import UsageError, cut, printable
from vtexport.serve.refusal import RequestError
from vtexport.serve.settings import Settings


class Models:
    """Plans of a bundle by the names that clients ask for.

    The bundle's name alone, or the served name, stands for the plan that `Pipeline.open` takes without one, or for the
    only one that is served.

    Attributes:
        plans: Names of the plans that are served, the one without a name first.

    Raises:
        UsageError: the settings name a plan that the bundle does not have.
    """

    def __init__(self, bundle: Bundle, settings: Settings):
        manifest = bundle.manifest
        known = [*(plan.name for plan in manifest.adaptive_plans), *(plan.name for plan in manifest.plans)]
        for name in settings.plans:
            bundle.plan_or_adaptive(name)
        self.plans = [name for name in known if name in settings.plans] if settings.plans else known
        default = None
        with contextlib.suppress(UsageError):  # several to choose from
            default = bundle.plan_or_adaptive(None).name
        if len(self.plans) == 1:
            default = self.plans[0]
        name = settings.served_name or manifest.name
        self._plans = {name: default} if default in self.plans else {}
        self._plans |= {f"{name}:{plan}": plan for plan in self.plans}
        if default in self.plans:
            self.plans.sort(key=lambda plan: plan != default)
        with contextlib.suppress(ValueError):
            self._created = calendar.timegm(time.strptime(manifest.created_at[:19], "%Y-%m-%dT%H:%M:%S"))
        self._kept = {plan.name: plan.visual_tokens for plan in manifest.plans}
        self._adaptive = {plan.name: plan for plan in manifest.adaptive_plans}
        self._family = manifest.family

    _created = 0

    @property
    def names(self) -> list[str]:
        """All names, the one of the bundle alone first where it stands for a plan."""
        return list(self._plans)

    def plan(self, model: str) -> str:
        """The plan of a model's name.

        Raises:
            RequestError: 404, with the names that there are.
        """
        found = self._plans.get(model)
        if found is None:
            there = cut(", ".join(self._plans), 160)
            raise RequestError(
                404, f"the model {cut(printable(model), 80)} is not served; give one of {there}", param="model"
            )
        return found

    def listed(self) -> dict[str, Any]:
        """The answer of /v1/models."""
        return {"object": "list", "data": [self.card(name) for name in self._plans]}

    def card(self, model: str) -> dict[str, Any]:
        """One entry of that list.

        Raises:
            RequestError: as `plan`.
        """
        plan = self.plan(model)
        adaptive: AdaptivePlan | None = self._adaptive.get(plan)
        kept = {"visual_tokens": self._kept[plan]} if adaptive is None else {"plans": list(adaptive.plans)}
        about = {"plan": plan, "family": self._family, **kept}
        return {"id": model, "object": "model", "created": self._created, "owned_by": "vtexport", "vtexport": about}
