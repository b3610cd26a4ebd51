import json
import shutil
from pathlib import Path

import pytest
from data_helpers import CHAT_TEMPLATE, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

TEXTS = [
    "",
    " ",
    "a  b   c \t\n\n  d\r\n\r\n e   ",
    "I'm, you'RE, he'll; we've 'd 'S",
    "1234567890 3.14 1,000,000 ¼ ² ٣",
    "naïve café — “quotes” … 中文 字符 日本語 한국어 עברית",
    "e\u0301 vs é, ﬁ, \u200b\u00a0\u3000x",
    "🙂👩‍👩‍👧🇩🇪 \U0001f9ff",
    "<think>2+2</think> <|im_start|>user\nx<|im_end|>\n<|endoftext|><tool_call>{}</tool_call><|fim_prefix|>",
    "\\boxed{\\frac{1}{2}} #### -7 $x^2$",
    "def f(x):\n    return x  # ...\n\n\n",
]


@pytest.fixture(scope="module")
def qwen_pair(qwen_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen_bpe")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(qwen_dir / name, folder / name)
    return load_tokenizer(qwen_dir), load_tokenizer(folder)


def test_qwen_ids(qwen_pair):
    for tokenizer in qwen_pair:
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.stop_ids) == (151645, 151643, [151645])
        assert tokenizer.vocab_size == 151665
        assert tokenizer.encode("<|im_start|>user\n12") == [151644, 872, 198, 16, 17]


def test_vocab_and_merges_equal_tokenizer_json_on_texts(qwen_pair):
    library, built = qwen_pair
    for text in TEXTS:
        ids = library.encode(text)
        assert built.encode(text) == ids
        assert built.decode(ids) == library.decode(ids)
        assert built.decode(ids, skip_special_tokens=True) == library.decode(ids, skip_special_tokens=True)


def test_vocab_and_merges_equal_tokenizer_json_on_gsm8k(qwen_pair, shared_dir):
    path = shared_dir / "data" / "gsm8k" / "train.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    library, built = qwen_pair
    for line in path.read_text(encoding="utf-8").splitlines()[:1500]:
        row = json.loads(line)
        text = f"{row['question']}\n{row['answer']}"
        ids = library.encode(text)
        assert built.encode(text) == ids
        assert built.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_vocab_and_merges_equal_tokenizer_json_on_any_text(qwen_pair, text):
    library, built = qwen_pair
    assert built.encode(text) == library.encode(text)


def test_vocab_and_merges_alone_take_the_public_names(qwen_dir, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(qwen_dir / name, tmp_path / name)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151645, 151643)
    assert tokenizer.chat_template is None


def bpe_folder(folder: Path, **config) -> Path:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "Ġ": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_added_tokens_come_from_the_configuration(tmp_path):
    listed = {"5": {"content": "<tag>", "special": False}, "4": {"content": "<end>", "special": True}}
    folder = bpe_folder(tmp_path / "t", eos_token="<end>", pad_token="<end>", added_tokens_decoder=listed)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("ab a<tag>b<end>") == [2, 3, 0, 5, 1, 4]
    assert tokenizer.decode([2, 5, 4], skip_special_tokens=True) == "ab<tag>"
    assert tokenizer.vocab_size == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, "'GPT2Tokenizer'; only Qwen2's"),
        ({}, "must have id 151643 but comes out as 4"),
        ({"added_tokens_decoder": {"9": {"content": "<end>"}}}, "'<end>' must have id 9 but comes out as 4"),
        ({"added_tokens_decoder": {"9": {}}}, "added_tokens_decoder is malformed"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is malformed"),
    ],
)
def test_wrong_bpe_folders_are_refused(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(bpe_folder(tmp_path / "t", **config))


def test_damaged_merges_are_refused(tmp_path):
    folder = bpe_folder(tmp_path / "t")
    (folder / "merges.txt").write_text("x y z\n")
    with pytest.raises(UserError, match="do not make a tokenizer"):
        load_tokenizer(folder)


def test_smollm_folder_has_a_template_file(shared_dir):
    folder = shared_dir / "tokenizers" / "smollm2"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.chat_template == (folder / "chat_template.jinja").read_text()


def test_byte_tokenizer(byte_tokenizer):
    ids = byte_tokenizer.encode("é <|im_end|>x")
    assert len(ids) == 5 and ids[3] == byte_tokenizer.eos_token_id == 258
    assert byte_tokenizer.decode(ids) == "é <|im_end|>x"
    assert byte_tokenizer.decode(ids, skip_special_tokens=True) == "é x"
    assert byte_tokenizer.decode([*ids, 300]) == "é <|im_end|>x"
    assert byte_tokenizer.id_of("<|im_start|>") == 257
    assert byte_tokenizer.vocab_size == 259
    assert byte_tokenizer.chat_template == CHAT_TEMPLATE
    with pytest.raises(UserError, match="no token '<nope>'"):
        byte_tokenizer.id_of("<nope>")
    with pytest.raises(UserError, match="cannot encode"):
        byte_tokenizer.encode("\ud83d")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_decode_gives_the_text_back(byte_tokenizer, text):
    assert byte_tokenizer.decode(byte_tokenizer.encode(text)) == text


def test_stop_ids_are_united(byte_folder):
    (byte_folder / "generation_config.json").write_text('{"eos_token_id": [258, 256]}')
    (byte_folder / "config.json").write_text('{"eos_token_id": 257}')
    assert load_tokenizer(byte_folder).stop_ids == [258, 256, 257]


def test_pad_is_eos_where_none_is_named(byte_folder):
    write_config(byte_folder, pad_token=None)
    assert load_tokenizer(byte_folder).pad_token_id == 258


def test_a_list_of_templates_gives_the_default(byte_folder):
    entries = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_config(byte_folder, chat_template=entries)
    assert load_tokenizer(byte_folder).chat_template == "D"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "not a tokenizer"),
        ("tokenizer_config.json", "{", "not readable as JSON"),
        ("tokenizer_config.json", "[]", "expected keys and values"),
        ("tokenizer_config.json", "{}", "no eos_token is named"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', "no token '</s>'"),
        ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": [1]}', "chat_template is malformed"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x'"),
        ("config.json", '{"eos_token_id": [1, true]}', "eos_token_id is"),
    ],
)
def test_damaged_folders_are_refused(byte_folder, name, content, message):
    (byte_folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(byte_folder)


def test_missing_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "nope")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_sentencepiece(sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.id_of("<s>"), tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    text = "the cat counts 3 birds\n中</s>on a mat"
    ids = tokenizer.encode(text)
    assert ids.count(2) == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, 10**6], skip_special_tokens=True) == text.replace("</s>", "")
    assert tokenizer.id_of("▁cat") == ids[1]
    with pytest.raises(UserError, match="no token '<nope>'"):
        tokenizer.id_of("<nope>")


def test_sentencepiece_with_added_tokens(sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    size = load_tokenizer(tmp_path).vocab_size
    write_config(tmp_path, pad_token=None, added_tokens_decoder={str(size): {"content": "<|im_end|>"}})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (size + 1, size)
    assert tokenizer.encode("on<|im_end|>")[-1] == size


def test_damaged_sentencepiece_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
