"""The code of the study, which no command of the package calls: a run of a small data set, up to its table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scenes import write_voc


def test_a_run_of_the_study_becomes_a_row_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import study_scenes
    import study_scenes_report

    write_voc(tmp_path / "data")
    small = (
        *("experiment=detect_small", f"data.root={tmp_path / 'data'}", "data.img_size=64", "data.batch_size=4"),
        *("data.workers=0", "head.channels=32", "trackers=[]", "optim.epochs=2", "optim.warmup_epochs=0", "seed=0"),
    )
    scenes = replace(study_scenes.CELLS, classes=2, overrides=small, test="val")
    row = study_scenes.one_run(scenes, "dcn", list(small), tmp_path / "run")
    # Here the test split is the validation split, so its metrics are those of the last epoch.
    assert {one: row["test"][one] for one in scenes.metrics} == {
        one: pytest.approx(values[-1], abs=0.01) for one, values in row["curve"].items()
    }
    assert row["parameters"] == study_scenes.parameters(scenes, "dcn", [])
    assert (row["epochs"], len(row["loss"])) == (2, 2)
    results = tmp_path / "rows.jsonl"
    found = [{"epoch_cpu_seconds": {"plain": 2.0, "both": 3.0}}]
    found += [{"variant": variant, "seed": 0, **row} for variant in ("plain", "both")]
    results.write_text("".join(json.dumps(one) + "\n" for one in found))
    table = study_scenes_report.table(*study_scenes_report.read(results), scenes.metrics)
    assert f"| both | {row['test']['AP']:.1f} (1 seed) |" in table
    assert "| both | AP75 | +0.0 |" in table
    assert "| 2 | 1.50 |" in table


@pytest.mark.parametrize("name", ["cells", "nuclei"])
def test_a_wider_plain_network_has_the_parameters_of_the_deformable_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from study_scenes import LIKE, STUDIES, of_variant, parameters

    scenes = STUDIES[name]
    target = parameters(scenes, "dcn", of_variant(scenes, LIKE))
    found = parameters(scenes, "plain", of_variant(scenes, "wider"))
    assert parameters(scenes, "plain", []) < found == pytest.approx(target, rel=0.01)


def test_the_channels_of_equal_parameters_are_the_closest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from study_rows import channels_with

    assert channels_with(18 + 36 + 72 + 145, sum) == [18, 36, 72, 145]
