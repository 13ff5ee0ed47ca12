"""
What all tests share. `python -m pytest tests` needs neither a network nor a GPU.

Every test is named after the mistake that turns it red. The numbers in them can be checked by hand.
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"     # nothing here may ask the network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import common  # noqa: E402, F401  before torch: it says how threads wait
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)        # the same sums in the same order on every machine


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1337)


@pytest.fixture(scope="session")
def village():
    """The folder of the default data set. Its vocabulary is kept in the repository; its text is not."""
    return os.path.join(ROOT, "data", "village")


@pytest.fixture(scope="session")
def vocab(village):
    from data import Vocab
    return Vocab(village)
