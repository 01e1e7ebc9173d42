import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.row_files import TEXT_FIELDS, read_object, read_rows


def read(tmp_path, content, name="x.csv", texts=TEXT_FIELDS):
    path = tmp_path / name
    path.write_bytes(content.encode())
    return [read_object(text, place) | {"at": place} for text, place in read_rows(path, texts)]


def test_quotes_line_breaks_and_a_byte_order_mark(tmp_path):
    content = '\ufeffprompt,response\r\n"a, ""b""\nc",d\r\n\r\ne,f\r\n'
    assert read(tmp_path, content) == [
        {"prompt": 'a, "b"\nc', "response": "d", "at": ":2"},
        {"prompt": "e", "response": "f", "at": ":5"},
    ]


def test_texts_stay_texts_and_other_columns_are_read_as_wholes(tmp_path):
    content = "prompt,response,probability,label,answer,none\n1,NA,0.5,True,7,\n2,007,1,false,x,\n"
    assert read(tmp_path, content) == [
        {"prompt": "1", "response": "NA", "probability": 0.5, "label": True, "answer": "7",
         "none": None, "at": ":2"},
        {"prompt": "2", "response": "007", "probability": 1, "label": False, "answer": "x",
         "none": None, "at": ":3"},
    ]  # fmt: skip
    assert read(tmp_path, "best\n7\n", texts={"best"}) == [{"best": "7", "at": ":2"}]


def test_lists_and_chats_are_json(tmp_path):
    chat = '"[{""role"": ""user"", ""content"": ""hi""}]"'
    content = f'prompt;chosen;ratings\n{chat};"[1, 2]";"[[1, 2]]"\n{chat};b;"[[3, null]]"\n'
    first, second = read(tmp_path, content)
    assert first["prompt"] == second["prompt"] == [{"role": "user", "content": "hi"}]
    assert (first["chosen"], second["chosen"]) == ("[1, 2]", "b")
    assert (first["ratings"], second["ratings"]) == ([[1, 2]], [[3, None]])


def test_tabs(tmp_path):
    assert read(tmp_path, "prompt\tn\na, b\t1\n", "x.tsv") == [
        {"prompt": "a, b", "n": 1, "at": ":2"}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,a\n1,2\n", ":1: the first line must give each column a name of its own"),
        ("a,\n1,2\n", ":1: the first line"),
        ("a,b\n1,2\n1,2,3\n", ":3: has 3 cells, and the first line names 2"),
        ('a,b\n1,2\n"1,2\n', ":3: broken CSV"),
        ("prompt\nx\n\"[{'role': 'user'}]\"\n", ":3: field 'prompt' is a list as Python prints it"),
    ],
)
def test_a_broken_table_names_its_line(tmp_path, content, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert f"x.csv{message}" in str(caught.value)


def test_what_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a\nx\n\xff\n")
    with pytest.raises(DataError, match=r"x.csv:\d: is not UTF-8 text"):
        list(read_rows(tmp_path / "x.csv"))
