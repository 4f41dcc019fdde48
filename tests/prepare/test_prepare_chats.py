"""`ctxext prepare --chat-template`, compared with what training reads of the same records."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.data import Files, Prepared, make_batch
from ctxext.data.documents import find_files, patterns
from ctxext.data.token_files import check_hashes, read_index
from ctxext.positions import Contiguous
from ctxext.prepare import Recipe, prepare
from ctxext.prepare.sources import find_sources, option
from ctxext.tokenization.answers import training_chat
from ctxext.tokenization.tokenizer import load_tokenizer


def write_chats(path: Path, count: int = 12) -> Path:
    chats = [
        [{"role": "user", "content": f"f{i}?"}, {"role": "assistant", "content": "x " * (1 + i)}]
        for i in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


def test_tokens_and_answers_are_those_of_the_records_themselves(tmp_path, capsys):
    path = write_chats(tmp_path / "a.jsonl")
    tokenizer = load_tokenizer(TINY_LLAMA)
    expected = Files(str(path), chat_template="vicuna").open(tokenizer)
    template = training_chat(tokenizer, "vicuna", "--chat-template").template
    recipe = Recipe(eos=False, held_out=0.0, chat_template=template)
    out = tmp_path / "out"
    prepare([path], out, tokenizer, recipe=recipe, chunk_bytes=300, progress=False)
    corpus = Prepared(str(out)).open(tokenizer)
    assert corpus.is_answer is not None and expected.is_answer is not None
    assert np.array_equal(corpus.ids, expected.ids)
    assert np.array_equal(corpus.offsets, expected.offsets)
    assert corpus.is_answer.astype(bool).tolist() == expected.is_answer.tolist()
    two = (
        make_batch(rows, Contiguous(), seed=0, step=3, batch_size=4, seq_len=200)
        for rows in (corpus, expected)
    )
    for ours, theirs in zip(*two, strict=True):
        assert np.array_equal(ours, theirs)
    # The command does the same, and says it.
    argv = ["prepare", str(path), "--out", str(tmp_path / "b"), "--tokenizer", str(TINY_LLAMA)]
    argv += ["--chat-template", "vicuna", "--held-out", "0"]
    assert main(argv) == 0
    num_answers = int(expected.is_answer.sum())
    said = f"{num_answers:,} of the {len(expected.ids):,} tokens to train on are of answers"
    assert said in capsys.readouterr().out
    for name in ("train.tokens", "train.offsets", "train.answers"):
        assert (tmp_path / "b" / name).read_bytes() == (out / name).read_bytes()
    assert main([*argv[:-3], "alpaca", *argv[-2:]]) == 2
    assert "was started with other chat-template-sha256" in capsys.readouterr().err
    assert main([*argv, "--no-eos"]) == 2
    assert "--bos and --eos do not go with --chat-template" in capsys.readouterr().err
    with pytest.raises(ValueError, match="whose chat template `ctxext prepare` was given: leave "):
        Files(str(out), chat_template="vicuna").open(tokenizer)
    # A file of answers that was changed or cut is named.
    marks = (out / "train.answers").read_bytes()
    (out / "train.answers").write_bytes(bytes(len(marks)))
    with pytest.raises(ValueError, match="train.answers is corrupt: its sha256 is not the index's"):
        check_hashes(out, read_index(out))
    (out / "train.answers").write_bytes(marks[:-1])
    with pytest.raises(ValueError, match=r"train.answers has .* bytes, its index says"):
        read_index(out)


def test_records_that_cannot_be_used_are_listed(tmp_path, capsys):
    path = write_chats(tmp_path / "a.jsonl", 8)
    with path.open("a") as file:
        file.write('{"messages": [{"role": "tool", "content": ""}]}\n')
        turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": ""}]
        file.write(json.dumps({"messages": turns}) + "\n")
        file.write('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", ')
        file.write('"content": "b"}, {"role": "system", "content": ""}, ')
        file.write('{"role": "assistant", "content": "b"}]}\n')
    argv = ["prepare", str(path), "--out", str(tmp_path / "out"), "--tokenizer", str(TINY_LLAMA)]
    argv += ["--chat-template", "vicuna", "--max-rejects", "0.3", "--held-out", "0"]
    assert main(argv) == 0
    assert "3 rejected" in capsys.readouterr().out
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [reject["line"] for reject in rejects] == [9, 10, 11]
    for reject, reason in zip(
        rejects,
        ("turn 1 is of the role 'tool'", "it begins with an answer", "the chat template cannot be"),
        strict=True,
    ):
        assert reject["reason"].startswith(reason)
    assert read_index(tmp_path / "out")["splits"]["train"]["documents"] == 8
    assert main([*argv, "--dry-run"]) == 0
    assert "; about 9 documents, " in capsys.readouterr().out


def test_a_mixed_directory_says_which_files_can_be_prepared(tmp_path):
    root = tmp_path / "d"
    (root / "more").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "more/c.md"):
        (root / name).write_text("text")
    write_chats(root / "chats.jsonl")
    (root / "texts.jsonl").write_text('{"text": "a"}\n')

    def advice(*, is_chat: bool) -> str:
        with pytest.raises(ValueError, match="can be read so") as error:
            find_sources([root], option("text", is_chat=is_chat), max_rejects=0.0)
        return str(error.value)

    assert advice(is_chat=False) == (
        f'{root / "chats.jsonl"}, line 1: no key "text": this is a chat or instruction record; to '
        f"train on its answers, give --chat-template own; 4 of the 5 files of {root} can be read "
        f"so: prepare {root}/*.txt {root}/more/*.md {root / 'texts.jsonl'}, and the others by "
        "themselves"
    )
    assert advice(is_chat=True).endswith(
        f"1 of the 5 files of {root} can be read so: prepare {root / 'chats.jsonl'}, and the "
        "others by themselves"
    )
    # A pattern would take what is passed over in a directory.
    (root / "more" / "README_en.md").write_text("about")
    assert f"prepare {root}/*.txt {root}/more/c.md {root}" in advice(is_chat=False)
    (root / "texts.jsonl").unlink()
    assert f"prepare {root}/*.jsonl, and" in advice(is_chat=True)
    names = ["a.txt", "b.md", "c.rst", "d.tex"]
    assert patterns(Path("d"), names, []) == "d/*.txt d/*.md d/*.rst and 1 more"


def test_what_is_read_is_said_and_what_a_pattern_took_by_accident(tmp_path, capsys):
    for name in ("README.md", "a.md", "b.md", "c.txt"):
        (tmp_path / name).write_text("text")

    def said(*roots: Path) -> list[str]:
        find_sources(roots, option("text"), max_rejects=0.0)
        return capsys.readouterr().err.splitlines()

    assert said(tmp_path) == [
        f"prepare: {tmp_path}: not read are README.md",
        "prepare: reads a.md, b.md, c.txt",
    ]
    assert said(*sorted(tmp_path.glob("*"))) == [
        "prepare: reads 4 files (.md: 3, .txt: 1), the first README.md, a.md, b.md",
        f"prepare: {tmp_path}/README.md read because named, as by a pattern such as *.md; the "
        "directory itself, as SRC, is read without such files",
    ]
    find_sources([tmp_path], option("text"), max_rejects=0.0, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (("train.jsonl", "test.jsonl"), "train*"),
        (("data/train-0.txt", "data/dev-0.txt"), "data/train*"),
        (("wiki.Train.txt", "wiki.valid.txt"), "*Train*"),
        (("train/0.txt", "test/0.txt"), "train"),
        (("val/0.txt", "test/0.txt"), "test"),
    ],
)
def test_a_directory_of_several_splits_names_one(names, pattern, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    said = re.escape(f"the files or the directory of one, such as {tmp_path / pattern}")
    with pytest.raises(ValueError, match=f"{said}$"):
        find_files(tmp_path)
    if pattern == "train":
        assert find_files(tmp_path / pattern).files
    else:
        assert any(path.name for path in tmp_path.glob(pattern))
