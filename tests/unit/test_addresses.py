"""The address book: whom the answers of the last while have named."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from psycopg2_pool2.addresses import NOBODY, AddressBook, Answer, Place


def answer(*addresses: str, ttl: float = 5.0, complete: bool = True) -> Answer:
    return Answer(tuple(map(Place, addresses)), ttl, complete)


def known(book: AddressBook) -> list[str]:
    return [place.address for place in book.known()]


def waits_for(book: AddressBook) -> tuple[bool, bool]:
    """Return whether it waits for a replacement, and for any reply."""
    return book.awaits_replacement, book.awaits_reply


@pytest.fixture
def book() -> AddressBook:
    return AddressBook(address_timeout=60.0)


def test_a_new_book_knows_nobody_and_wants_to_ask(book: AddressBook) -> None:
    assert book.known() == ()
    assert book.refresh_due(0.0)


def test_answers_with_one_address_at_a_time_are_taken_together(book: AddressBook) -> None:
    for now, address in enumerate(["a", "b", "c", "a", "b", "c"]):
        book.learn(answer(address), now * 5.0)
    assert known(book) == ["a", "b", "c"]


def test_an_address_leaves_when_it_was_not_named_for_a_while(book: AddressBook) -> None:
    book.learn(answer("a", "b"), 0.0)
    book.learn(answer("b"), 60.0)
    assert known(book) == ["a", "b"]
    book.learn(answer("b"), 60.1)
    assert known(book) == ["b"]


@pytest.mark.parametrize(
    ("address_timeout", "ttl", "stays"),
    [
        (60.0, 5.0, 60.0),
        (60.0, 100.0, 200.0),
        (60.0, 300.0, 600.0),
        (60.0, 86400.0, 600.0),
        (900.0, 86400.0, 900.0),
        (0.0, 5.0, 10.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_address_stays_for_its_timeout_or_twice_its_ttl_up_to_ten_minutes(
    address_timeout: float, ttl: float, stays: float
) -> None:
    book = AddressBook(address_timeout)
    book.learn(answer("a", ttl=ttl), 0.0)
    book.learn(answer("b"), stays)
    assert known(book) == ["a", "b"]
    book.learn(answer("b"), stays + 0.1)
    assert known(book) == ["b"]


def test_nothing_leaves_while_nobody_answers_nor_at_the_first_answer(book: AddressBook) -> None:
    book.learn(answer("a"), 0.0)
    book.learn(answer("b"), 5.0)
    for now in range(10, 10_000, 10):
        book.failed(float(now))
        assert known(book) == ["a", "b"]
    book.learn(answer("b"), 10_000.0)
    assert known(book) == ["a", "b"], "only five seconds of answers have not named it"
    book.learn(answer("b"), 10_055.0)
    assert known(book) == ["a", "b"]
    book.learn(answer("b"), 10_055.1)
    assert known(book) == ["b"]


def test_an_answer_that_names_nobody_lets_the_known_expire(book: AddressBook) -> None:
    book.learn(answer("a"), 0.0)
    book.learn(NOBODY, 59.0)
    assert known(book) == ["a"]
    book.learn(NOBODY, 61.0)
    assert known(book) == []


def test_what_an_incomplete_answer_leaves_out_stays(book: AddressBook) -> None:
    book.learn(answer("a", "b"), 0.0)
    for now in (50.0, 100.0, 150.0):
        book.learn(answer("a", complete=False), now)
    assert known(book) == ["a", "b"]
    book.learn(answer("a"), 211.0)
    assert known(book) == ["a"]


@pytest.mark.parametrize(("ttl", "pause"), [(0.0, 1.0), (0.5, 1.0), (5.0, 5.0), (3600.0, 60.0)])
def test_a_name_is_asked_for_again_as_its_ttl_ends(
    book: AddressBook, ttl: float, pause: float
) -> None:
    book.learn(answer("a", ttl=ttl), 100.0)
    assert book.refresh_at == 100.0 + pause
    assert not book.refresh_due(100.0 + pause - 0.01)
    assert book.refresh_due(100.0 + pause)


def test_after_failures_it_is_asked_for_again_in_growing_pauses(book: AddressBook) -> None:
    pauses = []
    for _ in range(2000):
        book.failed(100.0)
        pauses.append(book.refresh_at - 100.0)
    assert pauses[:6] == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert pauses[-1] == 15.0
    book.learn(answer("a"), 200.0)
    book.failed(205.0)
    assert book.refresh_at == 206.0, "an answer ends the row"


def test_another_port_is_another_place_and_another_weight_is_not(book: AddressBook) -> None:
    book.learn(Answer((Place("a", 1), Place("a", 2)), 5.0), 0.0)
    book.learn(Answer((Place("a", 2, priority=7, weight=3), Place("a", 3)), 5.0), 1.0)
    assert [place.port for place in book.known()] == [1, 2, 3]
    assert book.known()[1] == Place("a", 2, priority=7, weight=3), "the latest is kept"


# -- after a drain -----------------------------------------------------------


def test_started_anew_the_next_answer_replaces_all_that_was_known(book: AddressBook) -> None:
    book.learn(answer("a", "b"), 0.0)
    book.start_anew()
    assert book.refresh_due(0.0)
    assert known(book) == ["a", "b"]
    assert waits_for(book) == (True, True)
    book.learn(answer("c"), 1.0, book.generation)
    assert known(book) == ["c"]
    assert waits_for(book) == (False, False)
    assert book.refresh_at == 6.0
    book.learn(answer("d"), 6.0, book.generation)
    assert known(book) == ["c", "d"], "it is one answer that decides alone"


def test_lookup_that_began_before_the_start_replaces_nothing(book: AddressBook) -> None:
    book.learn(answer("old"), 0.0)
    before = book.generation
    book.start_anew()
    book.learn(answer("old", "older"), 1.0, before)
    assert known(book) == ["old", "older"]
    assert book.awaits_replacement
    assert book.awaits_reply
    assert book.refresh_due(1.0)
    book.failed(1.0, before)
    assert book.awaits_reply
    assert book.refresh_due(1.0)
    book.learn(answer("new"), 2.0, book.generation)
    assert known(book) == ["new"]


def test_incomplete_or_empty_answer_and_silence_replace_nothing(book: AddressBook) -> None:
    book.learn(answer("a", "b"), 0.0)
    book.start_anew()
    book.failed(1.0, book.generation)
    assert waits_for(book) == (True, False)
    assert book.refresh_at == 2.0
    book.learn(answer("c", complete=False), 2.0, book.generation)
    assert known(book) == ["a", "b", "c"]
    book.learn(NOBODY, 7.0, book.generation)
    assert known(book) == ["a", "b", "c"]
    assert book.awaits_replacement
    book.learn(answer("d"), 12.0, book.generation)
    assert known(book) == ["d"]


def test_silence_before_the_start_does_not_count_either(book: AddressBook) -> None:
    book.learn(answer("a"), 0.0)
    book.failed(5.0)
    book.start_anew()
    book.learn(NOBODY, 10_000.0, book.generation)
    assert known(book) == ["a"]


def test_started_anew_twice_only_an_answer_to_the_last_question_counts(book: AddressBook) -> None:
    book.learn(answer("a"), 0.0)
    book.start_anew()
    first = book.generation
    book.start_anew()
    book.learn(answer("b"), 1.0, first)
    assert known(book) == ["a", "b"]
    book.learn(answer("c"), 2.0, book.generation)
    assert known(book) == ["c"]


def test_new_book_that_is_started_anew_takes_the_first_answer(book: AddressBook) -> None:
    book.start_anew()
    book.learn(answer("a"), 1.0, book.generation)
    assert known(book) == ["a"]
    assert not book.awaits_replacement


ADDRESSES = ["a", "b", "c", "d"]


class BookModel(RuleBasedStateMachine):
    """For each address how many seconds of answers have passed since one named it."""

    def __init__(self) -> None:
        super().__init__()
        self.book = AddressBook(60.0)
        self.now = 1000.0
        self.unnamed: dict[str, float] = {}  # in the order in which they came
        self.limits: dict[str, float] = {}
        self.since = 0.0  # the last answer
        self.silent = False
        self.replaces = False  # started anew, and no complete answer since

    @rule(seconds=st.integers(0, 400))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.since += seconds

    @rule(
        named=st.lists(st.sampled_from(ADDRESSES)),
        ttl=st.sampled_from([0.0, 1.0, 5.0, 50.0, 300.0, 1000.0]),
        complete=st.booleans(),
    )
    def learn(self, named: list[str], ttl: float, complete: bool) -> None:
        self.book.learn(answer(*named, ttl=ttl, complete=complete), self.now)
        if self.replaces and named and complete:
            self.unnamed.clear()
            self.replaces = False
        if complete and not self.silent:
            for address in self.unnamed:
                self.unnamed[address] += self.since
        for address in named:
            self.unnamed[address] = 0.0
            self.limits[address] = max(60.0, min(2.0 * ttl, 600.0))
        for address in ADDRESSES:
            if self.unnamed.get(address, -1.0) > self.limits.get(address, 0.0):
                del self.unnamed[address]
        self.since = 0.0
        self.silent = False
        assert self.book.refresh_at == self.now + min(max(ttl, 1.0), 60.0)

    @rule()
    def start_anew(self) -> None:
        before = self.book.known()
        self.book.start_anew()
        self.replaces = True
        assert self.book.known() == before
        assert self.book.refresh_due(self.now)

    @rule()
    def fail(self) -> None:
        before = self.book.known()
        self.book.failed(self.now)
        self.silent = True
        assert self.book.known() == before
        assert self.now + 1.0 <= self.book.refresh_at <= self.now + 15.0

    @invariant()
    def it_waits_for_a_complete_answer_after_a_start(self) -> None:
        assert self.book.awaits_replacement == self.replaces
        assert self.replaces or not self.book.awaits_reply

    @invariant()
    def the_known_are_those_named_lately(self) -> None:
        assert known(self.book) == list(self.unnamed)


TestBookModel = BookModel.TestCase
TestBookModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
