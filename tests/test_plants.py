"""plant.py's patches still fit the source, and the table of README.md says what they are. That they turn tests red: python tests/plant.py."""
import os

import plant


def test_every_plant_fits_the_source_and_names_a_test():
    for p in plant.PLANTS:
        plant.planted(p)        # raises, and says which, if not


def test_every_bug_is_planted():
    assert {p[0] for p in plant.PLANTS} == set(plant.BUGS) and set(range(1, 31)) <= set(plant.BUGS)


def test_the_table_says_what_is_planted():
    readme = plant.read(os.path.join(plant.HERE, "README.md"))
    assert plant.table() in readme, "python tests/plant.py --table prints what tests/README.md should hold"
