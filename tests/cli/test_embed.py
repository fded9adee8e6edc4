"""Items into vectors, as a user types it, with what is told of bad items."""

import json
import os

import numpy as np
import pytest

from kvtools.artifact import open_artifact
from kvtools.artifact.strings import unpack

FILMS = """item_id:token\ttitle:token_seq\tyear:float\tclass:token_seq
1\tToy Story\t1995\tAnimation Comedy
2\tToy Soldiers\t1991\tAction Drama
3\tStory of Drama\t1996\tDrama Comedy
4\tHeat\t\tAction Drama
5\tAnimation Heat\t1990\tAnimation
"""
BAD_JSON = "Expecting value: line 1 column 8 (char 7)"
OBJECTS = (
    "an array of it holds Python objects, which are never read. Save it as numbers or as strings, for example with "
    "array.astype(float) or array.astype(str)."
)
SAVE = "Save the vectors as float32 with numpy.save."
EXISTS = "t.csv: exists already. Give --force to overwrite it."
KEYWORDS = {"a": ["Hair-Mask", "citrus"], "b": ["citrus", "soap"], "c": ["soap", "hair-mask"], "d": ["soap", "salt"]}


@pytest.fixture
def top(tmp_path):
    (tmp_path / "films.item").write_text(FILMS)
    (tmp_path / "keywords.json").write_text(json.dumps(KEYWORDS))
    return tmp_path


def vectors_of(path):
    keys, rows = [], []
    for record in open_artifact(str(path)):
        keys += unpack("keys", record.tensors)
        rows.append(record.tensors["vectors"])
    return keys, np.concatenate(rows)


def test_keywords_become_vectors_of_unit_norm(sh, top):
    done = sh("kvtools embed keywords.json --dim 3 | tee a.kvs | kvtools check -")
    assert (done.code, done.out, done.err) == (0, b"", "")
    keys, x_ND = vectors_of(top / "a.kvs")
    assert keys == list("abcd")
    assert (x_ND.dtype, x_ND.shape) == (np.float32, (4, 3))
    np.testing.assert_allclose(np.linalg.norm(x_ND, axis=1), 1, rtol=1e-6)


def test_every_form_of_the_same_terms_gives_the_same_vectors(sh, top):
    terms = {key: [word.replace("-", "") for word in words] for key, words in KEYWORDS.items()}
    (top / "terms.json").write_text(json.dumps(terms))
    (top / "text.json").write_text(json.dumps({key: " ".join(words) for key, words in terms.items()}))
    (top / "fields.json").write_text(json.dumps({key: {"x": words[0], "y": words[1:]} for key, words in terms.items()}))
    (top / "t.csv").write_text('id,"x"\n' + "".join(f'{key},"{", ".join(words)}"\n' for key, words in terms.items()))
    (top / "t.item").write_text("item_id:token\tx:token_seq\n" + "".join(f"{k}\t{' '.join(w)}\n" for k, w in terms.items()))
    lines = [
        "kvtools embed terms.json --dim 2",
        "kvtools embed text.json --dim 2",
        "kvtools embed fields.json --dim 2",
        "kvtools embed fields.json --dim 2 --text x --text y",
        "kvtools embed t.csv --dim 2 --text x",
        "kvtools embed --dim 2 - < t.item",
    ]
    digests = {sh(f"{line} | kvtools sum -").out for line in lines}
    assert len(digests) == 1
    assert digests.pop().startswith(b"kvs1_")


def test_terms_of_lists_stay_whole_and_text_is_cut(sh, top):
    sh("kvtools embed keywords.json --dim 2 --report r.json -o a.kvs")
    assert json.loads((top / "r.json").read_text())["terms"] == 4
    (top / "text.json").write_text(json.dumps({key: " ".join(words) for key, words in KEYWORDS.items()}))
    sh("kvtools embed text.json --dim 2 --report s.json -o b.kvs")
    assert json.loads((top / "s.json").read_text())["terms"] == 5  # hair, mask


def test_the_same_bytes_for_any_number_of_threads(sh, top, data):
    for options in ("", "--power-iterations 3"):
        line = f"kvtools embed {data}/rec/ml-100k/ml-100k.item --dim 32 {options} | kvtools sum -"
        digests = {sh(line, OMP_NUM_THREADS=n, OPENBLAS_NUM_THREADS=n).out for n in ("1", "2")}
        assert len(digests) == 1
        assert b"kvs1_" in digests.pop()


def test_the_vectors_are_those_of_a_dense_svd(sh, top):
    sh("kvtools embed keywords.json --dim 3 --no-normalize -o a.kvs")
    _, x_ND = vectors_of(top / "a.kvs")
    terms = sorted({word.lower() for words in KEYWORDS.values() for word in words})
    count_NV = np.array([[word in [w.lower() for w in words] for word in terms] for words in KEYWORDS.values()], float)
    tfidf_NV = count_NV * (np.log(5 / (1 + count_NV.sum(axis=0))) + 1)
    tfidf_NV /= np.linalg.norm(tfidf_NV, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(tfidf_NV)
    # up to a sign a column; float32 in the file, so 1e-6
    np.testing.assert_allclose(np.abs(x_ND), np.abs(u[:, :3] * s[:3]), atol=1e-6)


def test_numbers_are_standardised_and_appended(sh, top):
    sh("kvtools embed films.item --dim 2 --numeric year --no-normalize -o a.kvs")
    _, x_ND = vectors_of(top / "a.kvs")
    year = np.array([1995, 1991, 1996, np.nan, 1990])
    expected = np.nan_to_num((year - np.nanmean(year)) / np.nanstd(year))
    np.testing.assert_allclose(x_ND[:, 2], expected, rtol=1e-6)
    sh("kvtools embed films.item --dim 2 --numeric year -o b.kvs")
    np.testing.assert_allclose(np.linalg.norm(vectors_of(top / "b.kvs")[1], axis=1), 1, rtol=1e-6)


def test_npy_of_any_float_comes_with_its_keys(sh, top):
    x_ND = np.random.default_rng(3).standard_normal((9000, 4))
    (top / "keys.txt").write_text("".join(f"item {n}\n" for n in range(9000)))
    for dtype in ("float16", "float32", "float64"):
        np.save(top / "x.npy", x_ND.astype(dtype))
        done = sh("kvtools embed x.npy --keys keys.txt --no-normalize -o a.kvs --force")
        assert (done.code, done.err) == (0, "")
        done = sh("kvtools embed --keys keys.txt < x.npy | kvtools check -")
        assert (done.code, done.err) == (0, "")
        keys, found_ND = vectors_of(top / "a.kvs")
        assert keys[8999] == "item 8999"
        np.testing.assert_array_equal(found_ND, x_ND.astype(dtype).astype(np.float32))
    lines = sh("kvtools info --json --records a.kvs").out.splitlines()
    assert [json.loads(line)["tensors"]["vectors"][1][0] for line in lines] == [4096, 4096, 808]


def test_videos_with_an_embedding_are_batched_from_the_pipe(sh, top):
    from kvtools.artifact.files import Sink
    from kvtools.artifact.stream import Head, Writer

    video = {
        "pixels": np.zeros((4, 3, 14, 14), np.uint8),
        "grid": np.array([1, 2, 2], np.int32),
        "seconds": np.zeros(1),
    }
    words = {"fps": 1.0, "duration": 1.0, "source": {}}
    with Writer(Sink(str(top / "v.kvs")), Head("video")) as writer:
        for n in range(3):
            writer.write(f"{n}.mp4", {**video, "embedding": np.full(2, n + 1, np.float32)}, **words)
        writer.write("blind.mp4", video, **words)
    done = sh("cat v.kvs | kvtools embed - -o a.kvs", pipefail=False)
    assert done.code == 65
    assert done.err == "kvtools embed: stdin: records without an embedding were left out, 1 in all (blind.mp4).\n"
    keys, x_ND = vectors_of(top / "a.kvs")
    assert keys == ["0.mp4", "1.mp4", "2.mp4"]
    np.testing.assert_allclose(x_ND, np.sqrt(0.5), rtol=1e-6)
    assert sh("kvtools embed --no-normalize a.kvs | kvtools sum -").out == sh("kvtools sum - < a.kvs").out


def test_one_bad_item_does_not_lose_the_others(sh, top):
    (top / "k.json").write_text('{"a": ["x","y"], "b": ["y","z"], "c": ["x","z"], "d": [], "a": ["z"], "e": {"f": {}}}')
    done = sh("kvtools embed k.json --dim 2 -o a.kvs")
    assert done.code == 65
    assert [line.partition(": k.json: ")[2] for line in done.err.splitlines()] == [
        "items that came before were left out, 1 in all (a).",
        "items that are not text, terms or fields of these were left out, 1 in all (e).",
        "items of which nothing is said were left out, 1 in all (d).",
    ]
    assert vectors_of(top / "a.kvs")[0] == ["a", "b", "c"]
    strict = sh("kvtools embed k.json --dim 2 --strict -o b.kvs")
    assert (strict.code, strict.err.count("\n")) == (65, 1)
    assert sh("test -e b.kvs").code == 1


def test_vectors_that_say_nothing_are_named_and_left_out(sh, top):
    x_ND = np.ones((5, 2), np.float32)
    x_ND[1], x_ND[2, 0], x_ND[3, 1] = 0, np.nan, np.inf
    np.save(top / "x.npy", x_ND)
    (top / "keys.json").write_text('["a", "zero", "nan", "inf", "a"]')
    done = sh("kvtools embed x.npy --keys keys.json -o a.kvs")
    assert done.code == 65
    for words in (
        "vectors with NaN or infinity were left out, 2 in all (nan, inf)",
        "vectors of zeros were left out, 1 in all (zero)",
        "items that came before were left out, 1 in all (a)",
    ):
        assert words in done.err
    assert vectors_of(top / "a.kvs")[0] == ["a"]


def test_terms_without_company_get_a_direction_of_their_own(sh, top):
    terms = {f"{n}": ["x", "y", f"t{n % 5}"] for n in range(40)} | {"lonely": ["nobody"], "alone": ["else"]}
    (top / "k.json").write_text(json.dumps(terms))
    done = sh("kvtools embed k.json --dim 3 -o a.kvs")
    assert done.code == 0
    note = "there are items whose terms lie outside of the dimensions kept, given a random direction each, 2 in all"
    assert f"{note} (lonely, alone)" in done.err
    keys, x_ND = vectors_of(top / "a.kvs")
    np.testing.assert_allclose(np.linalg.norm(x_ND, axis=1), 1, rtol=1e-6)
    assert abs(x_ND[keys.index("lonely")] @ x_ND[keys.index("alone")]) < 0.999
    assert sh("kvtools embed k.json --dim 3 --seed 1 -q | kvtools sum -").out != sh("kvtools sum - < a.kvs").out
    assert sh("kvtools embed k.json --dim 3 --no-normalize -o b.kvs").code == 65
    assert len(vectors_of(top / "b.kvs")[0]) == 40


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        (
            "kvtools embed keywords.json",
            2,
            (
                "keywords.json: 128 dimensions are too many for 4 items with 4 terms, and from 1 to 3 are possible. "
                "Give another --dim, or items with more text."
            ),
        ),
        ("kvtools embed nothing.json", 66, "nothing.json: no such file or directory. Look at its name and its permissions."),
        (
            "kvtools embed bad.json",
            65,
            f"bad.json: this is neither one JSON object of items nor JSON rows ({BAD_JSON}). Repair the file.",
        ),
        ("kvtools embed empty.json", 65, "empty.json: this is empty. Give a table."),
        ("kvtools embed none.json", 65, "none.json: there is no item left to write. Look at the input."),
        (
            "kvtools embed t.csv",
            2,
            (
                "t.csv: no column holds text by its type; the columns are id, x. "
                "Name what there is with --text, --numeric or --id, or leave them out."
            ),
        ),
        (
            "kvtools embed t.csv --text y",
            2,
            "t.csv: there is no column 'y' among id, x. Name what there is with --text, --numeric or --id, or leave them out.",
        ),
        ("kvtools embed t.csv --text x --id n", 65, "t.csv: there is no column 'n' among id, x. Name the right one."),
        (
            "kvtools embed keywords.json --text y",
            2,
            (
                "keywords.json: no item has a field 'y'; items have no named fields. "
                "Name what there is with --text, --numeric or --id, or leave them out."
            ),
        ),
        ("kvtools embed x.npy", 2, "x.npy: an .npy file does not name its rows. Give their keys with --keys FILE."),
        ("kvtools embed x.npy --keys t.csv", 65, "x.npy: there are 3 rows and 2 keys. Give one key per row with --keys."),
        (
            "kvtools embed x.npy --keys t.csv --dim 3",
            2,
            "--dim cannot be used with x.npy, whose vectors keep their width and have no fields. Leave it out.",
        ),
        (
            "kvtools embed p.kvs",
            65,
            "p.kvs: this is a stream of kind pair, and kind embedding or video is needed. Make one with kvtools embed.",
        ),
        ("kvtools embed pickle.npy --keys t.csv", 65, f"pickle.npy: {OBJECTS}"),
        (
            "kvtools embed keywords.json --dim 2 -o keywords.json --force",
            2,
            "keywords.json: this is both an input and the output. Name another output.",
        ),
        ("kvtools embed keywords.json --dim 2 -o t.csv", 73, EXISTS),
        ("kvtools embed keywords.json --dim 2 --report t.csv", 73, EXISTS),
    ],
)
def test_errors_are_one_line_with_their_code(sh, top, line, code, sentence):
    from kvtools.artifact.files import Sink
    from kvtools.artifact.stream import Head, Writer

    (top / "bad.json").write_text('{"a": [')
    (top / "empty.json").write_text("")
    (top / "none.json").write_text("{}")
    (top / "t.csv").write_text("id,x\n1,soap\n")
    np.save(top / "x.npy", np.ones((3, 2)))
    np.save(top / "pickle.npy", np.array([{}, []], object))
    with Writer(Sink(str(top / "p.kvs")), Head("pair")):
        pass
    done = sh(line)
    assert (done.code, done.out, done.err) == (code, b"", f"kvtools embed: {sentence}\n")


def test_beauty_is_embedded_whole(sh, top, data):
    done = sh(f"kvtools embed {data}/rec/amazon_beauty_2014/item_keywords.json -o a.kvs --report r.json")
    assert done.code == 0, done.err
    keys, x_ND = vectors_of(top / "a.kvs")
    assert (len(keys), len(set(keys)), x_ND.shape) == (12_101, 12_101, (12_101, 128))
    assert (x_ND.astype(np.float64) ** 2).mean() == pytest.approx(1 / 128, rel=1e-6)  # 0.00781
    assert json.loads((top / "r.json").read_text())["explained_share"] == pytest.approx(0.2979, abs=1e-4)


def test_a_coarse_decomposition_comes_near_to_the_converged_one(sh, top, data):
    items = data / "rec" / "amazon_beauty_2014" / "item_keywords.json"
    fractions = []
    for n in (0, 2, 20):
        sh(f"kvtools embed {items} --power-iterations {n} -o a.kvs --report r.json --force")
        fractions.append(json.loads((top / "r.json").read_text())["explained_share"])
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(0.2979, abs=1e-4)


def test_words_cuts_terms(sh, top):
    sh("kvtools embed keywords.json --words --dim 2 --report r.json -o a.kvs")
    assert json.loads((top / "r.json").read_text())["terms"] == 5  # hair, mask


def test_text_fields_of_a_catalogue_are_read(sh, top, data):
    item = data / "rec" / "amazon_industrial_and_scientific" / "item.json"
    done = sh(f"kvtools embed {item} --text title --text brand --dim 64 -o a.kvs")
    assert done.code == 0, done.err
    assert vectors_of(top / "a.kvs")[1].shape == (3686, 64)


# ── items that come later ────────────────────────────────────────────────────────────────────────────────────────────────
def test_items_that_come_later_are_projected_as_the_first_ones_were(kv, top):
    (top / "more.json").write_text(json.dumps({"e": ["soap", "salt", "never-met"], "a again": KEYWORDS["a"], "f": ["unknown"]}))
    assert kv("kvtools embed keywords.json --dim 3 -o old.kvs".removeprefix("kvtools ")) == (0, "")
    code, said = kv("embed --like old.kvs more.json -o new.kvs", "check new.kvs", "embed --like new.kvs more.json -o newer.kvs")
    assert code == 0
    assert said.count("given a random direction each, 1 in all (f)") == 2
    _, old_ND = vectors_of(top / "old.kvs")
    keys, new_ND = vectors_of(top / "new.kvs")
    assert keys == ["e", "a again", "f"]
    np.testing.assert_allclose(new_ND[1], old_ND[0], atol=1e-6)
    np.testing.assert_allclose(new_ND[0], old_ND[3], atol=1e-6)  # a term that was never met says nothing
    fits = [open_artifact(str(top / name)).head.config["fit"]["digest"] for name in ("old.kvs", "new.kvs", "newer.kvs")]
    assert len(set(fits)) == 1


def test_numbers_of_later_items_are_scaled_as_those_of_the_first(kv, top):
    (top / "later.item").write_text(FILMS.splitlines()[0] + "\n9\tToy Story\t2095\tAnimation Comedy\n")
    options = "--text title --text class --numeric year"
    assert kv(
        f"embed films.item --dim 3 {options} --no-normalize -o old.kvs", "embed --like old.kvs later.item -o new.kvs"
    ) == (0, "")
    _, old_ND = vectors_of(top / "old.kvs")
    _, new_ND = vectors_of(top / "new.kvs")
    np.testing.assert_allclose(new_ND[0, :3], old_ND[0, :3], atol=1e-6)
    years = np.array([1995, 1991, 1996, 1990])
    assert new_ND[0, 3] == pytest.approx((2095 - years.mean()) / np.sqrt(np.square(years - years.mean()).sum() / 4), rel=1e-6)


def test_codes_of_another_fit_are_refused_unless_they_are_asked_for(kv, top):
    (top / "more.json").write_text(json.dumps({"e": ["soap", "salt"], "f": ["citrus", "hair-mask"], "g": ["soap", "citrus"]}))
    made = [
        "embed keywords.json --dim 2 -o old.kvs",
        "embed more.json --dim 2 -o other.kvs",
        "embed --like old.kvs more.json -o new.kvs",
    ]
    assert kv(
        *made, "semid-build -q old.kvs --codes 3 --levels 1 -o old.ids", "semid-build --codebook old.ids new.kvs -o new.ids"
    ) == (0, "")
    code, said = kv("semid-build --codebook old.ids other.kvs -o x.ids")
    digests = [open_artifact(str(top / name)).head.config["fit"]["digest"] for name in ("old.kvs", "other.kvs")]
    assert (code, said.count("\n")) == (65, 1)
    assert f"of fit {digests[0]}, and those of other.kvs are of fit {digests[1]}" in said
    np.save(top / "bare.npy", vectors_of(top / "new.kvs")[1])
    (top / "bare.txt").write_text("e\nf\ng\n")
    assert kv("semid-build --codebook old.ids bare.npy --keys bare.txt -o bare.ids") == (
        0,
        f"kvtools semid-build: bare.npy: nothing tells whether its vectors are of fit {digests[0]}, as those of old.ids are.\n",
    )
    assert kv(
        "semid-build --codebook old.ids other.kvs --other-fit -o x.ids", "semid-build --codebook new.ids new.kvs -o y.ids"
    ) == (0, "")
    quality = open_artifact(str(top / "new.ids")).fields["quality"]
    assert quality["new_items"] == 3
    assert quality["fit_mse"] == open_artifact(str(top / "old.ids")).fields["quality"]["mse"]


def test_a_stream_that_lost_a_part_of_its_fit_projects_nothing(kv, top, monkeypatch):
    monkeypatch.setattr("kvtools.onerec.items.vectors._ROWS", 2)
    assert kv("embed keywords.json --dim 2 -o old.kvs", "embed --like old.kvs keywords.json -o again.kvs") == (0, "")
    whole, again = (vectors_of(top / name)[1] for name in ("old.kvs", "again.kvs"))
    np.testing.assert_allclose(whole, again, atol=1e-6)
    assert kv("cat old.kvs -n 1 -o part.kvs")[0] == 0
    code, said = kv("embed --like part.kvs keywords.json -o x.kvs")
    assert code == 65
    assert "a part of the fit" in said


def test_a_name_that_is_not_utf8_is_told_and_kept_with_its_bytes_written_out(sh, tmp_path):
    (tmp_path / os.fsdecode(b"q-\xfe.csv")).write_text("item,text\n1,red shoes\n2,red hat\n")
    made = sh(r"kvtools embed $'q-\xfe.csv' --text text --dim 1 --stamp -o $'o-\xfe.kvs' && kvtools sum $'o-\xfe.kvs'")
    assert (made.code, made.out.split()[-1]) == (0, rb"o-\xfe.kvs")
    named = sh(r"kvtools cat $'o-\xfe.kvs' --prefix | kvtools info --json --records -")
    assert json.loads(named.out.splitlines()[0])["key"] == r"o-\xfe/00000000"
    missing = sh(r"kvtools check --json $'no-\xfe.kvs'")
    assert json.loads(missing.out)["name"] == r"no-\xfe.kvs"
    refused = sh(r"kvtools cat $'no-\xfe.kvs'")
    assert refused.err.startswith(r"kvtools cat: no-\xfe.kvs: no such file")
