"""What a `generator` of diffusers means here, where a picture is drawn from a seed of its own."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import torch

from bootpig_rt.checks import MAX_SEED, wrap_seed
from bootpig_rt.errors import ParameterError

Generators = torch.Generator | Sequence[torch.Generator] | None

_RANDOM_SEEDS = 2**31


def seeds_of(generator: Generators, count: int) -> list[int]:
    """The seed of each of `count` pictures.

    One generator gives the seed of the first picture, from which the others count on, as `seed=` of
    `Pipeline` does; a list has one for each picture. Without any, seeds are random.

    Raises:
        ParameterError: A list of another length, or of something else.
    """
    if generator is None:
        first = secrets.randbelow(_RANDOM_SEEDS)
        return [first + number for number in range(count)]
    is_one = isinstance(generator, torch.Generator)
    several: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator]
    if not all(isinstance(one, torch.Generator) for one in several):
        kind = next(type(one) for one in several if not isinstance(one, torch.Generator))
        raise ParameterError(
            f"generator is of type {kind.__name__}, expected torch.Generator().manual_seed(SEED), "
            "or a list with one for each picture"
        )
    if not is_one:
        if len(several) != count:
            raise ParameterError(
                f"{len(several)} generators for {count} pictures, expected one, or one for each"
            )
        return [_seed_of(one) for one in several]
    first = _seed_of(several[0])
    return [wrap_seed(first + number) for number in range(count)]


def _seed_of(generator: torch.Generator) -> int:
    """The seed that a generator of the CPU was set to and not used since; else one drawn from it.

    Something is drawn in any case, so that the next call with it gives another picture, as in
    diffusers.
    """
    seed = generator.initial_seed()
    is_new = False
    if generator.device.type == "cpu" and 0 <= seed <= MAX_SEED:
        unused = torch.Generator().manual_seed(seed).get_state()
        is_new = torch.equal(generator.get_state(), unused)
    drawn = torch.randint(0, MAX_SEED, (1,), generator=generator, device=generator.device)
    return seed if is_new else int(drawn.item())
