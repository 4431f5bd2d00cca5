from __future__ import annotations

import pytest
import torch

from jepa_lightning.commands.messages import condense

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'jepa_lightning.methods.base.JEPA'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'jepa_lightning.IJEPA':
        Parser key "encoder":
          Problem with given class_path 'jepa_lightning.VisionTransformer':
            Option 'depht' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {}"""


def test_a_nested_message_becomes_place_and_reason() -> None:
    assert condense(NESTED) == "model.encoder: VisionTransformer has no option 'depht'; did you mean 'depth'?"


def test_options_that_are_nearly_right_are_suggested() -> None:
    message = "Subcommand 'fit' does not accept option 'trainer.max_epoch'"
    assert condense(message, ["trainer.max_epochs", "model"]) == f"{message}; did you mean 'trainer.max_epochs'?"
    assert condense("unrecognized arguments: --dtaa.root x", ["data"]).endswith("did you mean 'data.root'?")


def test_what_is_not_understood_is_left_alone() -> None:
    assert condense("something else") == "something else"
    assert condense("") == ""


FACTORY = """Parser key "data":
  Errors:
    - Problem with given class_path 'jepa_lightning.data.VideoDataModule':
        Parser key "clips":
          Errors:
            - Type collections.abc.Callable[[int], jepa_lightning.data.clips.ClipSampler] expects a function or a \
callable class: Parser key "{key}":
                {reason} Got value: Namespace(class_path='jepa_lightning.data.ClipSampler', init_args=Namespace())
            - Expected a <class 'NoneType'>
          Given value: NestedArg(key='fps', val='x')"""
UNION = """Does not validate against any of the Union subtypes
                Errors:
                  - Expected a <class 'float'>
                  - Expected a <class 'NoneType'>
                Given value type: <class 'str'>
                Given value: fast."""


def test_a_part_that_a_function_builds_is_named_like_any_other() -> None:
    literal = FACTORY.format(key="short", reason="Expected a typing.Literal['loop', 'hold']. Got value: cut.")
    assert condense(literal) == "data.clips.short: Expected one of 'loop', 'hold'. Got value: cut"
    union = FACTORY.format(key="fps", reason=UNION)
    assert condense(union) == "data.clips.fps: Expected a <class 'float'>. Got value: fast"


def test_tensors_that_do_not_fit_are_named_with_the_options_that_explain_them() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())
    shown = condense(str(error.value))
    assert "size mismatch for weight" in shown
    assert "--model.encoder.img_size" in shown
    assert "\n" not in shown
