"""The reference page has everything that the commands have."""

from __future__ import annotations

from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, PredictorSpec, TrainerSpec
from cellseg.workflows.check import CheckSettings
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cli import docs
from cellseg_cli.commands import COMMANDS
from cellseg_cli.docs import main, render_reference


def test_every_command_and_every_option_is_there() -> None:
    page = render_reference()
    for name in COMMANDS:
        assert f"## cellseg {name}\n" in page
    plugins = Plugins()
    models = [TrainSettings, PredictSettings, EvaluateSettings, CheckSettings]
    for kind in (DatasetSpec, TrainerSpec, PredictorSpec):
        models += [card.options for card in plugins.all(kind).values()]
    for model in models:
        for name in model.model_fields:
            assert f"`--{name.replace('_', '-')}`" in page, (model, name)


def test_rows_have_values_defaults_and_help() -> None:
    lines = render_reference().splitlines()
    assert (
        "| `--min-size` | int | `20` | Objects of fewer pixels are dropped. (at least 0) |" in lines
    )
    assert any(
        line.startswith("| `-o`, `--output` |") or "`--output`, `-o`" in line for line in lines
    )
    assert any("| `IMAGES` | path | required |" in line for line in lines)
    for line in lines:
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 5), line


def test_the_check_notices_a_page_that_is_out_of_date(tmp_path, capsys) -> None:
    page = tmp_path / "reference.md"
    assert main(["--check", str(page)]) == 1
    assert main(["--write", str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    page.write_text(page.read_text().replace("sigma", "tau"))
    assert main(["--check", str(page)]) == 1
    assert "out of date" in capsys.readouterr().err


def test_the_page_says_how_it_is_written() -> None:
    assert "python -m cellseg_cli.docs --write" in (docs.__doc__ or "")
