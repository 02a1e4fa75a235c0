"""Recipes: the files that come with cellseg, those of users, and what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg.clusters.recipes import Recipe, read_recipe, recipe_names, recipe_text
from cellseg.errors import ConfigError
from cellseg.options import parse


def test_the_recipes_that_come_with_cellseg() -> None:
    assert recipe_names() == ["a100", "a40", "cpu"]
    a100 = read_recipe("a100")
    assert (a100.partition, a100.walltime, a100.memory) == ("main", "56:00:00", "150G")
    assert a100.environment["OMP_NUM_THREADS"] == a100.environment["MKL_NUM_THREADS"] == "8"
    assert a100.gres == "gpu:1"
    assert read_recipe("a40").gres == "gpu:a40:1"
    assert read_recipe("cpu").gres is None


@pytest.mark.parametrize("name", ["a100", "a40", "cpu"])
def test_what_is_commented_out_is_understood_as_well(name: str, tmp_path: Path) -> None:
    """Users will remove the # in front of lines."""
    text = recipe_text(name)
    lines = [line.removeprefix("# ") for line in text.splitlines() if "cellseg" not in line]
    kept = [line for line in lines if line.lstrip().startswith("- ") or _is_option(line)]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(kept))
    assert read_recipe(str(file)).account == "my-lab"


def _is_option(line: str) -> bool:
    return line.partition(":")[0] in Recipe.model_fields


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("56:00:00", "56:00:00"),
        ("2-08:00:00", "56:00:00"),
        ("56h", "56:00:00"),
        ("2d 8h", "56:00:00"),
        ("90min", "01:30:00"),
        (56 * 3600, "56:00:00"),  # what YAML makes of 56:00:00 without quotes
    ],
)
def test_walltimes(given: object, meant: str) -> None:
    recipe = parse(Recipe, {"walltime": given})
    hours, minutes, seconds = map(int, meant.split(":"))
    assert recipe.walltime == meant
    assert recipe.seconds == (hours * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize("given", ["", "90", 90, "30:00", "soon", "0h", True])
def test_walltimes_that_could_mean_anything(given: object) -> None:
    with pytest.raises(ConfigError, match="--walltime: write it as"):
        parse(Recipe, {"walltime": given})


def test_walltime_without_quotes_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("walltime: 56:00:00\n")
    assert read_recipe(str(file)).walltime == "56:00:00"


@pytest.mark.parametrize(
    ("given", "meant"), [("150GB", "150G"), ("1.5T", "1536G"), ("512 MiB", "512M"), (0, "0")]
)
def test_memory(given: object, meant: str) -> None:
    assert parse(Recipe, {"memory": given}).memory == meant


@pytest.mark.parametrize("given", [150, "150", "0G", "lots", "-1G"])
def test_memory_without_a_unit(given: object) -> None:
    with pytest.raises(ConfigError, match="--memory: write it with its unit"):
        parse(Recipe, {"memory": given})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"partition": "main --wrap=x"}, "--partition"),
        ({"partition": "main\n#SBATCH --uid=0"}, "--partition"),
        ({"sbatch": ["--comment=a\nrm -rf x"]}, "is not one line"),
        ({"setup": ["module load a\nb"]}, "is not one line"),
        ({"sbatch": ["-p main"]}, "write it as --name=value"),
        ({"sbatch": ["--mem=3G"]}, "'memory' is for"),
        ({"sbatch": ["--array=1-3"]}, "decides on --array"),
        ({"threads": 9, "cpus": 8}, "--threads 9 is more than --cpus 8"),
        ({"gpus": 0, "gpu_type": "a100"}, "--gpu-type does nothing"),
        ({"walltime": "5min", "signal": 200}, "--signal 200"),
        ({"logs": "jobs-%j"}, "% or a line break"),
    ],
)
def test_what_a_script_must_not_hold(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(Recipe, values)


def test_lines_may_be_one_block(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("setup: |\n  module load cuda\n  source env/bin/activate\n")
    assert read_recipe(str(file)).setup == ("module load cuda", "source env/bin/activate")


def test_directives_are_taken_apart() -> None:
    recipe = parse(Recipe, {"sbatch": ["--exclude=n[1-3]", "--exclusive", "--comment two words"]})
    assert recipe.directives == {"exclude": "n[1-3]", "exclusive": True, "comment": "two words"}


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe 'a10'") as error:
        read_recipe("a10")
    assert error.value.hint == "Did you mean 'a100'?"
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        read_recipe(str(tmp_path / "gone.yaml"))
    file = tmp_path / "mine.yaml"
    file.write_text("partitoin: main\n")
    with pytest.raises(ConfigError, match="unknown option 'partitoin'") as error:
        read_recipe(str(file))
    assert str(file) in str(error.value) and error.value.hint == "Did you mean 'partition'?"


def test_a_recipe_with_tags_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"account: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(ConfigError):
        read_recipe(str(file))
    assert not (tmp_path / "ran").exists()
