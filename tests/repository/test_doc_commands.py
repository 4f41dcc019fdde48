"""Every command in the README, CONTRIBUTING and docs/ is run as written, on stand-ins, or named
with the reason."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ctxext.data.sources.stdlib import stdlib_documents
from ctxext.export import convert
from ctxext.plan.compile_request import is_compiler_installed
from support.write_llama2 import write_llama2

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
WINDOW = 256
VOCAB = 2000
YARN_7B = "experiments/llama2_7b_yarn_8k.py"
NOT_RUN = {
    "pip install": "needs a package index",
    "git ": "needs a network",
    "make ": "sets up environments and runs these tests",
    "srun ": "needs a Slurm cluster of four machines",
    "ctxext ruler ": "needs the extra ruler",
    "ctxext generate smollm2 ": "needs a package; tests/interop/test_smollm2.py has it",
    "ctxext import smollm2 ": "the same",
    "ctxext eval DIR --evals longbench ": "needs LongBench; test_published_samples.py has its form",
    "ctxext publish ": "needs an account on the hub; tests/publish has a stand-in",
    "ctxext harness ": "needs the extra lm-eval, and downloads its tasks",
    "apt-get ": "needs Debian's packages",
    "python experiments/texts/": "needs a package of Debian; test_study.py has its form",
    "ctxext sweep experiments/smollm2_study.py ": "takes days; test_study.py has a smaller scale",
    "ctxext run experiments/smollm2_study.py ": "needs the texts; the same",
    "python experiments/tables/smollm2_study.py ": "needs what those left; the same",
    "ctxext report runs/study ": "the same",
    "tar ": "the same",
    **{
        f"ctxext plan {YARN_7B} --topology {topology}": f"needs the compiler of {platform}s"
        for topology, platform in {"v5e:4x4": "tpu", "h100:8 --compile": "gpu"}.items()
        if not is_compiler_installed(platform)
    },
}
"""Commands that are not run, by how they begin, and why."""
SHORTER = {
    r"ctxext (run|train) (?!.*--dry-run)(.*)": r"ctxext \1 \2 --train.steps 2",
    r"ctxext train (.*)": r"ctxext train \1 --train.seq-len 128",
    rf"run {YARN_7B} (.*)": rf"run {YARN_7B} \1 --train.accumulate 1",
    r"eval ((?!.*--seq-len).*)": rf"eval \1 --seq-len {WINDOW} {2 * WINDOW}",
    r"--seq-len 4096 8192 --budget full": "--seq-len 1024 2048",
    r"demo.py(?!.*--init)": "demo.py --init small-base",
    r"export tiny-llama": "export small-base",  # what the line before trained
}
"""Replacements that make a command short enough for two cores, applied in order."""
RUN = [
    "config.json",
    "provenance.json",
    "metrics.jsonl",
    "records.jsonl",
    "checkpoints",
    "base/model.json",
    "export/config.json",
    "export/README.md",
    "export/proof.json",
    "report.html",
]
LEAVES = {
    "run experiments/llama2_7b_yarn_8k.py": [f"runs/llama2-7b-yarn-8k-*/{name}" for name in RUN],
    "run experiments/extend.py": [
        f"runs/mine/{name}" for name in (*RUN, "wandb/offline-run-*/*.wandb")
    ],
    "prepare my-long-texts": ["my-tokens/index.json"],
    "prepare my-proof-pile": ["proof-pile/index.json"],
    "prepare my-chats.jsonl": ["my-chats/train.answers"],
    "dashboard": ["dashboard.json"],
    "eval meta-llama-dir": ["runs/eval-meta-llama-dir/records.jsonl"],
    "eval DIR --shard": ["shared/records.jsonl"],
    "export runs/mine": ["llama2-8k.gguf"],
    "export runs/my-lora-run": ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
    "export tiny-llama": ["scaled/config.json", "scaled/model.safetensors"],
    "run experiments/demo.py --method lora": [f"runs/my-lora-run/{name}" for name in RUN],
    "run experiments/demo.py --method mine.py": [
        "runs/demo-*/export/proof.json",
        "runs/demo-*/report.html",
    ],
    "rope mine.py:HalfPI": ["waves.html"],
}
"""Files that a command must leave, by how the command begins."""
FIRST = ("ctxext", "git", "make", "pip", "srun", "apt-get", "python experiments/", "tar")


def blocks() -> dict[str, list[str]]:
    """Commands of every code block without a language, by the file and line where it begins."""
    lines_of = {}
    for name in PAGES:
        text = (ROOT / name).read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if not match[1]:
                lines = [re.split(r"\s+# ", line)[0] for line in match[2].splitlines()]
                lines_of[f"{name}:{text.count(chr(10), 0, match.start()) + 1}"] = lines
    return lines_of


def reason(command: str) -> str:
    """The reason why a command is not run; empty if it is."""
    return "".join(why for start, why in NOT_RUN.items() if command.startswith(start))


BLOCKS = blocks()


def test_blocks_hold_commands_and_every_exception_matches_one() -> None:
    commands = [command for block in BLOCKS.values() for command in block]
    assert [command for command in commands if not command.startswith(FIRST)] == []
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in commands), (
            f"{start}: no command begins like this"
        )
    shown = [command.removeprefix("ctxext ") for command in commands]
    for start in LEAVES:
        assert any(command.startswith(start) for command in shown), (
            f"{start}: no command begins like this"
        )


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stand-ins for the names in the docs: checkpoints like Llama 2, texts, questions, a
    method."""
    place = tmp_path_factory.mktemp("stand-ins")
    for name in ("meta-llama-dir", "small-base"):
        write_llama2(place / name, window=WINDOW, vocab=VOCAB)
    convert(place / "small-base", place / "FILE.gguf", to="gguf")
    (place / "DIR").symlink_to("meta-llama-dir")
    (place / "EVALUATOR").symlink_to("meta-llama-dir")
    texts = [document.text for document in stdlib_documents("train")]
    for name, several in {
        "my-long-texts": texts[:8],
        "my-texts": texts[8:16],
        "TEXT": texts[:8],
    }.items():
        (place / name).mkdir()
        for number, text in enumerate(several):
            (place / name / f"{number}.txt").write_text(text)
    (place / "my-proof-pile").mkdir()
    whole = "".join(texts)
    for number in range(10):  # about 3 characters a token
        (place / "my-proof-pile" / f"{number}.txt").write_text(whole[number * 400_000 :][:500_000])
    (place / "book.txt").write_text(texts[0][:300])
    paragraphs = [
        {
            "context": f"The capital of country {i} is town {i}.",
            "qas": [
                {
                    "id": str(i),
                    "question": f"What is the capital of country {i}?",
                    "is_impossible": False,
                    "answers": [{"text": f"town {i}", "answer_start": 0}],
                }
            ],
        }
        for i in range(40)
    ]
    (place / "LongAlpaca-12k.json").write_text(
        json.dumps([{"instruction": text[:200], "output": text[200:300]} for text in texts])
    )
    (place / "my-chats.jsonl").write_text(
        json.dumps(
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
        )
    )
    (place / "dev-v2.0.json").write_text(
        json.dumps({"data": [{"title": "capitals", "paragraphs": paragraphs}]})
    )
    for page in ("README.md", "docs/own-methods.md"):
        text = (ROOT / page).read_text()
        for name, source in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL):
            (place / name).write_text(source)
    (place / "experiments").symlink_to(ROOT / "experiments")
    program = place / "bin" / "ctxext"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ctxext "$@"\n')
    program.chmod(0o755)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [name for name, block in BLOCKS.items() if not all(map(reason, block))]
)
def test_the_commands_of_a_block(where: str, stand_ins: Path, tmp_path: Path) -> None:
    """Run in page order in one directory, each command succeeds and leaves the files it
    promises."""
    for path in stand_ins.iterdir():
        (tmp_path / path.name).symlink_to(path)
    environment = {
        **os.environ,
        "PATH": f"{stand_ins / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=16",
        "WANDB_MODE": "offline",
    }
    for command in BLOCKS[where]:
        if reason(command):
            continue
        short = command
        for pattern, replacement in SHORTER.items():
            short = re.sub(pattern, replacement, short)
        done = subprocess.run(
            ["bash", "-c", short], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{short}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        print(f"$ {short}\n{done.stdout}\n{done.stderr[-500:]}")
        for start, names in LEAVES.items():
            for name in (
                names
                if command.startswith(f"ctxext {start}") and "--dry-run" not in command
                else ()
            ):
                assert list(tmp_path.glob(name)), f"{short} did not write {name}"
