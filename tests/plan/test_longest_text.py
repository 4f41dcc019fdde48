"""Lengths that no memory could hold are refused in one line, before any work."""

from types import SimpleNamespace

import pytest

from ctxext.cli.main import main
from ctxext.model.config import SHAPES
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.plan import longest_text
from ctxext.plan.longest_text import check_length, check_samples, text_bytes, usable_bytes


def test_keys_and_values_of_llama2():
    """512 KiB per token in half precision, as the authors of vLLM count it for 7B models."""
    config = SHAPES["llama2-7b"]
    written = text_bytes(config, 4096, dtype="bfloat16", is_written=True)
    assert written == 4096 * 512 * 1024
    assert text_bytes(config, 4096, dtype="float32", is_written=False) == 2 * written // 32


def test_the_longest_text_is_as_long_as_the_memory_allows(monkeypatch):
    config = SHAPES["llama2-7b"]
    monkeypatch.setattr(longest_text, "machine_bytes", lambda: 2**30)

    def check(num_tokens, is_written=True):
        check_length(
            config,
            num_tokens,
            dtype="bfloat16",
            mesh=ONE_DEVICE,
            is_written=is_written,
            option="--seq-len",
        )

    check(2048)
    check(2048 * 32, is_written=False)
    with pytest.raises(ValueError, match="2,049 tokens take 1.0 GiB, and there are 1.0 GiB"):
        check(2049)
    with pytest.raises(ValueError, match="--seq-len: the keys and values of one text of 65,537"):
        check(2048 * 32 + 1, is_written=False)


def test_the_memory_of_accelerators_is_that_of_the_devices_of_the_mesh(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 5 * 2**30, "bytes_in_use": 7})
    monkeypatch.setattr(longest_text.jax, "local_devices", lambda: [device])
    assert usable_bytes(Mesh(fsdp=2, tensor=2)) == 4 * 5 * 2**30


def test_samples_of_ruler_are_refused_before_any_is_made(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(longest_text, "machine_bytes", lambda: 1000 * (5 + 8))
    check_samples(1000, 5)
    for words in (["--seq-len", "1001", "--n", "5"], ["--seq-len", "1000", "--n", "6"]):
        assert main(["ruler", "tiny-llama", *words, "--out", str(tmp_path / "out")]) == 2
        assert "ctxext: --seq-len, --n: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["generate", "tiny-llama", "--prompt", "a", "--max-new-tokens", "2000000000"],
            "--max-new-tokens 2000000000: the keys and values of one text of 2,000,000,00",
        ),
        (
            ["eval", "tiny-llama", "--evals", "passkey", "--seq-len", "256", "2000000000"],
            "--seq-len: the keys and values of one text of 2,000,000,000 tokens take 7,629.4 GiB",
        ),
    ],
)
def test_what_is_too_long_is_one_line_before_any_work(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ctxext: ")]
    assert message in error
    assert error.endswith("give a smaller number, or more devices (--mesh)")
    assert list(tmp_path.iterdir()) == []
