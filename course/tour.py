"""
Run all cells of the notebook anew and keep what they print and draw.

    pip install -r course/requirements.txt
    python course/tour.py

No time, machine or version is kept, so that a change of the notebook is a change of the lesson.
"""

import os

NOTEBOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tour.ipynb")
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path):
    """Run a notebook where it lies → the notebook with its outputs. Raises if a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": os.path.dirname(path)}}
    NotebookClient(
        notebook, timeout=900, record_timing=False, coalesce_streams=True, resources=folder
    ).execute()
    notebook.metadata = KERNEL
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


if __name__ == "__main__":
    import nbformat

    nbformat.write(execute(NOTEBOOK), NOTEBOOK)
