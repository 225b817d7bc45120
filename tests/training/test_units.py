"""Operations of the walk as units: computed anew, compiled, and with weights read nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from bootpig_rt.training.draws import Draws
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.units import make_units

if TYPE_CHECKING:
    from bootpig_rt.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
STARTS = {"vae": None, "base": "vae_result", "pair": "base_result", "distill": "pair_result"}


@pytest.fixture
def config(
    request: pytest.FixtureRequest, make_config: Any, make_output: Any
) -> Callable[..., Any]:
    """A configuration of any stage with several references, some of them left out."""

    def make(stage: str, **changes: Any) -> Any:
        start = STARTS[stage]
        if start is not None:
            changes["start_from"] = str(request.getfixturevalue(start))
            changes["diffusion"] = {"reference_dropout": 0.3, "max_references": 2}
        if stage == "distill":
            changes["distill"] = {"steps": 2}
        output = make_output(f"{changes.pop('name', 'run')}-{stage}")
        return make_config(stage, output, batch_size=3, log_every=1, **changes)

    return make


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in trainer.parameters.items()}


def moments_of(trainer: Trainer) -> dict[str, Tensor]:
    """After one step: each gradient and its square, but for a factor."""
    state = trainer.optimizer.state
    return {
        f"{key}/{name}": state[p][key]
        for name, p in trainer.parameters.items()
        if p in state
        for key in ("exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("stage", STARTS)
def test_what_is_computed_anew_gives_the_same_gradients(
    stage: str, config: Callable[..., Any], train: Any
) -> None:
    plain = train(config(stage, name="plain", steps=1))
    anew = train(config(stage, name="anew", steps=1, checkpointing="blocks"))
    for what in (weights_of, moments_of):
        before, after = what(plain), what(anew)
        assert before.keys() == after.keys()
        assert before
        assert [name for name in before if not torch.equal(before[name], after[name])] == []


def kept_bytes(stage: Any, checkpointing: Any) -> int:
    """Of tensors that are kept for gradients, but for what operations compute anew."""
    make_units(stage.walks(), checkpointing=checkpointing)
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.loss(torch.arange(3), Draws(5, 0, [0, 1, 2]))
    return sum(storage.nbytes() for storage in kept.values())


def test_blocks_that_are_computed_anew_keep_next_to_nothing(config: Callable[..., Any]) -> None:
    stage, _ = build_stage(config("pair"), torch.device("cpu"))
    for module in stage.modules().values():
        module.train()
    assert kept_bytes(stage, "blocks") < 0.15 * kept_bytes(stage, "none")


@pytest.mark.parametrize("stage", ["base", "pair", "distill"])
def test_weights_of_a_unit_are_read_within_its_calls_alone(
    stage: str, config: Callable[..., Any]
) -> None:
    made, _ = build_stage(config(stage), torch.device("cpu"))
    units = make_units(made.walks(), checkpointing="none")
    for unit in units:
        for parameter in unit.parameters():
            whole = parameter.data

            def take(module: nn.Module, _: Any, p: nn.Parameter = parameter) -> None:
                p.data = p.data.new_full((1,), torch.nan).expand_as(p)

            def give(
                module: nn.Module, _: Any, p: nn.Parameter = parameter, whole: Tensor = whole
            ) -> None:
                p.data = whole

            unit.register_forward_pre_hook(give)
            unit.register_forward_hook(lambda module, args, found, take=take: take(module, args))
            take(unit, None)
    with torch.no_grad():
        loss, _ = made.loss(torch.arange(3), Draws(5, 0, [0, 1, 2]))
    assert torch.isfinite(loss)


def test_a_batch_without_references_has_gradients_for_all_that_others_have(
    config: Callable[..., Any],
) -> None:
    found = {}
    for name, dropout in {"all": 0.0, "none": 1.0}.items():
        made = config("pair", name=name)
        settings = {"reference_dropout": dropout, "prompt_dropout": 0.0, "both_dropout": 0.0}
        changed = type(made)(**{**_fields(made), "diffusion": _replace(made.diffusion, settings)})
        stage, _ = build_stage(changed, torch.device("cpu"))
        loss, _ = stage.loss(torch.arange(3), Draws(5, 0, [0, 1, 2]))
        loss.backward()
        found[name] = {
            f"{part}.{key}": p.grad
            for part, module in stage.modules().items()
            for key, p in module.named_parameters()
            if p.grad is not None
        }
    assert found["none"].keys() == found["all"].keys()
    of_reference = [value for name, value in found["none"].items() if name.startswith("ref_unet")]
    assert all(value.abs().max() == 0 for value in of_reference)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _replace(struct: Any, changes: dict[str, Any]) -> Any:
    return type(struct)(**{**_fields(struct), **changes})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`")  # both in torch's own compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_train_as_others(config: Callable[..., Any], train: Any) -> None:
    plain = train(config("pair", name="plain", steps=3))
    compiled = train(config("pair", name="compiled", steps=3, compile=True))
    before, after = weights_of(plain), weights_of(compiled)
    apart = torch.stack([(before[name] - after[name]).abs().max() for name in before]).max()
    assert apart < 1e-4


def test_channels_last_trains_as_others(config: Callable[..., Any], train: Any) -> None:
    plain = train(config("pair", name="plain", steps=2))
    other = train(config("pair", name="other", steps=2, channels_last=True))
    convolution = next(p for p in other.parameters.values() if p.dim() == 4 and p.shape[2] > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    before, after = weights_of(plain), weights_of(other)
    assert all(torch.allclose(before[name], after[name], atol=2e-4) for name in before)
    rest = train(config("pair", name="other", steps=3, channels_last=True))
    assert rest.step == 3
