"""A config is refused with one line naming where and what, or loads and dumps without change."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rft_ray.config import RunConfig
from rft_ray.config_file import dump_config, load_config
from rft_ray.engine_arguments import engine_arguments
from rft_ray.errors import InputError

BASE = """\
run_dir: runs/x
problems:
  train: {format: word_problems, count: 5}
  heldout: {format: word_problems, count: 5, split: heldout}
policies:
  - {name: small, model: m}
  - name: large
    model: n
    sampling:
      k: 4
target: {model: m}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.yaml"


def load(path: Path, text: str = BASE, *overrides: str) -> RunConfig:
    path.write_text(text)
    return load_config(path, list(overrides))


def refuse(path: Path, text: str, *overrides: str) -> str:
    """The message of the refusal, without the path of the file."""
    with pytest.raises(InputError) as caught:
        load(path, text, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).replace(str(path), "c.yaml")


def test_what_is_not_written_is_the_default(path: Path) -> None:
    config = load(path)
    assert (config.run_dir, config.rft.learning_rate, config.verifier.timeout_s) == (
        "runs/x",
        2e-5,
        5.0,
    )


def test_shared_sections_are_merged_under_the_own_ones(path: Path) -> None:
    shared = "sampling: {k: 9, temperature: 1.0}\nsft: {epochs: 1}\nsampler: {num_replicas: 2}\n"
    config = load(path, BASE + shared)
    small, large = config.policies
    assert (small.sampling.k, small.sampling.temperature) == (9, 1.0)
    assert (large.sampling.k, large.sampling.temperature) == (4, 1.0)
    assert small.sft is not None and small.sft.epochs == 1
    assert config.target.sft is not None and config.target.sft.epochs == 1
    assert small.sampler.num_replicas == config.target.sampler.num_replicas == 2


def test_a_section_that_is_null_stays_off(path: Path) -> None:
    assert load(path, BASE + "sft: null\n").policies[0].sft is None
    text = BASE.replace("name: small,", "name: small, sft: null,") + "sft: {epochs: 1}\n"
    small, large = load(path, text).policies
    assert small.sft is None and large.sft is not None


def test_overrides_reach_sections_lists_and_shared_sections(path: Path) -> None:
    config = load(
        path,
        BASE,
        "run_dir=runs/y",
        "sampling.k=7",
        "sampling.temperature=0.5",
        "policies.0.model=other",
        "policies.1.sampling.top_k=5",
        "rft.learning_rate=1e-4",
        "trainer.deepspeed.fp16.enabled=false",
        "problems.validation={format: word_problems, count: 3, split: validation}",
    )
    assert config.run_dir == "runs/y"
    assert [policy.sampling.k for policy in config.policies] == [7, 4]
    assert config.policies[1].sampling.top_k == 5
    assert config.policies[1].sampling.temperature == 0.5
    assert config.policies[0].model == "other"
    assert config.target.rft.learning_rate == 1e-4
    assert config.trainer.deepspeed == {"fp16": {"enabled": False}}
    assert config.problems.validation is not None and config.problems.validation.count == 3


def test_the_last_override_of_a_field_wins(path: Path) -> None:
    assert load(path, BASE, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("verifer: {}\n", "c.yaml:12: unknown key 'verifer'; did you mean 'verifier'?"),
        ("sampling:\n  kk: 3\n", "c.yaml:13: unknown key 'sampling.kk'; did you mean 'k'?"),
        ("sampling: {zzzz: 3}\n", "c.yaml:12: unknown key 'sampling.zzzz'; valid: k, temperature"),
        ("sampling: {k: 0}\n", "c.yaml:12: sampling.k: Input should be greater than or equal to 1"),
        ("sampling: {k: many}\n", "c.yaml:12: sampling.k: Input should be a valid integer"),
        ("sampling: {temperature: .nan}\n", "c.yaml:12: sampling.temperature: Input should be a f"),
        ("verifier: 3\n", "c.yaml:12: verifier: Input should be a valid dictionary"),
        ("mode: offlin\n", "c.yaml:12: mode: Input should be 'offline'"),
        ("run_dir: again\n", "c.yaml:12: not valid YAML: the key 'run_dir' is given twice"),
        ("x: [1\n", "c.yaml:13: not valid YAML: while parsing a flow sequence"),
        ("x: " + "[" * 600 + "\n", "c.yaml: not valid YAML: nested too deeply"),
        ("x: 2024-13-45\n", "c.yaml: not valid YAML: month must be in 1..12"),
        ("trainer: {row_tokens: 100}\n", "trainer.row_tokens (100) is less than max_length (512)"),
        ("prompt: {template: x}\n", "prompt: template is neither alpaca nor chat and lacks"),
        ("prompt: {system: x}\n", "c.yaml:12: prompt: system needs template: chat"),
        ("num_rounds: 0\n", "c.yaml:12: num_rounds: Input should be greater than or equal to 1"),
        ("rounds: [{}, {}]\n", "c.yaml: rounds has 2 entries, but num_rounds is 1"),
        ("rounds: [{temprature: 1}]\n", "unknown key 'rounds.0.temprature'; did you mean 'temper"),
        ("controls: [all]\n", "c.yaml:12: controls.0: Input should be 'own', 'random' or 'no_ded"),
        ("evaluation: {samples: 4, ks: [8]}\n", "c.yaml:12: evaluation: ks (8) exceeds samples"),
        ("trackers: {mlflow: {uri: x}}\n", "mlflow: unknown key 'uri'; valid: experiment_name"),
        ("rft: {source_weights: {gold: -1}}\n", "rft.source_weights.gold: Input should be greater"),
        ("rft: {source_weights: {lrge: 2}}\n", "source_weights: 'lrge' is neither gold nor a pol"),
        ("rft: {start_from: newest}\n", "rft.start_from: Input should be 'base', 'sft' or 'curr"),
        ("budget: {kind: adaptive}\n", "c.yaml:12: budget.kind: Input should be 'fixed', 'uni"),
        ("budget: {correct: 0}\n", "c.yaml:12: budget.correct: Input should be greater than or eq"),
        ("mode: online\nbudget: {kind: uniform}\n", "budget is for mode offline; online, a pr"),
        ("budget: {kind: uniform}\nverifier: {majority: 0.5}\n", "verifier.majority needs all ro"),
        (
            "budget: {kind: prop2diff}\nverifier: {style: reward, best_of: 2}\n",
            "c.yaml: verifier.best_of needs all rollouts of a problem at once, but budget.kind p",
        ),
        (
            "trainer: {deepspeed: {zero_optimization: 2}}\n",
            "c.yaml: trainer.deepspeed.zero_optimization: expected a mapping, found 2",
        ),
        ("machines: {gpus_node: 8}\n", "unknown key 'machines.gpus_node'; did you mean 'gpus_p"),
    ],
)
def test_a_mistake_is_named_with_its_line(path: Path, added: str, message: str) -> None:
    assert message in refuse(path, BASE + added)


def test_a_mistake_in_a_policy_is_named_with_its_line(path: Path) -> None:
    wrong = BASE.replace("k: 4", "k: -4")
    assert "c.yaml:10: policies.1.sampling.k: Input should be" in refuse(path, wrong)
    same = BASE.replace("large", "small")
    assert "policies have the same name: small, small" in refuse(path, same)
    for taken in ("target", "gold"):
        assert f"{taken!r} is taken" in refuse(path, BASE.replace("large", taken))
    assert "c.yaml:5: policies: List should have at least 1 item" in refuse(
        path,
        BASE[: BASE.index("  - {")].replace("policies:", "policies: []") + "target: {model: m}",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.k", "override 'sampling.k': expected section.field=value"),
        ("=3", "override '=3': expected section.field=value"),
        ("sampling.k=[", "override 'sampling.k=[': value is not valid YAML"),
        ("sampling.k=0", "override sampling.k: sampling.k: Input should be greater"),
        ("sampling={k: 0}", "override sampling: sampling.k: Input should be greater"),
        ("sampling.kk=3", "override sampling.kk: unknown key 'sampling.kk'; did you mean 'k'?"),
        ("policies.2.name=x", "override 'policies.2.name=x': '2' is not one of 0..1"),
        ("policies.name=x", "override 'policies.name=x': 'name' is not one of 0..1"),
        ("policies.\u00b2=x", "'\u00b2' is not one of 0..1"),
        ("policies=[{name: a, model: m}, 1, {name: c}]", "override policies: policies.1: Input"),
        ("policies=[{name: a, model: m}] ", ""),
        ("rft.learning_rate=.inf", "override rft.learning_rate: rft.learning_rate: Input should"),
    ],
)
def test_a_wrong_override_is_named(path: Path, override: str, message: str) -> None:
    if message:
        assert message in refuse(path, BASE, override)
    else:
        assert len(load(path, BASE, override).policies) == 1


def test_an_override_below_a_scalar_item_is_refused(path: Path) -> None:
    message = refuse(path, BASE, "policies.0=x", "policies.0.sampling.k=1")
    assert "policies.0.sampling is not a section" in message


def test_a_problem_set_needs_what_its_format_needs(path: Path) -> None:
    assert "needs path" in refuse(path, BASE, "problems.train.format=gsm8k")
    assert "needs count" in refuse(path, BASE, "problems.train.count=null")


def test_start_from_sft_needs_an_sft(path: Path) -> None:
    message = refuse(path, BASE + "sft: null\n", "rft.start_from=sft")
    assert "the target's RFT starts from its sft, but it has no sft" in message
    restarts = "rounds: [{}, {retrain_policies: true, policies_start_from: sft}]\nnum_rounds: 2\n"
    message = refuse(path, BASE + restarts, "policies.0.sft=null", "policies.1.sft=null")
    assert "policy small is retrained from its sft, but has no sft" in message
    inherited = "rounds: [{}, {retrain_policies: true}]\nnum_rounds: 2\nrft: {start_from: sft}\n"
    message = refuse(path, BASE + inherited, "policies.1.sft=null")
    assert "policy large is retrained from its sft, but has no sft" in message
    assert "sft.start_from: SFT starts from base" in refuse(path, BASE, "sft.start_from=current")


def test_the_last_entry_of_rounds_holds_for_all_after_it(path: Path) -> None:
    config = load(path, BASE + "num_rounds: 4\nrounds: [{temperature: 0.5}, {temperature: 1}]\n")
    assert [config.round(number).temperature for number in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert load(path).round(3).temperature is None


def test_the_control_of_own_rollouts_needs_a_policy_with_the_targets_model(path: Path) -> None:
    own = load(path, BASE, "controls=[own]").own_policy
    assert own is not None and own.name == "small"
    same = "policies=[{name: a, model: m}, {name: b, model: ./m/}]"
    for override in ("target.model=other", "policies=[{name: a, model: m}]", same):
        expected = "controls: own needs a policy with the target's model and one with another"
        assert expected in refuse(
            path, BASE, "controls=[own]", override
        )


@pytest.mark.parametrize("written", ["m", "m/", "./m", "../{here}/m", "{full}/m"])
def test_a_base_is_the_same_however_its_folder_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.chdir(path.parent)
    name = written.format(here=path.parent.name, full=path.parent)
    models = f"{{name: a, model: n}}, {{name: b, model: {name}}}, {{name: c, model: m}}"
    policies = f"policies=[{models}]"
    config = load(path, BASE, policies)
    assert [policy.name for policy in config.own_policies] == ["b", "c"]
    assert config.own_policy is config.policies[1]
    assert load(path, BASE, policies, "target.model=M").own_policy is None


def test_several_rollouts_at_temperature_zero_are_refused(path: Path) -> None:
    message = refuse(path, BASE, "policies.1.sampling.temperature=0")
    assert "policy large samples at temperature 0 in round 0" in message and "k: 1" in message
    rounds = "num_rounds: 2\nrounds: [{}, {temperature: 0}]\n"
    assert "policy small samples at temperature 0 in round 1" in refuse(path, BASE + rounds)
    load(path, BASE, "policies.1.sampling={temperature: 0, k: 1}")


def test_a_stop_text_is_not_empty(path: Path) -> None:
    assert "sampling.stop.0" in refuse(path, BASE, "sampling.stop=['']")


@pytest.mark.parametrize("name", ["train", "validation", "heldout"])
def test_a_further_set_never_takes_the_place_of_another(path: Path, name: str) -> None:
    message = refuse(path, BASE, f"problems.out_of_domain.{name}={{path: x.jsonl}}")
    assert message.endswith(f"out_of_domain: the name {name!r} is taken")


def test_a_set_of_problems_under_a_name_of_the_users_is_checked_like_any_other(path: Path) -> None:
    message = refuse(path, BASE, "problems.out_of_domain.svamp={format: svamp, pth: x}")
    assert "unknown key 'problems.out_of_domain.svamp.pth'; did you mean 'path'?" in message
    message = refuse(path, BASE, "problems.heldout.split=dev")
    assert "split 'dev' is none of train, validation, heldout" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a config is a mapping of sections, found NoneType"),
        (b"- 1\n", "a config is a mapping of sections, found list"),
        (b"\xff\xfe\xff", "cannot read the config: not UTF-8 text"),
        (b"a\x00b", "not valid YAML"),
        (b"!!python/object/apply:os.system [echo]\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name, reason in [("no.yaml", "No such file"), (".", "Is a directory")]:
        with pytest.raises(InputError, match=f"cannot read the config: {reason}"):
            load_config(tmp_path / name)


def test_the_resolved_dump_loads_back_to_an_equal_config(path: Path) -> None:
    text = BASE + "sft: {epochs: 1.5}\nsampling: {k: 3}\nprompt: {template: 'é {prompt}\\n'}\n"
    sizes = {"eps": 1e-8, "name": "1e-8", "day": "2024-01-01", "off": "no"}
    config = load(path, text, "policies.0.sft=null", f"trainer.deepspeed={json.dumps(sizes)}")
    assert config.trainer.deepspeed == sizes
    dumped = dump_config(config)
    assert load(path, dumped) == config
    assert dump_config(load(path, dumped)) == dumped


def test_exponents_without_a_point_are_numbers_in_passed_through_settings(path: Path) -> None:
    config = load(path, BASE + "trackers: {wandb: {a: 1e-8, b: 1E3, c: 2.5e4, d: 1e, e: '1e3'}}\n")
    assert config.trackers.wandb == {"a": 1e-8, "b": 1000.0, "c": 25000.0, "d": "1e", "e": "1e3"}


def test_every_shipped_config_loads() -> None:
    root = Path(__file__).parents[1] / "configs"
    for file in sorted(root.glob("*.yaml")):
        if "problems" in (yaml.safe_load(file.read_text()) or {}):
            load_config(file)


def test_an_engine_argument_that_vllm_lacks_is_refused_where_it_stands(path: Path) -> None:
    told = "vLLM has no such engine argument; did you mean 'max_model_len'?"
    text = BASE + "sampler:\n  vllm:\n    dtype: float32\n    max_modl_len: 64\n"
    line = len(text.splitlines())
    assert refuse(path, text) == f"c.yaml:{line}: sampler.vllm.max_modl_len: {told}"
    name = "  - name: large\n"
    text = BASE.replace(name, f"{name}    sampler: {{vllm: {{max_modl_len: 9}}}}\n")
    own = "policies.1.sampler.vllm.max_modl_len"
    line = text[: text.index("sampler: ")].count("\n") + 1
    assert refuse(path, text) == f"c.yaml:{line}: {own}: {told}"
    override = "sampler.vllm.max_modl_len"
    assert refuse(path, BASE, f"{override}=9") == f"override {override}: {override}: {told}"


def test_every_engine_argument_of_the_installed_vllm_is_known_without_importing_it() -> None:
    names = engine_arguments()
    assert {"max_model_len", "dtype", "enforce_eager", "enable_log_requests"} <= names
    script = (
        "import sys; from rft_ray.engine_arguments import engine_arguments as names; names()\n"
        "assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.engine
@pytest.mark.local
def test_the_names_are_those_that_vllm_has() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert engine_arguments() == {field.name for field in dataclasses.fields(AsyncEngineArgs)}
