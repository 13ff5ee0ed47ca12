"""
plants.txt fits the source, wherever its functions are and however they are written, and the table
of README.md says what is planted. That the plants turn tests red: python tests/plant.py.
"""

import ast
import os

import patch
import plant
import pytest


def test_every_plant_fits_the_source_and_names_a_test():
    for p in plant.PLANTS:
        plant.planted(p, patch.check_alone)  # raises, and says which, if not


def test_every_bug_is_planted():
    assert {p.bug for p in plant.PLANTS} == set(plant.BUGS)
    assert set(map(str, range(1, 31))) <= set(plant.BUGS)


def test_the_table_says_what_is_planted():
    readme = patch.read(os.path.join(plant.HERE, "README.md"))
    says = "python tests/plant.py --table prints what tests/README.md should hold"
    assert plant.table() in readme, says


SOURCE = '''
"""What a module says."""
LIMIT = 3


@keep
def double(x, y=(1, 2)):
    """Twice x."""
    if x > LIMIT:
        print("large", x)       # a comment
    for i in range(3):
        total = share(x, i, scale=2,
                      by='one')
    return (2 *
            x)


class Box:
    size: int = 4

    def double(self):
        return self.size * 2
'''

# function, old, new, and what the whole must then be equal to: (text, in place of it)
PATCHES = [
    ("tool.double", "2 * x", "x + x", ("(2 *\n            x)", "x + x")),
    ("tool.double", "2 * ___", "___", ("(2 *\n            x)", "x")),
    ("tool.double", "share(___, scale=2)", "share(0, ___)", ("x, i, scale=2,", "0, x, i,")),
    ("tool.double", 'total = share(___, by="one")', "total = ___", None),
    (
        "tool.double",
        "if x > LIMIT:\n    ___",
        "",
        ('    if x > LIMIT:\n        print("large", x)', ""),
    ),
    ("tool.double", 'print("large", x)', "", ('print("large", x)', "pass")),
    (
        "tool.double",
        "for i in ___:\n    ___inner",
        "for i in ():\n    ___inner",
        ("range(3)", "()"),
    ),
    ("tool.double", "@keep", "", ("@keep\n", "")),
    ("tool.double", "(1, 2)", "(2, 1)", ("(1, 2)", "(2, 1)")),
    ("Box.double", "self.size", "3", ("self.size * 2", "3 * 2")),
    ("Box.size", "4", "5", ("= 4", "= 5")),
    ("LIMIT", "3", "4", ("LIMIT = 3", "LIMIT = 4")),
]


@pytest.mark.parametrize("name, old, new, change", PATCHES)
def test_a_piece_is_found_by_its_syntax(tmp_path, name, old, new, change):
    (tmp_path / "tool.py").write_text(SOURCE)
    if change is None:
        with pytest.raises(patch.Misfit, match="can't stand there"):
            patch.patched(name, old, new, tmp_path)
        return
    file, code = patch.patched(name, old, new, tmp_path)
    assert file == "tool.py" and SOURCE.count(change[0]) == 1
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(SOURCE.replace(*change)))


@pytest.mark.parametrize(
    "name, old, says",
    [
        ("triple", "x", "there is no function triple"),
        ("double", "x", "double may be tool.double or tool.Box.double"),
        ("tool.double", "x", "'x' is there 4 times, not once"),
        ("tool.double", "y", "'y' is there 0 times, not once"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, name, old, says):
    (tmp_path / "tool.py").write_text(SOURCE)
    with pytest.raises(patch.Misfit, match=says):
        patch.patched(name, old, "z", tmp_path)


def test_neither_file_nor_format_matters(tmp_path):
    files = {p.file for p in map(patch.find, {p.function for p in plant.PLANTS})}
    for file in files:
        moved = tmp_path / "data" / "elsewhere" / file
        moved.parent.mkdir(parents=True, exist_ok=True)
        moved.write_text(ast.unparse(ast.parse(patch.read(os.path.join(plant.ROOT, file)))))
    for p in plant.PLANTS[::10]:
        _, code = patch.patched(p.function, p.old, p.new, tmp_path)
        assert code == plant.planted(p)[1], f"{p.what} ({p.function})"
