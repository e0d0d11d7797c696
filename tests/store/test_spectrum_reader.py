import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from store.spectra_file import CREATED, HOST, MEASURES, SIZES, layout, new_writer, slabs

from rankkit.errors import SpectrumFileError
from rankkit.store import SCHEMA_VERSION, Slab, describe, read_group, read_root


def test_a_group_reads_back_as_it_was_written(finished: Path) -> None:
    arrays = read_group(finished, "gpt")
    expected = layout()
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(arrays[name], values)
    for axis, labels in expected.labels.items():
        assert arrays[axis].tolist() == list(labels)
    for index, values in slabs("gpt"):
        at = (index["seed"], 0, index["region"], index["applied_mask"], slice(None), index["layer"])
        np.testing.assert_array_equal(arrays["effective_rank"][at], values.measures["effective_rank"])
        np.testing.assert_array_equal(arrays["floor_model"][at], values.floor_model)


def test_chosen_variables_are_read_alone_and_in_order(finished: Path) -> None:
    assert list(read_group(finished, "comparison", ["gap", "bound"])) == ["gap", "bound"]


def test_an_absent_group_or_variable_is_named_with_those_that_exist(finished: Path) -> None:
    with pytest.raises(SpectrumFileError, match=r"must hold group 'bert', got gpt, unilm, comparison. Choose one"):
        read_group(finished, "bert")
    with pytest.raises(SpectrumFileError, match="gpt must hold 'sigma', got seed, step"):
        read_group(finished, "gpt", ["sigma"])


def test_more_than_the_limit_is_refused_together_and_one_by_one(finished: Path) -> None:
    assert read_group(finished, "gpt", ["stable_rank"], limit=10_000)["stable_rank"].nbytes == 96 * 8
    with pytest.raises(SpectrumFileError, match="gpt must take at most 10000 bytes in memory, got"):
        read_group(finished, "gpt", limit=10_000)
    with pytest.raises(SpectrumFileError, match=r"singular_values must take at most 1000 bytes, .*, got 4608"):
        read_group(finished, "gpt", ["stable_rank"], limit=1000)


def test_root_gives_attributes_and_texts(finished: Path) -> None:
    root = read_root(finished)
    assert root.configuration == "seed = 0\n# größer\n"
    assert root.certificate == '{"matched": true}'
    assert root.command == "rankkit spectrum runs/demo"
    assert HOST.items() <= root.attributes.items()
    assert (root.attributes["rankkit_schema"], root.attributes["created"]) == (SCHEMA_VERSION, CREATED)


def test_description_counts_matrices_methods_and_resolved_values(finished: Path) -> None:
    description = describe(finished)
    gpt, unilm = description.groups
    assert (gpt.name, unilm.name) == ("gpt", "unilm")
    assert unilm.attributes["mask"] == "prefix"
    assert gpt.matrices == 2 * 1 * 2 * 2 * 3 * 2 * 2
    assert gpt.methods == {"gram": 96}
    assert gpt.statuses == {"ok": 96}
    assert gpt.measures == MEASURES
    assert gpt.labels["region"] == tuple(SIZES)
    assert gpt.dimensions["component"] == 6
    above = sum(np.sum(values.resolved_model) for _, values in slabs("gpt"))
    assert gpt.resolved_fraction == 1
    assert gpt.resolved_model_fraction == pytest.approx(above / (48 * 6 + 48 * 4))
    assert description.size == finished.stat().st_size
    assert description.comparison is not None
    assert description.comparison.attributes["interval"] == "paired t over seeds"
    assert json.loads(json.dumps(asdict(description), default=str))["groups"][0]["matrices"] == 96


def test_failed_and_estimated_matrices_are_counted_and_verify(tmp_path: Path) -> None:
    path, nan = tmp_path / "a.h5", float("nan")
    measures = dict.fromkeys(MEASURES, nan)
    shape = (2, 1, 2, 2, 3, 2)
    leading = np.array([2.0, 1.0])
    with new_writer(path) as writer:
        group = writer.group("gpt", layout())
        failed = Slab(
            singular_values=np.full((*shape, 0), nan),
            floor_arithmetic=nan,
            floor_model=nan,
            resolved=0,
            resolved_model=0,
            method=1,
            status=3,
            measures=measures,
        )
        estimated = Slab(
            singular_values=np.broadcast_to(leading, (*shape, 2)),
            floor_arithmetic=1.5,
            floor_model=0.5,
            resolved=1,
            resolved_model=2,
            method=2,
            status=1,
            measures=measures,
        )
        group.write({"head": 0}, failed)
        group.write({"head": 1}, estimated)
    description = describe(path).groups[0]
    assert description.statuses == {"estimated": 48, "failed": 48}
    assert description.methods == {"svd": 48, "krylov": 48}
    assert description.resolved_fraction == pytest.approx(48 / 480)
