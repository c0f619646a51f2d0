"""The audit of a small table, from the file to the verdict."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fedsieve.audit.audit import Audit, Reference, audit
from fedsieve.audit.page import page
from fedsieve.audit.source import Source
from fedsieve.audit.text import as_json, explained
from fedsieve.audit.verdict import LeftOut
from fedsieve.cli.app import app
from fedsieve.core.errors import FedSieveError, ParameterError

SITES = ["Ada", "Bo", "Cy", "<Di>"]


def rows(n: int = 480, seed: int = 0) -> pd.DataFrame:
    g = np.random.default_rng(seed)
    x = g.normal(size=(n, 3))
    y = np.where(x @ [1.5, -1.5, 0.5] + g.normal(0, 0.5, n) > 0, "yes", "no")
    table = pd.DataFrame({"u": x[:, 0].round(3), "v": x[:, 1].round(3), "w": x[:, 2].round(3), "ill": y})
    return table.assign(ward=np.array(SITES)[np.arange(n) % 4])


def flipped(table: pd.DataFrame, site: str) -> pd.DataFrame:
    here = table.ward == site
    return table.assign(ill=table.ill.where(~here, table.ill.map({"yes": "no", "no": "yes"})))


def written(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def source_of(file: Path, **more: object) -> Source:
    dataset = {"name": "csv", "file": str(file), "label": "ill", "client": "ward"}
    return Source.of({"dataset": dataset, "rounds": 8, **more}, file.parent)


def audited(table: pd.DataFrame, folder: Path, reference: Reference | None = None, seeds: int = 1) -> Audit:
    source = source_of(written(table, folder))
    return audit(
        source.load,
        source.experiment,
        seeds=range(seeds),
        folder=folder,
        device=torch.device("cpu"),
        rows=source.rows,
        reference=reference,
    )


class TestVerdicts:
    def test_nothing_to_be_seen(self, tmp_path: Path) -> None:
        found = audited(rows(), tmp_path)
        assert found.flagged == ()
        assert [site.name for site in found.sites] == sorted(SITES)
        assert [site.rows for site in found.sites] == [120] * 4
        assert found.score > 0.85
        assert explained(found)[0] == "Nothing to be seen: no site is beyond a limit."
        assert all(site.rounds == 8 and len(site.scores) == 8 for site in found.sites)
        assert as_json(audited(rows(), tmp_path)) == as_json(found)

    def test_flipped_labels(self, tmp_path: Path) -> None:
        found = audited(flipped(rows(), "Bo"), tmp_path, seeds=2)
        assert [site.name for site in found.flagged] == ["Bo"]
        (bo,) = found.flagged
        assert bo.global_score is not None
        assert bo.local_score is not None
        assert bo.global_score < 0.3 < 0.7 < bo.local_score
        assert any("reads" in reason for reason in bo.reasons)
        assert "again without Bo, which looked off" in found.reference

    def test_a_unit_and_copies(self, tmp_path: Path) -> None:
        table = rows()
        table.loc[table.ward == "Cy", "u"] *= 1000
        ada = table[table.ward == "Ada"]
        table = pd.concat([table[table.ward != "<Di>"], ada.head(100).assign(ward="<Di>")])
        found = {site.name: site for site in audited(table, tmp_path).sites}
        assert {name for name, site in found.items() if site.flagged} == {"Cy", "<Di>"}
        assert any("stand at Ada" in reason for reason in found["<Di>"].reasons)
        assert "probably copied" in " ".join(e.text for e in found["Ada"].evidence)


class TestReference:
    def test_a_trusted_site(self, tmp_path: Path) -> None:
        found = audited(flipped(rows(), "Bo"), tmp_path, Reference(("Ada",)))
        assert found.reference == "rows of Ada, trusted"
        assert [site.name for site in found.flagged] == ["Bo"]
        assert found.warnings == ()

    def test_trust_in_the_wrong_site_is_told(self, tmp_path: Path) -> None:
        found = audited(flipped(rows(), "Bo"), tmp_path, Reference(("Bo",)))
        assert any("Bo was trusted and is flagged itself" in text for text in found.warnings)

    def test_a_sample_of_all_is_suspect(self, tmp_path: Path) -> None:
        assert "themselves suspect" in audited(rows(), tmp_path).warnings[0]

    def test_an_unknown_site(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="no site 'Eve'; the sites are <Di>, Ada, Bo and Cy"):
            audited(rows(), tmp_path, Reference(("Eve",)))

    def test_a_file(self, tmp_path: Path) -> None:
        trusted = tmp_path / "trusted.csv"
        rows(60, seed=9).drop(columns="ward").assign(ward="x").to_csv(trusted, index=False)
        file = written(flipped(rows(), "Bo"), tmp_path)
        dataset = {"name": "csv", "file": str(file), "label": "ill", "client": "ward"}
        source = Source.of({"dataset": dataset, "rounds": 8}, tmp_path, trusted)
        data = source.load(0)
        assert data.owner_names == tuple(sorted(SITES))
        assert data.root_rows is not None
        assert len(data.y_train[data.root_rows]) + len(data.y_test) > 60
        found = audit(
            source.load,
            source.experiment,
            seeds=[0],
            folder=tmp_path,
            device=torch.device("cpu"),
            rows=source.rows,
            reference=Reference(file=source.reference),
        )
        assert [site.name for site in found.flagged] == ["Bo"]
        assert found.reference == f"the rows of {trusted}, trusted"
        assert sum(site.rows for site in found.sites) == 480


class TestMistakes:
    def test_two_sites(self, tmp_path: Path) -> None:
        table = rows()
        with pytest.raises(ParameterError, match="needs 3 or more; there are 2"):
            audited(table[table.ward.isin(["Ada", "Bo"])], tmp_path)

    def test_no_site_column(self, tmp_path: Path) -> None:
        file = written(rows(), tmp_path)
        with pytest.raises(ParameterError, match="--site COLUMN"):
            Source.of({"dataset": {"name": "csv", "file": str(file), "label": "ill"}}, tmp_path)

    @pytest.mark.parametrize("name", ["attack", "malicious", "root"])
    def test_settings_without_effect(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ParameterError, match=f"{name} has no effect in an audit"):
            source_of(written(rows(), tmp_path), **{name: "none"})


class TestPage:
    def test_names_are_text(self, tmp_path: Path) -> None:
        html = page(audited(flipped(rows(), "<Di>"), tmp_path))
        assert "<Di>" not in html
        assert "Audit: look at &lt;Di&gt;" in html
        assert "Nothing" not in html.split("<h2>")[0][-3000:]


class TestCommand:
    def test_json(self, tmp_path: Path) -> None:
        file = written(flipped(rows(), "Bo"), tmp_path)
        options = ["--label", "ill", "--site", "ward", "--seeds", "1", "--rounds", "8", "--json", "--quiet"]
        result = CliRunner().invoke(app, ["audit", str(file), *options])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["flagged"] == ["Bo"]
        first = next(site for site in found["sites"] if site["site"] == "Bo")
        assert first["rounds"] == 8
        assert first["flagged"] is True
        assert first["reasons"]
        assert set(first) >= {"site", "rows", "flagged", "rounds_rejected", "rounds", "score", "limit", "reasons"}

    def test_a_model_that_is_loaded_again(self, tmp_path: Path) -> None:
        file, model = written(rows(), tmp_path), tmp_path / "model.safetensors"
        options = ["--label", "ill", "--site", "ward", "--seeds", "1", "--rounds", "2", "--quiet"]
        result = CliRunner().invoke(app, ["audit", str(file), *options, "--export", str(model)])
        assert result.exit_code == 0, result.output
        assert model.stat().st_size > 0
        assert "Nothing to be seen" in result.stdout or "look at it" in result.stdout

    def test_a_folder_in_place_of_a_page_is_said_before_any_work(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="it is a folder"):
            CliRunner().invoke(app, ["audit", "none.csv", "--html", str(tmp_path)], catch_exceptions=False)

    def test_two_references(self, tmp_path: Path) -> None:
        file = written(rows(), tmp_path)
        with pytest.raises(FedSieveError, match="name one"):
            CliRunner().invoke(
                app, ["audit", str(file), "--trust", "Ada", "--reference", str(file)], catch_exceptions=False
            )


def test_interval_over_seeds() -> None:
    found = LeftOut.of([0.01, 0.02, 0.03])
    assert found.change == pytest.approx(0.02)
    # Student's t with two degrees of freedom: 4.3027 standard errors of 0.01 / sqrt(3)
    assert found.high - found.change == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert LeftOut.of([0.01]).in_words == "+1.0 points"
