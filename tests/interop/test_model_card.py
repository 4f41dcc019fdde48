"""The card of an export: what it says of its base, and the commands that serve it."""

import json
import shlex

import pytest
import yaml

from ctxext.interop import hf
from ctxext.interop.front_matter import read_about
from ctxext.interop.model_card import model_card, public_command, public_name
from ctxext.interop.ropespec import rope_to_config
from ctxext.methods import Linear, Llama3, RevisedYarn, Yarn
from ctxext.model.config import LlamaConfig
from ctxext.rope import Unscaled
from support import families

CONFIG = LlamaConfig(256, 64, 96, 2, 4, 2, 16, 1e-5, 1e4, 64)


def card(scaling, facts=None, *, window=256, config=CONFIG) -> str:
    settings = hf.config_json(config, scaling, seq_len=window, dtype="bfloat16")
    return model_card(settings, config, {"method": "mine", **(facts or {})})


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def commands(text: str) -> list[list[str]]:
    section = text.split("## Serve")[1].split("## Proof")[0]
    return [
        shlex.split(line)
        for block in section.split("```")[1::2]
        for line in block.strip().splitlines()
    ]


def test_the_license_of_the_base_goes_to_the_front_matter_and_to_the_list():
    text = card(Yarn(4.0), {"license": "apache-2.0", "base model": "owner/model-1b"})
    assert front_matter(text)["license"] == "apache-2.0"
    assert front_matter(text)["base_model"] == "owner/model-1b"
    assert "- license: apache-2.0\n" in text
    local = card(Yarn(4.0), {"base model": "my-base"})
    assert front_matter(local).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "- base model: my-base\n" in local
    assert "- license: not stated by the files of the base" in local


def test_the_base_of_a_package_has_its_name_of_the_hub(tmp_path, monkeypatch):
    """Which is what the hub indexes, and `publish` asks for."""
    monkeypatch.chdir(tmp_path)
    assert public_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front_matter(card(Yarn(4.0), {"base model": public_name("smollm2")}))["base_model"]
    (tmp_path / "smollm2").mkdir()
    assert public_name("smollm2") == "smollm2"


@pytest.mark.parametrize("text", ["a\nevil: 1", "x: [1", "Apache 2", "---", "a" * 200])
def test_a_license_that_is_no_name_changes_no_front_matter(text):
    plain = front_matter(card(Yarn(4.0)))
    assert front_matter(card(Yarn(4.0), {"license": text, "base model": text})) == plain


@pytest.mark.parametrize("scaling", [Yarn(4.0), Linear(4.0), Llama3(4.0)], ids=str)
def test_the_commands_carry_the_scaling_of_the_files(scaling):
    """--hf-overrides and --json-model-override-args say what config.json says."""
    window = 256
    (vllm, sglang, gguf, server, vllm_base, sglang_base) = commands(card(scaling, window=window))
    assert vllm == ["vllm", "serve", "DIRECTORY", "--max-model-len", "256"]
    assert sglang[-2:] == ["--context-length", "256"]
    assert gguf[:2] == ["ctxext", "export"]
    assert server[-2:] == ["--ctx-size", "256"]
    written = rope_to_config(scaling, CONFIG, window)
    overrides = json.loads(vllm_base[vllm_base.index("--hf-overrides") + 1])
    assert overrides == {
        "rope_parameters": written["rope_parameters"],
        "max_position_embeddings": 256,
    }
    old = json.loads(sglang_base[sglang_base.index("--json-model-override-args") + 1])
    assert old == {"rope_scaling": written["rope_scaling"], "max_position_embeddings": 256}


def test_what_no_command_line_can_carry_is_left_out():
    """Lists of divisors, and no scaling at all: the files alone say it."""
    as_divisors = card(RevisedYarn(4.0))
    assert '"rope_type": "longrope"' in as_divisors
    assert "long_factor" not in as_divisors
    assert len(commands(as_divisors)) == 4
    assert len(commands(card(Unscaled(), window=64))) == 4


@pytest.mark.parametrize(
    ("name", "scaling", "fits"),
    [
        ("mistral-sw4", Unscaled(), False),
        ("qwen3", Yarn(4.0), True),
        ("qwen3", Llama3(4.0), False),
        ("mpt-h6", Unscaled(), True),
    ],
)
def test_gguf_is_offered_where_the_model_can_be_written_so(name, scaling, fits):
    text = card(scaling, config=families.parts_config(name))
    assert any("--to" in command for command in commands(text)) == fits


def test_the_front_matter_of_a_base_is_read(tmp_path):
    readme = tmp_path / "README.md"
    assert read_about(tmp_path) == {}
    readme.write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\nfoo: 1\n---\n# Model\n")
    assert read_about(tmp_path) == {"license": "apache-2.0", "language": "en, fr"}
    for damaged in ("---\nlicense: [a\n---\n", "license: mit\n", "---\n- a\n---\n", "---\nlicense"):
        readme.write_text(damaged)
        assert read_about(tmp_path) == {}
    nested = "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: *b\nlanguage: {en: 1}\n---\n"
    readme.write_text(nested)
    assert read_about(tmp_path) == {}
    readme.write_bytes(b"---\nlicense: mit\n---\n" + b"\xff" * 100)
    assert read_about(tmp_path) == {"license": "mit"}
    readme.write_text("---\nlicense: !!python/object/apply:os.system ['echo']\n---\n")
    assert read_about(tmp_path) == {}


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("ctxext run a.py --seed 3", "ctxext run a.py --seed 3"),
        (
            "ctxext run /opt/me/a.py --init ~/base --data.path=../x/t",
            "ctxext run a.py --init base --data.path=t",
        ),
        ("ctxext run mine.py --method /tmp/m.py:Mine", "ctxext run mine.py --method m.py:Mine"),
        ("ctxext run x; rm '/a b/c d'", "ctxext run 'x;' rm 'c d'"),
        ("an open 'quote", ""),
        (None, ""),
        (["ctxext"], ""),
    ],
)
def test_a_command_on_a_card_tells_no_private_path(recorded, shown):
    assert public_command(recorded) == shown


def test_a_card_names_the_layers_that_do_not_rotate():
    smollm3 = card(Yarn(4.0), config=families.parts_config("smollm3"))
    assert '- rope_parameters: `{"rope_type": "yarn"' in smollm3
    assert "\n- positions: theta 10000, 2 of 4 layers do not rotate (NoPE)\n" in smollm3
    mpt = card(Unscaled(), window=64, config=families.parts_config("mpt-h6"))
    assert "\n- positions: ALiBi\n" in mpt and "rope_parameters" not in mpt
    assert "- positions:" not in card(Yarn(4.0))
