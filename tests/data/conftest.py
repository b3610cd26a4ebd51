from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from data_helpers import CHATML, DEEPSEEK, write_config
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from r1parallel.data.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def qwen_dir(shared_dir: Path) -> Path:
    folder = shared_dir / "tokenizers" / "qwen2_5"
    if not folder.is_dir():
        pytest.skip(f"no Qwen2.5 tokenizer in {folder}")
    return folder


def make_byte_folder(folder: Path, special: list[str]) -> None:
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def byte_folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer without merges: ids 0..255 are bytes, 256..258 the ChatML tokens."""
    folder = tmp_path / "bytes"
    make_byte_folder(folder, CHATML)
    write_config(folder)
    return folder


@pytest.fixture
def byte_tokenizer(byte_folder: Path) -> Tokenizer:
    return load_tokenizer(byte_folder)


@pytest.fixture
def deepseek_tokenizer(tmp_path: Path) -> Tokenizer:
    """The same bytes with DeepSeek's markers, of which the first two are bos and eos."""
    folder = tmp_path / "deepseek_bytes"
    make_byte_folder(folder, DEEPSEEK)
    write_config(folder, bos_token=DEEPSEEK[0], eos_token=DEEPSEEK[1], pad_token=DEEPSEEK[1])
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spm")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(f"the cat counts {i} and {i * 7} birds on a mat" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"
