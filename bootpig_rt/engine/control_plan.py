"""Which maps a picture follows, how closely and when: decided when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bootpig_rt.backends.base import BoolArray, PairSpec
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.control import Control
from bootpig_rt.reference.schedule import steps_of_share
from bootpig_rt.request import ControlParameters, Request


@dataclass(frozen=True, eq=False)
class ControlPlan:
    """One map that a picture follows.

    Attributes:
        control: The map, with its scale.
        acts: bool [T], the steps in which it is followed.
    """

    control: Control
    acts: BoolArray


def plan_controls(
    request: Request, steps: int, size: tuple[int, int], *, spec: PairSpec
) -> tuple[ControlPlan, ...]:
    """How a picture follows its maps.

    Args:
        request: With controls.
        steps: T, those that are done.
        size: Width and height of the picture.
        spec: Of the pair.

    Raises:
        ParameterError: The pair has no such control, a map has another size than the picture, no
            step lies in an interval, or deep blocks would be left out, in which controls act.
    """
    known = [control.kind for control in spec.controls]
    plans = []
    for control in request.controls:
        if control.kind not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ParameterError(
                f"control_image has a map of kind {control.kind}, but this pair has no such "
                f"control: {has}; put the ControlNet beside the pair as controlnet_{control.kind}, "
                "and where it runs as a bundle build that again with --control"
            )
        if control.size != size:
            raise ParameterError(
                f"control_image {control.kind} is {control.size[0]}x{control.size[1]} px, but the "
                f"picture is {size[0]}x{size[1]} px; resize the map"
            )
        inside = steps_of_share(control.interval, steps)
        if not inside:
            raise ParameterError(
                f"control_interval of {control.kind} is {control.interval}, but none of {steps} "
                "steps lies in it; widen it, or leave out the map"
            )
        acts = np.zeros(steps, np.bool_)
        acts[inside.start : inside.stop] = control.scale > 0.0
        plans.append(ControlPlan(control, acts))
    if request.approximation != "none":
        raise ParameterError(
            f"approximation is {request.approximation} together with control_image, but the blocks "
            "that it leaves out are those in which controls act; leave out one of the two"
        )
    return tuple(plans)


def control_parameters(
    plans: tuple[ControlPlan, ...], spec: PairSpec
) -> tuple[ControlParameters, ...]:
    """What a picture says of the maps that it follows."""
    fingerprints = {control.kind: control.fingerprint for control in spec.controls}
    return tuple(
        ControlParameters(
            kind=plan.control.kind,
            scale=plan.control.scale,
            interval=plan.control.interval,
            map_fingerprint=plan.control.fingerprint,
            fingerprint=fingerprints[plan.control.kind],
        )
        for plan in plans
    )
