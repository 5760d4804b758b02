"""Texts for classes and backgrounds: CLIP-ES' lists, other people's classes, and files of their own."""

import pytest

from wsss.data.coco import COCO_CATEGORIES
from wsss.data.voc import VOC_CLASSES
from wsss.data.words import read_words
from wsss.errors import BadInput

COCO_CLASSES = tuple(COCO_CATEGORIES.values())
OWN = ("cat", "River", "tractor")


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "words.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "words.yaml")

    return write


def test_voc():
    words = read_words("auto", VOC_CLASSES)
    changed = {a: b for a, b in zip(VOC_CLASSES, words.prompts, strict=True) if a != b}
    assert changed == {
        "bird": "bird avian",
        "chair": "chair seat",
        "person": "person with clothes,people,human",
        "tvmonitor": "tvmonitor screen",
    }
    assert words.names == VOC_CLASSES
    assert len(words.background) == 25
    assert {"keyboard", "sign"} <= set(words.background)


def test_coco():
    words = read_words("auto", COCO_CLASSES)
    assert len(words.prompts) == len(words.names) == 80
    by_class = dict(zip(COCO_CLASSES, words.prompts, strict=True))
    # the misspelling is what CLIP-ES ran with
    assert [by_class[name] for name in ("snowboard", "tie", "couch", "hair drier", "dog")] == [
        "sknowboard",
        "necktie",
        "sofa",
        "hairdrier,blowdrier",
        "dog",
    ]
    plain = dict(zip(COCO_CLASSES, words.names, strict=True))
    assert [plain[name] for name in ("snowboard", "tie", "couch", "tv")] == ["snowboard", "tie", "sofa", "tvmonitor"]
    assert set(read_words("auto", VOC_CLASSES).background) - set(words.background) == {"keyboard", "sign"}
    assert set(words.background) < set(read_words("auto", VOC_CLASSES).background)


def test_the_order_is_that_of_the_classes():
    words = read_words("auto", VOC_CLASSES[::-1])
    assert words.prompts == read_words("auto", VOC_CLASSES).prompts[::-1]


def test_own_classes_stand_for_themselves():
    words = read_words("auto", OWN)
    assert words.prompts == words.names == OWN
    assert "river" not in words.background
    assert len(words.background) == 24
    # some of VOC's classes are not VOC
    assert read_words("auto", ("bird", "person")).prompts == ("bird", "person")


def test_own_file(file):
    words = read_words(
        file(
            "prompts:\n  tractor: [tractor, farm machine]\n  cat: kitten\nnames: {River: stream}\nbackground: [soil]\n"
        ),
        OWN,
    )
    assert words.prompts == ("kitten", "River", "tractor,farm machine")
    assert words.names == ("cat", "stream", "tractor")
    assert words.background == ("soil",)


def test_a_file_may_say_a_part(file):
    words = read_words(file("prompts: {tractor: Railway  }\nnames:\n"), OWN)
    assert words.prompts == ("cat", "River", "Railway")
    default = read_words("auto", VOC_CLASSES).background
    assert words.background == tuple(word for word in default if word not in ("river", "railway"))
    assert read_words(file("background: []"), OWN).background == ()
    assert read_words(file("background: [Zürich]"), OWN).background == ("Zürich",)


def test_words_that_go_with_a_class(file):
    words = read_words(file("cooccurring: {tractor: [soil, cat], cat: sofa}\nbackground: [sky]\n"), OWN)
    assert words.background == ("sky",)
    # another class may go with a class
    assert words.cooccurring == (("sofa",), ("sky",), ("soil", "cat"))
    words = read_words(file("cooccurring: {tractor: soil, cat: []}"), OWN, "clims")
    assert words.cooccurring == ((), words.background, ("soil",))
    assert "tree" in words.background
    assert "river" not in words.background


def test_a_file_for_voc_may_leave_the_words_to_the_published_lists(file):
    default = read_words("auto", VOC_CLASSES, "clims_camera_ready")
    assert [len(own) for own in default.cooccurring if own] == [5, 4]
    assert (
        read_words(file("prompts: {dog: puppy}"), VOC_CLASSES, "clims_camera_ready").cooccurring == default.cooccurring
    )
    given = read_words(file("background: [sky]"), VOC_CLASSES, "clims_camera_ready")
    assert set(given.cooccurring) == {("sky",)}


def test_a_file_for_voc_replaces_the_lists(file):
    words = read_words(file("prompts: {dog: puppy}"), VOC_CLASSES)
    assert words.prompts == tuple("puppy" if name == "dog" else name for name in VOC_CLASSES)
    assert words.background == read_words("auto", VOC_CLASSES).background
    assert (
        read_words(file("prompts: {dog: puppy}"), COCO_CLASSES).background
        == read_words("auto", COCO_CLASSES).background
    )


BAD = {
    "": "no mapping",
    "- cat": "no mapping",
    "prompts: [": "broken YAML",
    "prompts: {cat: {cat: *a}}": r"the alias \*a of nothing before it",
    "prompts: {cat: !!python/name:os.system x}": "the YAML tag",
    "prompts: {cat: a, cat: b}": "the same key twice",
    "[" * 5000: "values nested deeper than 50",
    "prompts: {cat: a}\nbackgrounds: [b]": "the keys prompts, backgrounds",
    "1: {cat: a}": "the keys 1",
    "prompts: [cat]": "`prompts` without classes",
    "names: cat": "`names` without classes",
    "background: sky": "a `background` that is no list of words",
    "background: [sky, true]": "a `background` that is no list of words",
    "background: [sky, '  ']": "the class or background '  '",
    "background: [sky, Sky]": "'Sky' twice among classes and backgrounds",
    "background: [sky, cat]": "'cat' twice among classes and backgrounds",
    "prompts: {cat: Tractor}": "'tractor' twice among classes and backgrounds",
    "names: {cat: ' tractor'}": "'tractor' twice among classes and backgrounds",
    "prompts: {cat: ''}": "'' for 'cat' in `prompts`",
    "prompts: {cat: [kitten, '']}": r"\['kitten', ''\] for 'cat' in `prompts`",
    "prompts: {cat: 3}": "3 for 'cat' in `prompts`",
    "prompts: {cat: [[a]]}": r"\[\['a'\]\] for 'cat' in `prompts`",
    "names: {cat: {a: b}}": "{'a': 'b'} for 'cat' in `names`",
    "prompts: {Tracktor: a}": "'Tracktor' in `prompts`",
    "prompts: {no: a}": "'no' in `prompts`",
    "cooccurring: [soil]": "`cooccurring` without classes",
    "cooccurring: {cat: [sofa, 3]}": r"\['sofa', 3\] for 'cat' in `cooccurring`",
    "cooccurring: {Tracktor: soil}": "'Tracktor' in `cooccurring`",
    "cooccurring: {cat: [sofa, Cat]}": "'Cat' twice among classes and backgrounds",
    "cooccurring: {cat: [sofa, Sofa]}": "'Sofa' twice among classes and backgrounds",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files(file, text):
    path = file(text)
    with pytest.raises(BadInput, match=rf"words\.yaml(: [\w.]+)?: found {BAD[text]}") as caught:
        read_words(path, OWN)
    assert caught.value.where.startswith(path)
    assert caught.value.do


def test_an_empty_list_of_synonyms(file):
    with pytest.raises(BadInput, match="the class or background ''"):
        read_words(file("prompts: {cat: []}"), OWN)


def test_a_misspelt_class_is_answered_with_the_right_one(file):
    with pytest.raises(BadInput) as caught:
        read_words(file("prompts: {Tracktor: a}"), OWN)
    assert caught.value.do.startswith("Did you mean 'tractor'? Correct or remove it")


def test_endless_yaml_is_refused_at_once(file):
    lines = ["a: &a0 [x, x]", *(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(40))]
    text = "background: [sky]\nprompts:\n  cat:\n" + "".join(f"    {line}\n" for line in lines)
    with pytest.raises(BadInput, match="more than 100000 values"):
        read_words(file(text), OWN)


def test_classes_and_words_that_other_versions_of_yaml_read_as_truth_and_dates(file):
    words = read_words(file("prompts: {no: off}\nbackground: [on, 2020-01-01, 1:30]"), ("no", "cat"))
    assert words.prompts == ("off", "cat")
    assert words.background == ("on", "2020-01-01", "1:30")


def test_no_file_and_no_classes(tmp_path):
    with pytest.raises(BadInput, match=r"none\.yaml: found no such file"):
        read_words(str(tmp_path / "none.yaml"), OWN)
    with pytest.raises(BadInput, match="classes: found none; expected at least one class name"):
        read_words("auto", ())


def test_classes_that_clip_cannot_tell_apart():
    with pytest.raises(BadInput, match="classes: found 'Cat' twice among classes and backgrounds"):
        read_words("auto", ("cat", "Cat"))


def test_words_of_qa_clims():
    words = read_words("auto", VOC_CLASSES, "qa_clims")
    changed = {a: (b, short) for a, b, short in zip(VOC_CLASSES, words.prompts, words.short, strict=True) if a != b}
    assert changed == {
        "diningtable": ("dining table", ("table",)),
        "pottedplant": ("potted plant", ("plant",)),
        "tvmonitor": ("tv monitor", ("monitor",)),
    }
    assert words.background == ()
    assert "plane" in words.synonyms[0]
    coco = read_words("auto", COCO_CLASSES, "qa_clims")
    assert coco.prompts == COCO_CLASSES
    assert {name: short for name, short in zip(COCO_CLASSES, coco.short, strict=True) if short} == {
        "dining table": ("table",),
        "potted plant": ("plant",),
    }
    own = read_words("auto", OWN, "qa_clims")
    assert (own.prompts, own.short, own.synonyms) == (OWN, ((),) * 3, ((),) * 3)


def test_synonyms_of_own_classes(file):
    words = read_words(file("short: {River: [brook, stream]}\nsynonyms: {cat: kitten}\n"), OWN, "qa_clims")
    assert words.short == ((), ("brook", "stream"), ())
    assert words.synonyms == (("kitten",), (), ())
    with pytest.raises(BadInput, match="'dog' in `synonyms`"):
        read_words(file("synonyms: {dog: puppy}\n"), OWN, "qa_clims")
