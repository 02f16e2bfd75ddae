"""Ctrl-C waits for a safe instant."""

import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from models import classifier, normal
from torch import Tensor

import pylandscape as pl
from pylandscape.engines.interrupts import DeferredInterrupt


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_it_waits_for_the_end() -> None:
    reached = False

    def work() -> None:
        nonlocal reached
        with DeferredInterrupt():
            press()
            reached = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached


def test_check_acts_and_the_usual_handler_comes_back() -> None:
    usual, interrupt = signal.getsignal(signal.SIGINT), DeferredInterrupt()
    with interrupt:
        interrupt.check()
        press()
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
    assert signal.getsignal(signal.SIGINT) is usual
    with pytest.raises(KeyboardInterrupt):
        press()


def test_pressed_twice_it_acts_at_once() -> None:
    interrupt = DeferredInterrupt()
    with interrupt:
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


def test_contexts_may_be_nested() -> None:
    usual, interrupt = signal.getsignal(signal.SIGINT), DeferredInterrupt()

    def work() -> None:
        with interrupt:
            with interrupt:
                press()
            assert signal.getsignal(signal.SIGINT) is not usual

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_handler_of_the_users_own_is_called() -> None:
    calls = []
    usual = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        with DeferredInterrupt():
            press()
            assert not calls
        assert calls == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, usual)


def test_other_threads_are_left_alone() -> None:
    usual, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with DeferredInterrupt():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [usual]


def test_an_evaluation_stops_at_the_end_of_a_batch() -> None:
    calls, wanted = 0, -1

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == wanted:
            press()
        return F.cross_entropy(outputs, targets, reduction="none")

    objective = classifier(loss=loss, batch_size=5)
    points = objective.center + normal(4, objective.space.size)
    expected = objective.evaluate(points)["loss"]
    calls, wanted = 0, 2 * 3 + 2  # the second of three batches of the third point
    with pytest.raises(pl.Interrupted) as caught:
        objective.evaluate(points)
    assert calls == wanted
    assert caught.value.done == 2
    assert torch.equal(caught.value.values["loss"][:2], expected[:2])
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
