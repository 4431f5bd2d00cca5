from __future__ import annotations

from jepa_lightning.messages import condense

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
