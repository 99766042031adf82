"""A wrong value is told where it was given, not where it arrives."""

from omegaconf import OmegaConf

from advtrain.complaints import causes

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
