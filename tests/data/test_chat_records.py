"""Chat and instruction records as training data: what is read, packed and trained of them."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import ctxext
from ctxext import requirements
from ctxext.assets import TINY_LLAMA
from ctxext.attention import Causal
from ctxext.cli.main import main
from ctxext.data import Corpus, Files, Mix, Short, Split, Upsampled, make_batch
from ctxext.data.packing import Packing, pack
from ctxext.model.loss import batch_loss
from ctxext.positions import Contiguous
from ctxext.tokenization.tokenizer import load_tokenizer
from support.tiny_train import tiny_experiment

USER, ASSISTANT, SYSTEM = (
    lambda content, role=role: {"role": role, "content": content}
    for role in ("user", "assistant", "system")
)
CHAT = [SYSTEM("Be brief."), USER("import what?"), ASSISTANT("os"), USER("é?"), ASSISTANT("sys")]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "import what?"},
    {"from": "gpt", "value": "os"},
    {"from": "human", "value": "é?"},
    {"from": "gpt", "value": "sys"},
]
ALPACA = {"instruction": "Add", "input": "1, 2", "output": "3"}
ALPACA_CHAT = [
    {"role": "user", "content": "Add\n\n1, 2", "instruction": "Add", "input": "1, 2"},
    ASSISTANT("3"),
]
SHORT_ALPACA = {"instruction": "Hi", "output": "Ho"}
SHORT_ALPACA_CHAT = [
    {"role": "user", "content": "Hi", "instruction": "Hi", "input": ""},
    ASSISTANT("Ho"),
]


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def conversations(path: Path | str, field: str = "text") -> list:
    return [json.loads(text) for text in Files(str(path), field, chat_template="alpaca").texts()]


def test_every_form_of_record_is_the_same_conversation(tmp_path):
    records = [{"messages": CHAT}, {"conversations": SHAREGPT, "id": 3}, ALPACA, SHORT_ALPACA]
    expected = [CHAT, CHAT, ALPACA_CHAT, SHORT_ALPACA_CHAT]
    assert conversations(write(tmp_path / "a.jsonl", *records)) == expected
    (tmp_path / "a.json").write_text(json.dumps(records))
    assert conversations(tmp_path / "a.json") == expected
    (tmp_path / "a.csv").write_text('id,output,instruction,input\n1,3,Add,"1, 2"\n2,Ho,Hi,\n')
    assert conversations(tmp_path / "a.csv") == expected[2:]
    assert conversations(write(tmp_path / "b.jsonl", {"talk": SHAREGPT}), "talk") == [CHAT]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_tables_of_records(name, tmp_path):
    for number, (records, expected) in enumerate(
        (
            ([{"messages": CHAT, "n": 1}, {"messages": CHAT[1:3], "n": 2}], [CHAT, CHAT[1:3]]),
            ([{"conversations": SHAREGPT}] * 3, [CHAT] * 3),
            ([ALPACA, {**ALPACA, "input": None}], [ALPACA_CHAT, None]),
        )
    ):
        table = pyarrow.Table.from_pylist(records)
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        if name == "a.parquet":
            pyarrow.parquet.write_table(table, path, row_group_size=1)
        else:
            with pyarrow.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        read = conversations(path)
        assert len(read) == len(expected)
        assert read[0] == expected[0]
        assert read[1] == (
            expected[1] or [{**ALPACA_CHAT[0], "content": "Add", "input": ""}, *read[1][1:]]
        )
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no single column messages, conversations, .*, but text$"):
        conversations(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("a text", "neither a chat nor an instruction record, which are JSON objects"),
        (
            {"text": "a"},
            "no messages or conversations, and no instruction with an output in a record with "
            '"text"',
        ),
        ({"messages": "a"}, "its turns are no list"),
        ({"messages": ["a"]}, "turn 1 is no object"),
        (
            {"messages": [USER("a"), {"role": "tool", "content": "b"}]},
            "turn 2 is of the role 'tool': only system, user, human, assistant, gpt are read",
        ),
        ({"messages": [USER("a"), {"role": "assistant", "content": None}]}, "turn 2 has no text"),
        ({"messages": [USER("a")]}, "it holds no answer of the assistant"),
        (
            {"messages": [SYSTEM("a"), ASSISTANT("b"), USER("c")]},
            "it begins with an answer: the first turn must be the user's",
        ),
        ({"instruction": "a"}, '"output" is missing, or no text'),
        ({"instruction": "a", "input": 3, "output": "b"}, '"input" is no text'),
        (
            {"messages": [USER("\ud800"), ASSISTANT("a")]},
            "it holds half a surrogate pair, which is not a character",
        ),
    ],
)
def test_what_is_no_record_is_named_with_its_line(record, reason, tmp_path):
    path = write(tmp_path / "a.jsonl", ALPACA, record)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}, line 2: {reason}')}$"):
        conversations(path)


def test_a_record_that_the_template_refuses_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", ALPACA, {"messages": CHAT})
    with pytest.raises(
        ValueError,
        match="a.jsonl, line 2: the chat template cannot be rendered: the alpaca prompt has no",
    ):
        Files(path, chat_template="alpaca").open(load_tokenizer(TINY_LLAMA))
    with pytest.raises(
        ValueError, match="no chat template of its own: give --data.chat-template a"
    ):
        Files(path, chat_template="own").open(load_tokenizer(TINY_LLAMA))
    with pytest.raises(
        ValueError, match="chat_template is empty: name own, alpaca, llama2, vicuna"
    ):
        Files(path, chat_template="")
    with pytest.raises(ValueError, match="parse_special is for texts; a chat template writes"):
        Files(path, chat_template="own", parse_special=True)


def test_records_that_are_read_as_text_name_the_option(tmp_path, capsys):
    recipe = str(Path(__file__).parents[2] / "experiments" / "extend.py")
    for record in ({"messages": CHAT}, {"conversations": SHAREGPT}, ALPACA):
        path = write(tmp_path / "a.jsonl", record)
        argv = ["train", recipe, "--init", str(TINY_LLAMA), "--data.path", path]
        assert main(argv) == 2
        assert capsys.readouterr().err == (
            f'ctxext: {path}, line 1: no key "text": this is a chat or instruction record; to '
            "train on its answers, give --data.chat-template own\n"
        )
    assert main([*argv, "--dry-run", "--data.chat-template", "vicuna"]) == 0
    assert "unreadable" not in capsys.readouterr().out
    # A template that the base lacks is found before anything is measured.
    source = Files(path, chat_template="own")
    experiment = dataclasses.replace(tiny_experiment(source), model=None, init=str(TINY_LLAMA))
    advice = "no chat template of its own: give --data.chat-template alpaca, llama2, vicuna, "
    with pytest.raises(ValueError, match=advice):
        requirements.check(experiment)
    assert [advice in sentence for sentence in requirements.unreadable(experiment)] == [True]
    # A key of text that is named is read as text.
    assert list(Files(path, "output").texts()) == ["3"]


def of_records(tmp_path: Path, *records: object, template: str = "vicuna") -> Corpus:
    source = Files(write(tmp_path / "a.jsonl", *records), chat_template=template)
    return source.open(load_tokenizer(TINY_LLAMA))


def talk(number: int) -> dict:
    """Conversations of different lengths."""
    turns = [USER(f"def f{number}():"), ASSISTANT("return " * (1 + number % 5))]
    return {"messages": turns * (1 + number % 3)}


def test_rows_have_whole_records_once_each_and_train_their_answers(tmp_path):
    corpus = of_records(tmp_path, *map(talk, range(20)))
    assert corpus.is_answer is not None
    seq_len = 400
    packing = corpus.packing(seq_len)
    assert sorted(document for row in packing.rows for document in row) == list(range(20))
    batch = make_batch(corpus, Contiguous(), seed=1, step=0, batch_size=60, seq_len=seq_len)
    seen = set()
    for i in range(60):
        for segment in range(1, batch.segment_ids[i].max() + 1):
            (places,) = np.nonzero(batch.segment_ids[i] == segment)
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
            ids = [*batch.tokens[i, places], batch.targets[i, places[-1]]]
            assert batch.targets[i, places[:-1]].tolist() == ids[1:-1]
            (document,) = (
                number
                for number, (a, b) in enumerate(
                    zip(corpus.offsets, corpus.offsets[1:], strict=False)
                )
                if corpus.ids[a:b].tolist() == ids
            )
            seen.add(document)
            own = corpus.is_answer[corpus.offsets[document] : corpus.offsets[document + 1]]
            assert batch.weights[i, places].tolist() == own[1:].tolist()
        is_padding = batch.segment_ids[i] == 0
        assert not batch.weights[i, is_padding].any()
        assert not is_padding[: is_padding.argmin()].any()
    assert seen == set(range(20))
    # A host has the same rows as all of them, with the same masks.
    half = make_batch(
        corpus, Contiguous(), seed=1, step=0, batch_size=60, seq_len=seq_len, own=range(30, 60)
    )
    for name, values in batch._asdict().items():
        assert np.array_equal(values[30:], getattr(half, name)[30:])
    # So do shorter rows that are packed into longer ones, and a mixture.
    short = Short(Files(str(tmp_path / "a.jsonl"), chat_template="vicuna"), 200)
    row = short.open(load_tokenizer(TINY_LLAMA)).row(np.random.default_rng(0), seq_len)
    assert set(row.weights.tolist()) == {0.0, 1.0}


def test_packing_is_best_fit_decreasing_and_says_what_it_leaves_out():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 101, 300)
    rows = pack(sizes, 100)
    assert sorted(sum(rows, [])) == list(range(300))
    room: list[int] = []  # by definition
    for size in sorted(sizes.tolist(), reverse=True):
        fitting = [i for i, left in enumerate(room) if left >= size]
        if fitting:
            room[min(fitting, key=lambda i: room[i])] -= size
        else:
            room.append(100 - size)
    assert sorted(100 - sizes[row].sum() for row in rows) == sorted(room)
    offsets = np.array([0, 4, 14, 24, 25])
    is_trained = np.zeros(25, bool)
    is_trained[[3, 13, 20, 24]] = (
        True  # the last tokens of a short and a long one, the middle of one
    )
    packing = Packing.of(offsets, is_trained, 8)
    assert packing.rows == [[2], [0]]
    assert (packing.num_cut, packing.num_without, packing.num_tokens) == (1, 2, 11)
    # Target 3 of the first document, and 20 of the third one, which is cut after target 22.
    assert packing.trained_note == (
        "only answers are trained: the loss counts 2 of 11 tokens (18%)"
    )
    assert packing.note == (
        "2 records packed into 2 rows of 8 tokens, 31% padding; 1 are longer than a row and lose "
        "their ends; 2 are left out, as their answers begin after so many"
    )


def test_records_that_have_no_answer_in_a_row_are_refused(tmp_path):
    corpus = of_records(tmp_path, {"messages": [USER("a" * 99), ASSISTANT("b")]})
    with pytest.raises(ValueError, match="none of the 1 chat or instruction records has an answer"):
        corpus.row(np.random.default_rng(0), 20)
    source = Files(str(tmp_path / "a.jsonl"), chat_template="vicuna")
    with pytest.raises(ValueError, match="are packed whole and cannot be upsampled by length"):
        Upsampled(source, 1, 2.0).open(load_tokenizer(TINY_LLAMA))


def test_records_are_held_out_by_the_hash_of_their_messages(tmp_path):
    records = [talk(number) for number in range(30)]
    path = write(tmp_path / "a.jsonl", *records)
    source = Files(path, chat_template="vicuna")
    tokenizer = load_tokenizer(TINY_LLAMA)
    whole = source.open(tokenizer)
    parts = {}
    for split in ("train", "heldout"):
        corpus = Split(source, split, 0.3).open(tokenizer)
        parts[split] = {tuple(ids.tolist()) for ids in corpus.documents()}
    assert not parts["train"] & parts["heldout"]
    assert parts["train"] | parts["heldout"] == {tuple(ids.tolist()) for ids in whole.documents()}
    assert 0 < len(parts["heldout"]) < 20
    (training,) = Mix(((1.0, source),)).training_part(0.3).parts
    assert training == (1.0, Split(source, "train", 0.3))


def test_the_loss_is_that_of_transformers_with_labels_on_answers_only(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    corpus = of_records(tmp_path, *map(talk, range(6)))
    assert corpus.is_answer is not None
    seq_len = 192
    lm = ctxext.load("tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32)
    batch = make_batch(corpus, Contiguous(), seed=0, step=0, batch_size=2, seq_len=seq_len)
    assert max(batch.segment_ids[i].max() for i in range(2)) > 1, "rows must be packed"
    settings = dict(config=lm.config, attention=Causal(), kernel="blocked", dtype="float32")

    @jax.jit
    def summed(batch):
        return batch_loss(lm.params, batch, lm.rotation(seq_len), remat="none", **settings)[0]

    expected, count = 0.0, 0
    packing = corpus.packing(seq_len)
    for i in range(2):
        first = batch.tokens[i, batch.segment_ids[i] == 1].tolist()
        documents = next(
            row
            for row in packing.rows
            if corpus.ids[corpus.offsets[row[0]] :][: len(first)].tolist() == first
        )
        for document in documents:
            own = slice(*corpus.offsets[document : document + 2])
            ids = torch.tensor(corpus.ids[own].astype(np.int64))[None]
            labels = torch.where(torch.tensor(corpus.is_answer[own])[None], ids, -100)
            num = int((labels[:, 1:] != -100).sum())
            with torch.no_grad():
                expected += model(input_ids=ids, labels=labels).loss.item() * num
            count += num
    assert count == batch.weights.sum()
    assert float(summed(batch._asdict())) / count == pytest.approx(expected / count, rel=2e-5)
