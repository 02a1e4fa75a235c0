from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from cellseg.errors import ConfigError
from cellseg.options import Options
from cellseg.tuning.searched import Group, read_search, read_space, refusal, typed_space
from cellseg.tuning.space import Parameter, Space, identity


class Options1(Options):
    learning_rate: float = Field(1e-4, gt=0, le=1)
    batch_size: int = Field(4, ge=1)
    mode: Literal["full", "decoder", "lora"] = "full"
    rank: int = Field(0, ge=0)
    shape: tuple[int, int] = (64, 64)
    seeded: bool = False
    limit: int | None = None
    name: str = "a"

    @model_validator(mode="after")
    def _rank_goes_with_lora(self) -> Options1:
        if (self.rank > 0) != (self.mode == "lora"):
            raise ValueError("--rank goes with --mode lora")
        return self


class Predict1(Options):
    threshold: float = Field(0.5, ge=0, le=1)


def groups(**fixed: object) -> list[Group]:
    return [
        Group(Options1, fixed, {"lr": "learning_rate"}, unsearchable={"name": "cannot be."}),
        Group(Predict1, {}, {"cut": "threshold"}, "predict."),
    ]


def typed(*searches: str, **fixed: object) -> Space:
    return typed_space(dict(map(read_search, searches)), groups(**fixed))


def one(search: str, **fixed: object) -> Parameter:
    return typed(search, **fixed).parameters[0]


def test_ranges_have_the_type_of_the_option() -> None:
    rate = one("learning_rate=1e-5..1e-3:log")
    assert (rate.low, rate.high, rate.log, rate.whole, rate.size) == (1e-5, 1e-3, True, False, None)
    batch = one("--batch-size=1..8")
    assert batch.whole and batch.size == 8 and [batch.value(i) for i in range(8)] == [*range(1, 9)]
    steps = one("learning_rate=0.1..0.5:0.1")
    assert [steps.value(i) for i in range(steps.size or 0)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert one("limit=2..9:3").size == 3


def test_values_have_the_type_of_the_option() -> None:
    assert one("batch_size=1,2").choices == (1, 2)
    assert one("seeded=true,no").choices == (True, False)
    assert one("shape=32,32;64,128").choices == ([32, 32], [64, 128])
    assert one("limit=none,7").choices == (None, 7)
    assert one("lr=1e-3").name == "learning_rate"
    assert one("predict.cut=0.2,0.4").name == "predict.threshold"


def test_yaml_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "learning_rate: {low: 1e-5, high: 1e-3, log: true}\nbatch_size: [1, 2]\n"
        "shape: [[32, 32], [64, 64]]\nrank: 0..8:4\nmode: [lora, full]\n"
    )
    space = typed_space(read_space(["predict.threshold=0..1:0.5"], file), groups())
    assert [p.name for p in space.parameters] == [
        "learning_rate", "batch_size", "shape", "rank", "mode", "predict.threshold",
    ]  # fmt: skip
    assert space.parameters[0].log and space.parameters[5].size == 3
    with pytest.raises(ConfigError, match="searched twice"):
        read_space(["batch_size=1"], file)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("learning_rat=1,2", "unknown option"),
        ("learning_rate=0..1", "more than 0|greater than 0"),
        ("learning_rate=0.1..2", "less than or equal to 1"),
        ("batch_size=0,1", "greater than or equal to 1"),
        ("batch_size=1.5..3", "not a whole number"),
        ("batch_size=8..1", "not below"),
        ("batch_size=1..8:fast", "neither log nor a step"),
        ("batch_size=2,2", "comes twice"),
        ("mode=1..8", "takes no range|Input should be"),
        ("mode=full,half", "half"),
        ("rank=4,8", "goes with --mode lora"),
        ("name=a,b", "cannot be"),
        ("learning_rate", "no option and values"),
    ],
)
def test_what_makes_no_sense_is_refused(search: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        typed(search)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(ConfigError) as error:
        typed("learning_rat=1,2")
    assert error.value.hint == "Did you mean 'learning_rate'?"


def test_an_option_is_searched_or_given() -> None:
    with pytest.raises(ConfigError, match="also given a value, 3"):
        typed("batch_size=1,2", batch_size=3)
    with pytest.raises(ConfigError, match="two names"):
        typed("learning_rate=0.1,0.2", "lr=0.3")


def test_values_that_need_each_other_are_searched_together() -> None:
    space = typed("mode=full,lora", "rank=0,4,8")
    allowed = [p for p in space.grid() if not refusal(p, groups())]
    assert allowed == [
        {"mode": "full", "rank": 0},
        {"mode": "lora", "rank": 4},
        {"mode": "lora", "rank": 8},
    ]


def test_a_grid_needs_an_end() -> None:
    with pytest.raises(ConfigError, match="has no end"):
        typed("learning_rate=0.1..0.5").grid()
    with pytest.raises(ConfigError, match="log does nothing"):
        typed("batch_size=1..100:log").grid()
    assert len(list(typed("batch_size=1..3", "seeded=yes,no").grid())) == 6


def test_draws_are_distinct_and_depend_on_the_seed_alone() -> None:
    space = typed("learning_rate=1e-5..1e-3:log", "batch_size=1..8")
    points = space.drawn(50, 3)
    assert points == space.drawn(50, 3) != space.drawn(50, 4)
    assert points[:10] == space.drawn(10, 3)
    assert len({identity(p) for p in points}) == 50
    rates = sorted(p["learning_rate"] for p in points)
    assert 1e-5 <= rates[0] and rates[-1] <= 1e-3
    assert 5e-5 < rates[25] < 2e-4, "the logarithms are drawn evenly"


def test_a_small_space_is_drawn_to_its_end() -> None:
    space = typed("batch_size=1..4", "seeded=yes,no")
    assert len(space.drawn(20, 0)) == 8
    few = space.drawn(20, 0, lambda point: bool(point["seeded"]))
    assert sorted(p["batch_size"] for p in few) == [1, 2, 3, 4]


def test_whole_numbers_are_drawn_in_their_range() -> None:
    found = {Parameter(name="n", low=1, high=8, whole=True, log=True).drawn(random.Random(i))
             for i in range(200)}  # fmt: skip
    assert found == set(range(1, 9))


def test_lists_survive_the_database() -> None:
    space = Space.of({"shape": [[1, 2], [3, 4]], "x": {"low": 0, "high": 3}, "none": [None, 2]})
    point = {"shape": [3, 4], "x": 2, "none": None}
    stored = space.stored(point)
    assert stored["shape"] == "[3, 4]"
    assert space.restored(stored) == point
    assert Space.model_validate_json(space.model_dump_json()) == space
