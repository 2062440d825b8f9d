import gzip
import lzma

import pytest

from data_helpers import splits_of
from litmegalodon.data import Document, ListSource, StdlibSource, compression_baselines

PACKAGE = {
    "email/__init__.py": b"",
    "email/mime/audio.py": b"audio = 1\r\n",
    "email/charset.py": b"charset = 1",
    "abc.py": b"abc = 1\n",
}
LEFT_OUT = [
    "test/test_abc.py",
    "tests/a.py",
    "email/test/test_email.py",
    "idlelib/a.py",
    "lib2to3/fixes/a.py",
    "turtledemo/a.py",
    "pydoc_data/topics.py",
    "ensurepip/_bundled/a.py",
    "config-3.11-x86_64-linux-gnu/python-config.py",
    "_sysconfigdata__linux_x86_64-linux-gnu.py",
    "sitecustomize.py",
]
NOT_LOOKED_AT = [
    "site-packages/numpy/a.py",
    "dist-packages/a.py",
    "email/__pycache__/a.py",
    "email/a.txt",
]


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return StdlibSource(0.3, 1.0, root=str(root))


def by_name(source):
    splits = splits_of(source)
    return {document.name: document.text for document in splits["train"] + splits["val"]}


def test_a_package_is_one_document_of_its_files_in_path_order(tmp_path):
    assert by_name(tree(tmp_path, PACKAGE)) == {
        "abc.py": b"# abc.py\nabc = 1\n",
        "email": b"# email/__init__.py\n"
        b"# email/charset.py\ncharset = 1\n"
        b"# email/mime/audio.py\naudio = 1\n",
    }


def test_tests_tables_and_machine_files_are_left_out_and_counted(tmp_path):
    table = (
        b'""" Python Character Mapping Codec cp037 generated from \'CP037.TXT\' with gencodec.py.\n'
    )
    codec = b'""" Generic Python Character Mapping Codec.\n"""\n'
    files = {
        **PACKAGE,
        **dict.fromkeys(LEFT_OUT + NOT_LOOKED_AT, b"x = 1\n"),
        "encodings/cp037.py": table,
        "encodings/charmap.py": codec,
    }
    source = tree(tmp_path, files)
    kept = {"encodings": b"# encodings/charmap.py\n" + codec}
    assert by_name(source) == by_name(tree(tmp_path / "clean", PACKAGE)) | kept
    assert source.left_out == {
        "files": len(LEFT_OUT) + 1,
        "bytes": 6 * len(LEFT_OUT) + len(table),
    }


def test_bytes_that_are_no_utf8_are_kept(tmp_path):
    files = {"a.py": b"# caf\xe9\n", "b.py": b"b = 1\n"}
    assert by_name(tree(tmp_path, files))["a.py"] == b"# a.py\n# caf\xe9\n"


def test_held_out_documents_reach_the_fraction_and_none_is_too_large(tmp_path):
    files = {f"m{i:02}.py": b"x" * (100 + i) for i in range(40)} | {"large.py": b"x" * 2000}
    tree(tmp_path, files)
    source = StdlibSource(0.2, 0.1, root=str(tmp_path))
    splits = splits_of(source)
    total = sum(map(len, by_name(source).values()))
    sizes = [len(document.text) for document in splits["val"]]
    assert 0.2 * total <= sum(sizes) < 0.2 * total + max(sizes)
    assert max(sizes) <= 0.1 * total
    assert len(by_name(source)) == len(splits["train"]) + len(splits["val"]) == 41


def test_the_split_follows_the_names_and_not_the_contents(tmp_path):
    names = [f"m{i}.py" for i in range(30)]
    one = tree(tmp_path / "one", dict.fromkeys(names, b"a" * 50)).shards("val")[0].items
    two = tree(tmp_path / "two", dict.fromkeys(names, b"b" * 50)).shards("val")[0].items
    assert [d.name for d in one] == [d.name for d in two]
    # Not merely the first by name.
    assert [d.name for d in one] != sorted(names)[: len(one)]


@pytest.mark.parametrize("root", ["empty", "missing"])
def test_a_folder_without_python_source_is_named(tmp_path, root):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    root = tmp_path / root
    with pytest.raises(ValueError, match=rf"data\.source\.root={root}: no Python source"):
        StdlibSource(root=str(root)).shards("train")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("max_validation_document", 0.0),
        ("max_validation_document", 1.5),
    ],
)
def test_a_fraction_out_of_range_is_named(setting, value):
    with pytest.raises(ValueError, match=rf"data\.source\.{setting}={value}: must be"):
        StdlibSource(**{setting: value})


def test_a_corpus_too_coarse_to_split_says_which_setting_to_change(tmp_path):
    tree(tmp_path, PACKAGE)
    with pytest.raises(ValueError, match=r"max_validation_document=0\.02: none of the 2 documents"):
        StdlibSource(root=str(tmp_path)).shards("train")
    with pytest.raises(ValueError, match=r"validation_fraction=0\.99: all 2 documents"):
        StdlibSource(0.99, 1.0, root=str(tmp_path)).shards("train")


def test_the_interpreters_own_library_is_a_corpus_of_megabytes():
    source = StdlibSource()
    splits = splits_of(source)
    sizes = {split: [len(d.text) for d in documents] for split, documents in splits.items()}
    total = sum(sizes["train"]) + sum(sizes["val"])
    assert total > 5e6
    assert 0.03 < sum(sizes["val"]) / total < 0.08
    assert max(sizes["val"]) <= 0.02 * total
    assert {"email", "asyncio", "argparse.py"} <= by_name(source).keys()
    assert not {"test", "idlelib", "site-packages"} & by_name(source).keys()
    assert b"# encodings/cp037.py\n" not in by_name(source)["encodings"]
    assert source.fingerprint == StdlibSource().fingerprint


def test_the_fingerprint_changes_with_names_bytes_order_and_split():
    a, b, c = Document("a", b"1"), Document("b", b"2"), Document("c", b"3")
    corpora = [
        ([a, b], [c]),
        ([b, a], [c]),
        ([a], [b, c]),
        ([a, c], [b]),
        ([Document("a", b"2"), b], [c]),
        ([Document("d", b"1"), b], [c]),
        ([Document("", b"a1"), b], [c]),
        ([Document("a1", b""), b], [c]),
    ]
    fingerprints = {ListSource(train, val).fingerprint for train, val in corpora}
    assert len(fingerprints) == len(corpora)
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)
    assert ListSource([a, b], [c]).fingerprint == ListSource([a, b], [c]).fingerprint


def test_compression_baselines_are_bits_per_byte_of_one_file():
    texts = [b"a text " * 40, b"another text " * 30]
    data = b"".join(texts)
    baselines = compression_baselines(texts)
    assert baselines["gzip"] == 8 * len(gzip.compress(data, compresslevel=9)) / len(data)
    assert baselines["xz"] == 8 * len(lzma.compress(data)) / len(data)
    with pytest.raises(ValueError, match="no bytes"):
        compression_baselines([b""])
