"""Which sample is in which row of the cache, without a model: a cache of numbers follows what the graphs write."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.generation.scheduler import Prefill, RowScheduler

NOTHING = -1
PAD = 7


class Job(NamedTuple):
    """Sizes of the cache, and samples: a prompt, and the tokens that are drawn for it."""

    rows: int
    sections: int
    chunks: int  # of a launch and section
    size: int  # tokens of a chunk
    longest: int
    most: int  # tokens drawn
    samples: Sequence[tuple[tuple[int, ...], int]]

    def scheduler(self) -> RowScheduler:
        return RowScheduler(self.rows, self.sections, self.chunks, self.size, self.slots, PAD, max(1, self.rows // 4))

    @property
    def slots(self) -> int:
        return self.longest + self.most


class Launch(NamedTuple):
    """One of the two graphs, or samples that are admitted; and those that were complete after it."""

    kind: str
    admitted: tuple[int, ...]
    ended: tuple[int, ...]


@st.composite
def jobs(draw) -> Job:
    sections, longest, most = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 5))
    pool = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=longest), min_size=1, max_size=4))
    sample = st.tuples(st.sampled_from([tuple(prompt) for prompt in pool]), st.integers(1, most))
    return Job(
        sections * draw(st.integers(1, 6)),
        sections,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        longest,
        most,
        draw(st.lists(sample, max_size=20)),
    )


class Cache:
    """What the graphs leave in every slot, here the token itself; rows are numbered through all sections."""

    def __init__(self, job: Job):
        self.job, self.section_rows = job, job.rows // job.sections
        self.slots = np.full((job.rows, job.slots), NOTHING)

    def line(self, row: int, pair: np.ndarray) -> np.ndarray:
        """The slots of a row that a (row, slot) of its section's own numbers points to; nobody writes elsewhere."""
        section, own = divmod(row, self.section_rows)
        assert pair[0] == own, (row, pair)
        assert 0 <= pair[1] < self.job.slots
        return self.slots[section * self.section_rows + pair[0]]

    def fill(self, prefill: Prefill) -> None:
        """Write chunks into the rows that get them; what stands before one must be where it looks."""
        job, size, chunks = self.job, self.job.size, self.job.sections * self.job.chunks
        assert prefill.tokens_QS.shape == (chunks, size)
        assert prefill.slots_QX.shape == (chunks, 1 + 3 * self.section_rows * size)
        assert prefill.first_Q.shape == (chunks,)
        assert {x.dtype for x in prefill} == {np.dtype(np.int32)}
        tokens = prefill.tokens_QS.reshape(job.sections, -1)
        written = []
        for number, (_, *slots) in enumerate(prefill.slots_QX.tolist()):  # all of them before any is looked at
            section, offered = number // job.chunks, self.section_rows * size
            for i, token in enumerate(slots[:offered]):
                assert 0 <= token < job.chunks * size
                row, pair = i // size, slots[offered + 2 * i : offered + 2 * i + 2]
                self.line(section * self.section_rows + row, pair)[pair[1]] = tokens[section, token]
                if pair[1] != job.slots - 1:
                    written.append((section * self.section_rows + row, pair[1], number))
        assert len({(row, slot) for row, slot, _ in written}) == len(written)
        for row, slot, number in written:
            looked_at = number // job.chunks * self.section_rows + prefill.slots_QX[number, 0]
            assert prefill.first_Q[number] <= slot < prefill.first_Q[number] + size
            np.testing.assert_array_equal(self.slots[looked_at, : slot + 1], self.slots[row, : slot + 1])


def run(job: Job) -> Iterator[Launch]:
    """Do with a scheduler what the engine does, and check every launch."""
    scheduler, cache, queue = job.scheduler(), Cache(job), deque(range(len(job.samples)))
    prompts = [prompt for prompt, _ in job.samples]
    texts = [list(prompt) for prompt in prompts]  # as far as they are known
    while queue or len(scheduler.active_rows):
        if scheduler.should_admit(len(queue)):
            before, occupied, first = set(scheduler.active_rows), scheduler.sample.copy(), list(queue)
            free = job.rows - len(before)
            assert free >= min(len(queue), max(1, job.rows // 4))
            scheduler.admit(queue, prompts)
            admitted = sorted(set(scheduler.active_rows) - before)
            assert len(admitted) == min(free, len(first))
            np.testing.assert_array_equal(scheduler.sample[list(before)], occupied[list(before)])
            assert (
                sorted(scheduler.sample[admitted]) == first[: len(admitted)] and list(queue) == first[len(admitted) :]
            )
            yield Launch("seat", tuple(first[: len(admitted)]), ())
            live = cache.slots[list(before), :-1].copy()
            while scheduler.pending_rows:
                assert set(scheduler.pending_rows) <= set(admitted)
                cache.fill(scheduler.next_prefill())
                yield Launch("fill", (), ())
            np.testing.assert_array_equal(cache.slots[list(before), :-1], live)  # those who sit are left alone
        step(job, scheduler, cache, texts)
        ended = [row for row in scheduler.active_rows if scheduler.drawn[row] == job.samples[scheduler.sample[row]][1]]
        complete = tuple(int(sample) for sample in scheduler.sample[ended])
        scheduler.release(np.array(ended, int))
        assert not set(ended) & set(scheduler.active_rows)
        yield Launch("token", (), complete)
    assert [len(text) - len(prompt) for text, prompt in zip(texts, prompts, strict=True)] == [n for _, n in job.samples]


def step(job: Job, scheduler: RowScheduler, cache: Cache, texts: list[list[int]]) -> None:
    """Run a token of every row: it is written and attends to all slots up to its own."""
    row_slots, positions = scheduler.token_slots()
    assert (row_slots.shape, positions.shape) == ((job.rows, 2), (job.rows,))
    assert row_slots.dtype == positions.dtype == scheduler.token.dtype == np.int32
    for row, pair in enumerate(row_slots):
        cache.line(row, pair)[pair[1]] = scheduler.token[row]
        sample = scheduler.sample[row]
        if sample == NOTHING:
            assert (pair[1], positions[row]) == (job.slots - 1, 0)  # what it writes is not kept
            continue
        assert pair[1] == positions[row] == len(texts[sample]) - 1 < job.slots - 1
        assert cache.slots[row, : len(texts[sample])].tolist() == texts[sample]
    rows = scheduler.active_rows
    assert len(set(scheduler.sample[rows])) == len(rows)
    drawn = np.array([100 + 10 * sample + len(texts[sample]) for sample in scheduler.sample[rows]], np.int32)
    for sample, token in zip(scheduler.sample[rows], drawn, strict=True):
        texts[sample].append(int(token))
    scheduler.token[rows], scheduler.drawn[rows] = drawn, scheduler.drawn[rows] + 1


@settings(max_examples=300, deadline=None)
@given(jobs())
def test_every_sample_sits_once_and_sees_its_own_text_alone(job):
    launches = list(run(job))
    assert [sample for launch in launches for sample in launch.admitted] == list(range(len(job.samples)))
    ended = [sample for launch in launches for sample in launch.ended]
    assert sorted(ended) == list(range(len(job.samples)))


@settings(max_examples=200, deadline=None)
@given(jobs())
def test_a_chunk_is_computed_once_for_all_who_sit_down_in_a_section(job):
    scheduler, queue = job.scheduler(), deque(range(len(job.samples)))
    prompts = [prompt for prompt, _ in job.samples]
    scheduler.admit(queue, prompts)
    # Nobody holds anything yet. Of each section, prompts up to every token, and up to every chunk's end.
    tokens: list[set[tuple[int, ...]]] = [set() for _ in range(job.sections)]
    chunks: list[set[tuple[int, ...]]] = [set() for _ in range(job.sections)]
    for row in scheduler.active_rows:
        section, text = row * job.sections // job.rows, prompts[scheduler.sample[row]][:-1]
        tokens[section] |= {text[: end + 1] for end in range(len(text))}
        chunks[section] |= {text[: end + job.size] for end in range(0, len(text), job.size)}
    launches = 0
    while scheduler.pending_rows:
        scheduler.next_prefill()
        launches += 1
    least = max(-(-len(each) // (job.size * job.chunks)) for each in tokens)
    # Fewer than the latter, where a whole prompt is the beginning of another: that one's chunks then begin behind it.
    assert least <= launches <= max(-(-len(each) // job.chunks) for each in chunks)


def test_a_prompt_that_is_the_beginning_of_another_is_computed_for_both():
    assert launches_of(Job(2, 1, 1, 2, 4, 1, [((0, 0), 1), ((0, 0, 0, 0), 1)]))["fill"] == 2


def same(count: int, length: int = 2, tokens: int = 1) -> list[tuple[tuple[int, ...], int]]:
    """Samples of one prompt."""
    return [(tuple(range(length)), tokens)] * count


def different(count: int, lengths: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
    """Samples of prompts that differ, for so many tokens each."""
    return [((number, 1), lengths[number % len(lengths)]) for number in range(count)]


@pytest.mark.parametrize(
    ("rows", "patience", "waiting", "free", "worth"),
    [
        *((8, 2, 5, 1, False), (8, 2, 5, 2, True), (8, 2, 1, 1, True), (8, 2, 0, 8, False)),
        *((8, 1, 5, 1, True), (3, 1, 9, 1, True), (9, 1, 9, 0, False)),
    ],
)
def test_the_rows_that_are_waited_for_or_all_who_wait_are_worth_a_launch(rows, patience, waiting, free, worth):
    scheduler = RowScheduler(rows, 1, rows, 2, 6, PAD, patience)
    scheduler.admit(deque(range(rows - free)), [(1, 2)] * rows)
    assert len(scheduler.active_rows) == rows - free
    assert scheduler.should_admit(waiting) == worth


def test_a_row_is_given_to_the_next_sample_at_once():
    """Three rows; the second sample is the shortest. Later ones come as rows are freed, in the order of the queue."""
    job = Job(3, 1, 3, 1, 2, 9, different(6, [5, 2, 4, 3, 1, 2]))
    kinds = [(launch.kind, launch.admitted, launch.ended) for launch in run(job) if launch.kind != "fill"]
    assert kinds == [
        ("seat", (0, 1, 2), ()),
        ("token", (), ()),
        ("token", (), (1,)),
        ("seat", (3,), ()),
        ("token", (), ()),
        ("token", (), (2,)),
        ("seat", (4,), ()),
        ("token", (), (0, 3, 4)),
        ("seat", (5,), ()),
        ("token", (), ()),
        ("token", (), (5,)),
    ]


def launches_of(job: Job) -> dict[str, int]:
    kinds = [launch.kind for launch in run(job)]
    return {kind: kinds.count(kind) for kind in ("fill", "token")}


def test_samples_of_one_prompt_take_one_launch_and_others_as_many_as_their_chunks_need():
    assert launches_of(Job(8, 1, 1, 1, 2, 3, same(8))) == {"fill": 1, "token": 1}
    assert launches_of(Job(8, 1, 2, 1, 2, 3, different(8, [2]))) == {"fill": 4, "token": 2}
    assert launches_of(Job(8, 2, 1, 1, 2, 3, different(8, [2]))) == {"fill": 4, "token": 2}  # each section computes one
    assert launches_of(Job(8, 2, 1, 1, 2, 3, same(8))) == {"fill": 1, "token": 1}
    assert launches_of(Job(8, 1, 2, 2, 8, 3, same(8, 8))) == {"fill": 2, "token": 1}  # seven tokens in chunks of two


def test_what_a_row_holds_of_a_prompt_is_not_computed_again():
    """Eight tokens of ten are those of the prompt before; then all of them; then none, though the rest is the same."""
    texts = [(*range(10), 0), (*range(8), 20, 21, 0), (*range(8), 20, 21, 5), (30, *range(1, 8), 20, 21, 5)]
    assert launches_of(Job(1, 1, 1, 2, 11, 2, [(text, 1) for text in texts]))["fill"] == 5 + 1 + 0 + 5


def test_a_sample_is_given_the_row_that_holds_most_of_its_prompt():
    prompts = [(1, 1, 1, 0), (2, 2, 2, 0), (3, 3, 3, 0), (2, 2, 5, 0), (3, 3, 3, 0), (1, 6, 0)]
    scheduler = RowScheduler(3, 1, 3, 3, 9, PAD, 1)
    scheduler.admit(deque([0, 1, 2]), prompts)
    held = scheduler.sample.copy()
    scheduler.next_prefill()
    assert not scheduler.pending_rows
    scheduler.release(scheduler.active_rows)
    scheduler.admit(deque([3, 4, 5]), prompts)
    assert {int(old): int(new) for old, new in zip(held, scheduler.sample, strict=True)} == {1: 3, 2: 4, 0: 5}


def test_sections_are_filled_evenly():
    scheduler = RowScheduler(8, 2, 4, 2, 6, PAD, 2)
    scheduler.admit(deque(range(4)), [(number,) for number in range(4)])
    assert (scheduler.sample.reshape(2, 4) != NOTHING).sum(1).tolist() == [2, 2]
    scheduler.release(np.flatnonzero(scheduler.sample.reshape(2, 4)[0] != NOTHING))
    scheduler.admit(deque([4, 5]), [(number,) for number in range(6)])
    assert (scheduler.sample.reshape(2, 4)[0] != NOTHING).sum() == 2  # the emptier one


@pytest.mark.parametrize("samples", [64, 256])
def test_rows_work_until_the_queue_is_empty(samples):
    """Lengths differ by a factor of eight. In batches every row would wait for the longest of its batch."""
    rng = np.random.default_rng(samples)
    lengths = rng.integers(1, 9, samples).tolist()
    steps = launches_of(Job(16, 1, 4, 1, 2, 8, different(samples, lengths)))["token"]
    batches = sum(max(lengths[first : first + 16]) for first in range(0, samples, 16))
    assert sum(lengths) / 16 <= steps < 0.8 * batches


def test_a_sample_of_one_token_needs_nothing_in_the_cache():
    """The prompt's only token is the first that the token graph is given."""
    job = Job(2, 1, 2, 1, 1, 2, [((5,), 1), ((6,), 2), ((8,), 1)])
    scheduler = job.scheduler()
    scheduler.admit(deque([0, 1]), [prompt for prompt, _ in job.samples])
    assert not scheduler.pending_rows
    assert scheduler.token.tolist() == [5, 6]
    assert launches_of(job) == {"fill": 0, "token": 2}
