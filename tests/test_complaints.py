"""A wrong value is told where it was given, not where it arrives."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from advtrain.complaints import causes, explain

WRITTEN = OmegaConf.create(
    {
        "data": {"eps": -1},
        "threat": {"eps": "${data.eps}"},
        "attack": {"threat": "${threat}", "steps": 0, "size": "${step:${threat.eps},${.steps}}"},
        "row": {"attack": "${..attack}", "copy": {"steps": "${..other}"}, "other": 3},
    }
)


def test_what_follows_from_another_refused_value_is_left_out() -> None:
    told = ["data.eps=-1 is refused.", "attack.steps=0 is refused."]
    derived = ["threat.eps=-1 is refused.", "attack.threat.eps=-1 is refused.", "attack.size=-1 is"]
    nested = ["row.attack.steps=0 is refused.", "row.attack.threat.eps=-1 is refused."]
    assert causes([*derived, *told, *nested], WRITTEN) == told


def test_a_derived_value_is_told_where_its_source_is_accepted() -> None:
    alone = ["attack.size=-1 is refused.", "row.copy.steps=3 is refused."]
    assert causes(alone, WRITTEN) == alone


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Could not find 'row/nuat_mnist/nope'",
            "row=nope: experiment=nuat_mnist has no such row. Allowed: fbf,",
        ),
        (
            "Could not override 'data.epsilon.low'",
            "data.epsilon.low: there is no such key. Did you mean data.eps? Known under data: eps.",
        ),
        ("Could not find 'row/standard'", "row=standard: rows are those of a paper's table;"),
        (
            "Error merging override hydra.launcher.timeout=abc Value 'abc' of type 'str' could not "
            "be converted to Float",
            "hydra.launcher.timeout=abc is refused; allowed is a number.",
        ),
    ],
)
def test_an_error_of_hydra_names_key_value_and_what_is_allowed(said, told):
    assert explain(Exception(said), [], WRITTEN).startswith(told)


@pytest.mark.parametrize("line", ["hydra.sweep.dir=a ü", "seed=0,", "name=a/ü", "seed=choice()"])
def test_an_override_that_cannot_be_read_is_named(line):
    with pytest.raises(OverrideParseException) as error:
        OverridesParser.create().parse_overrides([line])
    assert explain(error.value, [line], None).startswith(f"{line}: this cannot be read. Quote")
