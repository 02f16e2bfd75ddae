"""Results are written whole or not at all, and only those of the same settings are read."""

import numpy as np
import pytest
import xarray as xr

from pylandscape._files import replacing
from pylandscape.study.store import Store, StudyError


def result(value=1.0):
    return xr.Dataset({"loss": ("alpha", [value, np.nan])}, {"alpha": [0.0, 1.0]}, {"seed": 3})


def test_what_is_saved_is_loaded(tmp_path):
    store = Store(tmp_path, "key")
    assert store.load("plane") is None
    store.save("plane", result(), seconds=1.5)
    found = store.load("plane")
    xr.testing.assert_equal(found, result())
    assert found.attrs == {"seed": 3, "study_key": "key", "seconds": 1.5}


def test_results_of_other_settings_are_not_loaded(tmp_path):
    Store(tmp_path, "key").save("plane", result(), 0)
    assert Store(tmp_path, "other").load("plane") is None


def test_saving_again_replaces(tmp_path):
    store = Store(tmp_path, "key")
    store.save("plane", result(1.0), 0)
    store.save("plane", result(2.0), 0)
    assert store.load("plane")["loss"][0] == 2.0


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("old")

    def interrupted():
        with replacing(path) as partial:
            partial.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]


def test_clear_removes_only_what_a_study_writes(tmp_path):
    store = Store(tmp_path, "key")
    store.save("plane", result(), 0)
    (tmp_path / "STUDY.md").write_text("page")
    (tmp_path / "notes.txt").write_text("mine")
    assert Store.holds_study(tmp_path)
    store.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert not Store.holds_study(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"must be writable, got: .*Choose another --out"):
        Store(tmp_path / "file" / "study", "key").open()
