"""Publishing an export: what is refused before anything is sent, and what arrives at a stand-in."""

import hashlib
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, constants, utils

from ctxext.cli.main import main
from ctxext.export import export
from ctxext.methods import Yarn
from ctxext.model.lm import LM
from ctxext.publish import Publication
from ctxext.publish.contents import files_of
from support import hub_server
from support.hub_server import TOKEN, Hub
from support.llamas import TINY, random_params, tokenizer

# huggingface_hub passes a file to httpx in a way that httpx is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "someone/tiny-yarn"
CARD = {"base model": "owner/tiny", "license": "apache-2.0", "method": "yarn"}


def model() -> LM:
    return LM(TINY, random_params(), tokenizer(), scaling=Yarn(4.0))


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of two shards, with what a proof records; test_recorded.py publishes a real one."""
    out = tmp_path_factory.mktemp("export") / "m"
    export(model(), out, card=CARD, max_shard_size=150_000)
    record(out / "proof.json", "hf", [path for path in out.iterdir() if path.suffix != ".md"])
    return out


def record(proof: Path, format: str, files: list[Path]) -> None:
    """Write a proof that the files are equal to the model."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    facts = {"equal": True, "compared_with_model": True, "against": "the model that was exported"}
    proof.write_text(json.dumps({**facts, "format": format, "files": digests}))


@pytest.fixture
def copy(proven: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(proven, tmp_path / "m"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as it is for all other tests
    # Xet, the hub's other storage, has a protocol of its own in a compiled library.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    utils.disable_progress_bars()
    with hub_server.serving() as hub:
        yield hub
    utils.enable_progress_bars()


def publish(out: Path, hub: Hub, *options: str) -> int:
    return main(["publish", str(out), REPO, "--endpoint", hub.url, *options])


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_arrives_is_the_export_to_the_byte(
    proven: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(proven, hub) == 0
    out, errors = capsys.readouterr()
    repository = hub.repositories[REPO]
    arrived = {name: data for name, data in repository.files.items() if name != ".gitattributes"}
    assert arrived == files(proven)
    assert len([name for name in arrived if name.endswith(".safetensors")]) == 2
    assert repository.private and repository.commits == 2
    assert out == f"published: {hub.url}/{REPO}/commit/{repository.sha}\n"
    assert hub.tokens == {TOKEN}
    assert TOKEN not in out + errors


def test_everybody_sees_it_only_on_request(copy: Path, hub: Hub, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert main(["publish", str(copy), REPO, "--public", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not hub.repositories[REPO].private and said["private"] is False
    assert said["files"] == {name: len(data) for name, data in files(copy).items()}
    sent = len(hub.sent("POST"))
    # What is public does not get more files unasked.
    assert main(["publish", str(copy), REPO]) == 2
    assert f"{REPO} at {hub.url} is there and is public" in capsys.readouterr().err
    assert len(hub.sent("POST")) == sent


def test_a_dry_run_lists_everything_and_sends_nothing(copy: Path, hub: Hub, capsys) -> None:
    (copy / ".env").write_text("SECRET=1")
    assert publish(copy, hub, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert hub.requests == []
    assert lines[0] == f"{REPO} (private) at {hub.url}"
    listed = dict(re.findall(r"^ +([\d,]+)  (\S+)$", "\n".join(lines), re.MULTILINE))
    assert {name: int(size.replace(",", "")) for size, name in listed.items()} == {
        name: len(data) for name, data in files(copy).items() if name != ".env"
    }
    assert "left out, as hidden: .env" in lines
    begin = lines.index("the card begins with:")
    matter = yaml.safe_load("\n".join(line[2:] for line in lines[begin + 1 :] if line[:1] == " "))
    assert (matter["base_model"], matter["license"]) == ("owner/tiny", "apache-2.0")
    assert f"{copy / 'proof.json'}: EQUAL to the model that was exported" in lines[-1]
    # The library that uploads is not needed for it.
    assert main(["publish", str(copy), REPO, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["endpoint"] == "https://huggingface.co" and said["left_out"] == [".env"]


def unproven(out: Path) -> None:
    (out / "proof.json").unlink()


def not_equal(out: Path) -> None:
    edit(out / "proof.json", equal=False)


def alone(out: Path) -> None:
    edit(out / "proof.json", compared_with_model=False)


def without_digests(out: Path) -> None:
    edit(out / "proof.json", files=None)


def changed(out: Path) -> None:
    edit(out / "config.json", rms_norm_eps=2e-5)


def missing(out: Path) -> None:
    (out / "model-00002-of-00002.safetensors").unlink()


def stray(out: Path) -> None:
    (out / "notes.txt").write_text("a password")


def stray_directory(out: Path) -> None:
    (out / "old").mkdir()


def stray_weights(out: Path) -> None:
    (out / "model-00003-of-00003.safetensors").write_bytes(b"")


def stray_in_the_proof(out: Path) -> None:
    """It lay there when the export was proven."""
    (out / "notes.txt").write_text("a password")
    proof = out / "proof.json"
    edit(proof, files=json.loads(proof.read_text())["files"] | {"notes.txt": "0" * 64})


def link(out: Path) -> None:
    """The same contents, in another place."""
    path = out.parent / "elsewhere.json"
    (out / "config.json").rename(path)
    (out / "config.json").symlink_to(path)


def linked_card(out: Path) -> None:
    path = out.parent / "card.md"
    (out / "README.md").rename(path)
    (out / "README.md").symlink_to(path)


def no_card(out: Path) -> None:
    (out / "README.md").unlink()


def card_without(key: str, value: str = ""):
    def change(out: Path) -> None:
        path = out / "README.md"
        text = re.sub(
            rf"^{key}: .*\n", f"{key}: {value}\n" if value else "", path.read_text(), flags=re.M
        )
        path.write_text(text)

    change.__name__ = f"{key} {value}".strip()
    return change


def token_in_the_card(out: Path) -> None:
    with (out / "README.md").open("a") as file:
        file.write(f"load it with {TOKEN}\n")


@pytest.mark.parametrize(
    "change, said",
    [
        (unproven, "was not proven, as there is no proof.json: ctxext prove"),
        (not_equal, "is NOT EQUAL to the model that was exported"),
        (alone, "compares the files with themselves only"),
        (without_digests, "is not a proof with digests of the files"),
        (changed, "proves: config.json (changed)"),
        (missing, "proves: model-00002-of-00002.safetensors (missing)"),
        (stray, "holds notes.txt, which an export in the hf format does not write"),
        (stray_in_the_proof, "holds notes.txt, which"),
        (stray_directory, "holds old/, which"),
        (stray_weights, "proves: model-00003-of-00003.safetensors (new)"),
        (link, "config.json is a link to"),
        (linked_card, "README.md is a link to"),
        (no_card, "has no model card"),
        (card_without("license"), "add, for example, license: llama2 (the"),
        (card_without("base_model"), "add, for example, base_model: meta-llama/Llama-2-7b-hf (the"),
        (card_without("license", "Apache 2"), "license 'Apache 2' is no name"),
        (token_in_the_card, "holds what looks like a token of the hub"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_is_not_ready_is_refused_before_anything_is_sent(
    copy: Path, hub: Hub, change, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy)
    assert publish(copy, hub) == 2
    out, errors = capsys.readouterr()
    assert said in errors and errors.count("\n") == 1, errors
    assert out == "" and TOKEN not in errors
    assert hub.requests == []


def test_prose_may_be_completed_after_the_proof(copy: Path) -> None:
    """The license of the base, which some licenses want with every copy, goes along."""
    (copy / "LICENSE").write_text("terms")
    path = copy / "README.md"
    path.write_text(path.read_text().replace("license: apache-2.0", "license: mit"))
    publication = Publication.of(copy, REPO)
    assert publication.card.license == "mit"
    assert publication.files.keys() == files(copy).keys()
    path.write_text(f"{path.read_text()}\nfrom {Path.home()}/secret-project\n")
    (note,) = Publication.of(copy, REPO).notes
    assert note.startswith(f"{path} names a place in your home directory")
    line = (
        "- license: not stated by the files of the base; its terms hold for what is derived from it"
    )
    path.write_text(re.sub("^- license: .*", line, path.read_text(), flags=re.MULTILINE))
    assert Publication.of(copy, REPO).notes[1:] == (
        f"{path} names the license mit at its beginning, and its list still says that none is "
        "stated: remove that line",
    )


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "../a", "a/..", "owner/näme"])
def test_a_repository_has_an_owner_and_a_name(proven: Path, repo: str) -> None:
    with pytest.raises(ValueError, match="is no name of a repository; give OWNER/NAME"):
        Publication.of(proven, repo)


def test_a_run_is_not_its_export(proven: Path, tmp_path: Path) -> None:
    shutil.copytree(proven, tmp_path / "run" / "export")
    (tmp_path / "run" / "base").mkdir()
    (tmp_path / "run" / "base" / "model.json").touch()
    with pytest.raises(ValueError, match="is a run; publish what it exported to .*run/export"):
        Publication.of(tmp_path / "run", REPO)


def test_what_has_arrived_before_an_error_is_not_sent_again(copy: Path, hub: Hub, capsys) -> None:
    hub.fails["/commit/"] = (403, f"no writing with {TOKEN}")
    assert publish(copy, hub) == 2
    errors = capsys.readouterr().err.splitlines()[-1]
    assert errors.startswith(f"ctxext: {REPO} at {hub.url}: HTTP 403, no writing with ***; nothing")
    assert "weights that have arrived are not sent again: give the same command again" in errors
    assert "log in with hf auth login, or set HF_TOKEN" in errors
    assert len(hub.sent("PUT")) == 2
    assert hub.repositories[REPO].files.keys() == {".gitattributes"}
    hub.fails.clear()
    assert publish(copy, hub) == 0
    assert len(hub.sent("PUT")) == 2
    assert hub.repositories[REPO].files.items() >= files(copy).items()
    capsys.readouterr()
    assert publish(copy, hub) == 0
    assert capsys.readouterr().out.startswith("there is nothing new to publish: ")
    assert hub.repositories[REPO].commits == 2


def test_a_server_that_is_not_there_or_refuses_is_one_line(copy: Path, hub: Hub, capsys) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert main(["publish", str(copy), REPO, "--endpoint", url]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ctxext: {REPO} at {url}: ")
    assert last.endswith("; nothing was changed there; the export is as it was")
    hub.fails["/repos/create"] = (401, "Invalid username or password.")
    assert publish(copy, hub) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "HTTP 401, Invalid username or password.; no repository was created" in last
    assert hub.repositories == {}
    for url in ("ftp://x", f"http://me:{TOKEN}@127.0.0.1:1", "127.0.0.1:8080"):
        assert main(["publish", str(copy), REPO, "--endpoint", url]) == 2
        errors = capsys.readouterr().err
        assert "the endpoint must be an address" in errors and TOKEN not in errors


def test_a_server_without_the_storage_of_the_hub_is_told(copy: Path, hub: Hub, monkeypatch, capsys):
    """The message of hf_xet 1.8 about the stand-in, which has no such address."""

    def no_xet(*_: object, **__: object) -> None:
        raise RuntimeError(f"404 Not Found, domain: {hub.url}/api/models/x/xet-write-token/main")

    monkeypatch.setattr(HfApi, "create_commit", no_xet)
    assert publish(copy, hub) == 2
    assert "has no Xet, the hub's storage, set HF_HUB_DISABLE_XET=1" in capsys.readouterr().err


def test_a_repository_with_other_weights_is_left_alone(copy: Path, hub: Hub, capsys) -> None:
    repository = hub_server.Repository(private=True)
    repository.files |= {"model.safetensors": b"old", "notes.md": b"mine"}
    hub.repositories[REPO] = repository
    assert publish(copy, hub) == 2
    assert "holds model.safetensors, which this export does not replace" in capsys.readouterr().err
    assert repository.commits == 1
    del repository.files["model.safetensors"]
    assert publish(copy, hub) == 0
    assert repository.files["notes.md"] == b"mine"


def test_weights_that_arrive_otherwise_are_named(copy: Path, hub: Hub, capsys) -> None:
    hub.alter = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    assert publish(copy, hub) == 2
    errors = capsys.readouterr().err
    names = "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"
    assert f"has not received {names} as proven" in errors


def test_without_the_extra_it_is_named(copy: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["publish", str(copy), REPO, "--dry-run"]) == 0
    assert main(["publish", str(copy), REPO]) == 2
    assert "pip install 'ctxext[hub]'" in capsys.readouterr().err


def test_every_format_writes_only_what_may_be_published(proven: Path, tmp_path: Path) -> None:
    """A new file of an export needs an entry in the list; a GGUF file needs a card by name."""
    export(model(), tmp_path / "meta", to="meta", shards=2)
    written, hidden = files_of(tmp_path / "meta", "meta")
    assert written.keys() == files(tmp_path / "meta").keys() and hidden == []
    out = tmp_path / "model.gguf"
    out.write_bytes(b"GGUF")
    record(tmp_path / "model.proof.json", "gguf", [out])
    with pytest.raises(ValueError, match="has no model card; write one, .* --card FILE"):
        Publication.of(out, REPO)
    publication = Publication.of(out, REPO, card=proven / "README.md")
    assert publication.files == {
        "README.md": proven / "README.md",
        "model.gguf": out,
        "model.proof.json": tmp_path / "model.proof.json",
    }


def test_an_adapter_is_published_for_a_base_that_others_find(tmp_path: Path) -> None:
    """Its proof names the files of the base too, which stay where they are."""
    out = tmp_path / "adapter"
    out.mkdir()
    (out / "adapter_model.safetensors").write_bytes(b"weights")
    (out / "README.md").write_text("---\nlicense: mit\nbase_model: owner/base\n---\n")
    config = out / "adapter_config.json"

    def publication(base: str) -> Publication:
        config.write_text(json.dumps({"base_model_name_or_path": base}))
        record(out / "proof.json", "peft", [config, out / "adapter_model.safetensors"])
        proven = json.loads((out / "proof.json").read_text())["files"]
        edit(out / "proof.json", files=proven | {"base/config.json": "0" * 64})
        return Publication.of(out, REPO)

    with pytest.raises(ValueError, match="names the base '/opt/me/base', which nobody else can"):
        publication("/opt/me/base")
    assert publication("owner/base").files.keys() == files(out).keys()
