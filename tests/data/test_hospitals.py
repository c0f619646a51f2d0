"""The made hospitals of the examples: what is planted is there, at one site only, and the labels can be learnt."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fedsieve.data.table import CSV


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hospitals", Path(__file__).parents[2] / "examples/hospitals.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load()


def of(table: pd.DataFrame, site: str) -> pd.DataFrame:
    return table[table["hospital"] == site].sort_values("patient").reset_index(drop=True)


def test_sizes_and_missing_values() -> None:
    table = made.hospitals(seed=1)
    assert table["hospital"].value_counts().to_dict() == made.SITES
    measured = table.drop(columns=["patient", "admitted", "hospital", "readmitted"])
    assert abs(float(measured.isna().to_numpy().mean()) - 0.04) < 0.005
    assert not table[["patient", "hospital", "readmitted"]].isna().to_numpy().any()
    assert table.equals(made.hospitals(seed=1))
    assert not table.equals(made.hospitals(seed=2))


@pytest.mark.parametrize("site", ["East", "Central"])
@pytest.mark.parametrize("fault", sorted(made.FAULTS))
def test_faults(fault: str, site: str) -> None:
    clean, table = made.hospitals(seed=3), made.hospitals(fault, site, 3)
    for other in made.SITES.keys() - {site}:
        pd.testing.assert_frame_equal(of(table, other), of(clean, other))
    here, was, n = of(table, site), of(clean, site), made.SITES[site]
    if fault == "none":
        pd.testing.assert_frame_equal(here, was)
    elif fault in ("labels-30", "labels-all"):
        share = 0.3 if fault == "labels-30" else 1.0
        assert int((here["readmitted"] != was["readmitted"]).sum()) == round(share * n)
        pd.testing.assert_frame_equal(here.drop(columns="readmitted"), was.drop(columns="readmitted"))
    elif fault == "unit":
        np.testing.assert_allclose(here["creatinine"], was["creatinine"] * 88.42, atol=0.5)
    elif fault == "shift":
        difference = here["haemoglobin"] - was["haemoglobin"]
        assert float(difference.mean()) == pytest.approx(2 * float(was["haemoglobin"].std()), abs=0.05)
    elif fault == "duplicate":
        assert len(here) == n
        assert set(here["patient"]) <= set(of(clean, "North")["patient"])
    elif fault == "few":
        assert len(here) == n // 10
    else:
        assert set(here["readmitted"]) == {"no"}
        assert len(here) == int((was["readmitted"] == "no").sum())


def test_the_labels_can_be_learnt(tmp_path: Path) -> None:
    made.hospitals(seed=0).to_csv(tmp_path / "t.csv", index=False)
    loader = CSV(file=str(tmp_path / "t.csv"), label="readmitted", client="hospital")
    data = loader.load(Path(), torch.Generator().manual_seed(0))
    assert data.owner_names == ("Central", "East", "North", "South", "West")
    assert data.test_owners is not None
    assert (data.test_owners.bincount() - torch.tensor([70, 120, 180, 140, 90])).abs().max() <= 1
    assert "left out as dates: admitted, left out as identifiers: patient, missing numbers filled" in data.reading
    model = LogisticRegression(max_iter=1000).fit(data.x_train, data.y_train)
    assert 0.77 < model.score(data.x_test, data.y_test) < 0.87


def test_unknown_names_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="faults are none, labels-30, "):
        made.hospitals("nonsense")
    monkeypatch.setattr(sys, "argv", ["hospitals.py", str(tmp_path / "h.csv"), "--plant", "few", "--site", "West"])
    made.main()
    assert capsys.readouterr().out == f"{tmp_path}/h.csv: 2595 rows; at West, it has ten times fewer rows\n"
    assert len(pd.read_csv(tmp_path / "h.csv")) == 2595
