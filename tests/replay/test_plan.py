"""Plans run every token that is needed, once, in rows within the budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitor.replay.plan import PADDING, Plan, plan

rows_of_ids = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=12, unique=True
)


def spelled(work: Plan, row: int) -> tuple[int, ...]:
    return tuple(token for index in work.paths[row] for token in work.segments[index].ids)


@given(rows=rows_of_ids, least=st.none() | st.integers(1, 4), budget=st.integers(1, 20))
def test_every_plan_spells_its_rows(
    rows: list[tuple[int, ...]], least: int | None, budget: int
) -> None:
    work = plan(rows, batch_tokens=budget, min_shared_tokens=least)
    assert [spelled(work, index) for index in range(len(rows))] == rows
    assert sorted(i for batch in work.batches for i in batch) == list(range(len(work.segments)))
    done: set[int] = set()
    for batch in work.batches:
        sizes = [len(work.segments[index].ids) for index in batch]
        assert sum(sizes) <= budget or len(batch) == 1
        for index in batch:
            segment = work.segments[index]
            assert done.issuperset(segment.chain)
            assert segment.first == sum(len(work.segments[i].ids) for i in segment.chain)
            assert all(work.segments[i].shared for i in segment.chain)
            assert all(len(work.segments[i].ids) >= (least or 0) for i in segment.chain)
        done.update(batch)
    assert work.tokens <= sum(map(len, rows))


def test_nothing_is_run_twice_where_prefixes_are_shared() -> None:
    system, shot = tuple(range(100)), tuple(range(200, 250))
    rows = [
        *((*system, *shot, 1_000 + i, i) for i in range(5)),
        *((*system, 2_000 + i) for i in range(5)),
        (*system, *shot),
        (7,),
    ]
    work = plan(rows, batch_tokens=512, min_shared_tokens=32)
    assert work.tokens == 100 + 50 + 5 * 2 + 5 + 1
    assert [len(path) for path in work.paths] == [3] * 5 + [2] * 5 + [2, 1]


def test_short_prefixes_are_not_worth_sharing() -> None:
    rows = [(1, 2, 3, 4), (1, 2, 3, 5)]
    assert plan(rows, batch_tokens=8, min_shared_tokens=4).tokens == 8
    assert plan(rows, batch_tokens=8, min_shared_tokens=3).tokens == 5


def test_rows_are_filled_longest_first() -> None:
    rows = [(i,) * size for i, size in enumerate([3, 9, 5, 7, 1])]
    work = plan(rows, batch_tokens=10, min_shared_tokens=None)
    sizes = [[len(work.segments[i].ids) for i in batch] for batch in work.batches]
    assert sizes == [[9, 1], [7, 3], [5]]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    budget=st.integers(1, 300),
    padding=st.just(PADDING) | st.floats(0.0, 1.0),
)
def test_batches_are_of_like_length_and_within_the_budget(
    sizes: list[int], budget: int, padding: float
) -> None:
    rows = [(index,) * size for index, size in enumerate(sizes)]
    work = plan(rows, batch_tokens=budget, min_shared_tokens=None, way="batched", padding=padding)
    assert [spelled(work, index) for index in range(len(rows))] == rows
    assert sorted(i for batch in work.batches for i in batch) == list(range(len(rows)))
    for batch in work.batches:
        lengths = [len(work.segments[index].ids) for index in batch]
        places = len(batch) * max(lengths)
        assert places <= budget or len(batch) == 1
        assert places - sum(lengths) <= padding * places


def test_prompts_of_one_length_share_a_pass() -> None:
    rows = [(index,) * size for index, size in enumerate([40, 7, 40, 7, 39, 100])]
    work = plan(rows, batch_tokens=2_048, min_shared_tokens=None, way="batched")
    assert [sorted(batch) for batch in work.batches] == [[5], [0, 2, 4], [1, 3]]


def test_alone_is_a_pass_for_each_longest_first() -> None:
    rows = [(index,) * size for index, size in enumerate([3, 9, 3])]
    work = plan(rows, batch_tokens=2_048, min_shared_tokens=None, way="alone")
    assert work.batches == ((1,), (0,), (2,))
