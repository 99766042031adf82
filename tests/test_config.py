import subprocess
import sys

import pytest
from grids import grid
from running import command, configuration

from advtrain import config as configuring
from advtrain.config import ConfigError, build, check
from advtrain.grid import parse
from advtrain.main import validate
from advtrain.ranges import number
from advtrain.sweeping import jobs


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        validate(parse(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("0.3", 0.3),
        (1, 1.0),
        ("1e-3", 0.001),
        ("1e999999999", float("inf")),  # which a fraction would write out
        ("9" * 400 + "/7", None),
        ("x", None),
        ("1/0", None),
        (True, None),
    ],
)
def test_numbers_may_be_fractions(text, value):
    assert number(text) == value


def test_fractions_become_floats_where_a_signature_wants_one():
    threat = build(configuration("threat.eps=8/255")["threat"], path="threat")
    assert threat.eps == 8 / 255


def test_the_usual_step_size_is_that_of_the_papers():
    attack = configuration("threat.eps=8/255", "attack.steps=10")["attack"]
    assert attack["step_size"] == pytest.approx(2 / 255)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("threat.eps=8", ["threat.eps=8", "[0, 1]", "8/255"]),
        ("+attack.stepz=3", ["attack.stepz=3", "Did you mean attack.steps?"]),
        ("attack.steps=0", ["attack.steps=0", "at least 1"]),
        ("attack.steps=2.5", ["attack.steps=2.5", "whole number"]),
        ("optimizer.lr=fast", ["optimizer.lr=fast", "greater than 0"]),
        ("seed=-1", ["seed=-1", "at least 0"]),
        ("epochs=many", ["epochs=many", "whole number"]),
        ("precision=fp16", ["precision=fp16", "fp32, bf16"]),
        ("name=''", ["name= is refused", "not empty"]),
        ("name=../../elsewhere", ["name=../../elsewhere", "below outputs/"]),
        ("name=/elsewhere", ["name=/elsewhere", "below outputs/"]),
        ("job=tran", ["job=tran", "train_eval"]),
        ("resume=maybe", ["resume=maybe", "true or false"]),
        ("+extra=1", ["extra=1", "no such key"]),
        ("dataset.train_size=0", ["dataset.train_size=0", "at least 1 or null"]),
        ("eval.certify.alpha=1", ["eval.certify.alpha=1", "(0, 1)"]),
        ("eval.certify.sigma=0", ["eval.certify.sigma=0", "greater than 0"]),
        ("eval.certify.n0=0", ["eval.certify.n0=0", "at least 1"]),
        ("eval.certify.n=100.5", ["eval.certify.n=100.5", "whole number"]),
        ("eval.certify.noise=laplace", ["eval.certify.noise=laplace", "gaussian, uniform"]),
        ("eval.certify.precision=fp16", ["eval.certify.precision=fp16", "fp32, bf16"]),
        ("schedule.lr=3", ["schedule", "node"]),
        ("defense=standard attack.steps=3", ["attack.steps=3: nothing in this run reads it"]),
        ("model=linear dataset.mean=[0.5]", ["dataset.mean=[0.5]: nothing in this run reads it"]),
        ("epochs=2 dataset.epochs=3", ["dataset.epochs=3: nothing in this run reads it"]),
        ("job=train eval.size=3", ["eval.size=3: nothing in this run reads it"]),
        ("job=eval checkpoint=x epochs=9", ["epochs=9: nothing in this run reads it"]),
        ("dataset.replays=2.5", ["dataset.replays=2.5", "at least 1"]),
        ("optimizer=adam optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "a list of 2"]),
        ("attack._target_=os.system", ["attack._target_=os.system"]),
        ("+eval.attacks.mine={_target_: os.path.join}", ["os.path.join", "refused"]),
        ("model=custom", ["model.factory", "not given"]),
        ("job=eval checkpoint=x eval=none", ["eval=none", "nothing to do"]),
    ],
)
def test_a_wrong_value_is_refused_with_the_key_the_value_and_what_is_allowed(override, wanted):
    overrides = [override] if override.startswith(("+", "schedule")) else override.split(" ")
    message = refusal(*overrides)
    for part in wanted:
        assert part in message, message


def test_a_node_without_a_target_is_refused():
    for override in ("~optimizer._target_", "~model._target_"):
        with pytest.raises(ConfigError, match="has no _target_ to build"):
            configuration(override)
    with pytest.raises(ConfigError, match="eval=none takes no keys"):
        configuration("eval=none", "+eval.size=3")


def test_a_problem_of_a_shared_node_is_told_once():
    assert refusal("threat.eps=8").count("\n") == 0


@pytest.mark.parametrize("override", ["threat.eps=-1", "dataset.eps.linf=-1"])
def test_a_value_that_follows_from_a_refused_one_is_not_told(override):
    message = refusal(override)
    assert message.startswith(override) and message.count("\n") == 0, message


def test_every_key_that_is_missing_is_told():
    message = refusal("+eval.attacks.x={_target_: advtrain.attacks.pgd.pgd, _partial_: true}")
    for key in ("threat", "steps", "step_size"):
        assert f"eval.attacks.x.{key} is missing" in message, message


@pytest.mark.parametrize("mark", ["", ", _partial_: false"])
def test_an_attack_that_would_be_called_at_once_asks_for_its_mark(mark):
    row = "{_target_: advtrain.attacks.pgd.fgsm, threat: '${threat}'" + mark + "}"
    message = refusal(f"+eval.attacks.x={row}")
    assert message.startswith("eval.attacks.x._partial_ is missing; write _partial_: true")


def test_a_grid_may_set_what_only_some_of_its_jobs_read():
    with grid("defense=standard,pgd_at", "attack.steps=3") as here:
        assert len(jobs(here.config, here.context, here.arguments)) == 2


def test_rows_of_an_evaluation_can_be_changed_added_and_removed():
    found = configuration(
        "eval.attacks.pgd_linf.steps=7",
        "~eval.attacks.fgsm",
        "+eval.attacks.second={_target_: advtrain.attacks.pgd.fgsm, _partial_: true, threat: "
        "'${threat}'}",
    )["eval"]["attacks"]
    assert list(found) == ["pgd_linf", "pgd_l2", "second"]
    assert found["pgd_linf"]["steps"] == 7


def test_the_row_of_the_training_norm_follows_the_training_threat():
    found = configuration("threat=l2", "threat.eps=0.7")
    assert found["eval"]["attacks"]["pgd_l2"]["threat"]["eps"] == 0.7
    assert found["eval"]["attacks"]["pgd_linf"]["threat"]["eps"] == 0.15


def test_a_product_follows_the_radius_fractions_included():
    found = configuration("attack=nuclear", "threat.eps=8/255")["attack"]
    assert found["start"]["size"] == pytest.approx(4 / 255)


def test_scale_bounds_but_the_command_line_wins():
    assert configuration("scale=smoke")["epochs"] == 1
    assert configuration("scale=smoke", "epochs=3")["epochs"] == 3


def test_code_of_others_runs_only_where_the_command_line_names_its_package():
    node = {"_target_": "statistics.mean"}
    with pytest.raises(ConfigError, match="command line names"):
        build(node, path="x")
    assert build(node, [1, 2, 3], path="x", allowed=("statistics",)) == 2


def test_a_factory_outside_advtrain_is_refused_unless_named():
    node = {"_target_": "advtrain.models.custom.custom", "factory": "os.getcwd", "arguments": {}}
    with pytest.raises(ConfigError, match=r"os\.getcwd"):
        build(node, (1, 8, 8), 10, path="model")
    with pytest.raises(ConfigError, match=r"os\.getcwd"):
        check(configuration() | {"model": node})


def test_what_the_program_supplies_cannot_be_configured():
    node = configuration()["attack"] | {"x": 1}
    with pytest.raises(ConfigError, match=r"attack.x=1 cannot be configured"):
        check(configuration() | {"attack": node})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-h"], 0),
        (["--cfg", "job"], 0),
        (["--info", "defaults-tree"], 0),
        (["attack.stepz=3"], 2),
        (["threat.eps=8"], 2),
        (["defense=pgd_att"], 2),
        (["-m", "seed=0,1", "+attack.stepz=3,4"], 2),
        (["seed=[1"], 2),
    ],
)
def test_help_composition_and_wrong_configurations_never_import_torch(arguments, code, tmp_path):
    script = (
        "import sys\nfrom advtrain.main import main\n"
        f"sys.argv = ['advtrain', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n"
        "    print('code', stop.code or 0, 'torch' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert found.stdout.strip().endswith(f"code {code} False"), found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())  # nothing ran, and nothing was left


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("attack.stepz=3", "Did you mean attack.steps?"),
        ("lr=0.1", "Did you mean optimizer.lr?"),
        ("defence=trades", "Did you mean defense?"),
        ("defense=trade", "Did you mean defense=trades?"),
        ("threat=l3", "Allowed: l2, linf"),
        ("average=1", "average=1: there is no such option"),
        ("descent=null", "descent=null: there is no such option"),
        ("attack=null attack.steps=x", "attack=null: there is no such option"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_right_one(override, wanted, tmp_path):
    found = command(*override.split(), cwd=tmp_path)
    assert found.returncode == 2
    assert wanted in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_the_groups_are_found_in_a_checkout():
    assert (configuring.conf_dir() / "config.yaml").is_file()
