import os
import signal
import threading

import keras
import numpy as np
import pytest

from tfrec.callbacks import Display, Interruption, StepWatch

pytestmark = pytest.mark.jax


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_asks_and_the_old_handler_comes_back(number):
    before, interruption = signal.getsignal(number), Interruption()
    with interruption.heeded():
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested
    assert signal.getsignal(number) is before


def test_second_signal_stops_at_once():
    interruption = Interruption()
    with interruption.heeded():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_cannot_handle_signals_and_trains_all_the_same():
    found = []

    def work():
        with Interruption().heeded():
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def watch(**options):
    return StepWatch(keras.Model(), Interruption(), Display(shown=False, epochs=1, batch_size=4), **options)


def test_first_loss_that_is_not_finite_is_kept_whatever_the_order():
    step = watch(first=10)
    for batch, loss in ((0, 1.0), (3, np.nan), (2, np.inf), (4, np.nan)):
        step.on_train_batch_end(batch, {"loss": loss})
    assert step.not_finite == 13
    step.trained.stop_training = False
    step.on_train_batch_begin(5)
    assert step.trained.stop_training


def test_interruption_lets_the_step_finish():
    step = watch()
    step.trained.stop_training = False
    step.on_train_batch_begin(0)
    assert not step.trained.stop_training
    step.interruption.requested = True
    step.on_train_batch_begin(1)
    assert step.trained.stop_training


def test_display_shows_lines_on_stderr_alone(capsys):
    display = Display(shown=True, epochs=3, batch_size=4)
    with display.epoch(1, 0, 10):
        display.step(5, 0.25)
        assert display.speed() > 0
        display.line("epoch 1/3  loss 0.2500")
    Display(shown=False, epochs=3, batch_size=4).line("hidden")
    captured = capsys.readouterr()
    assert captured.err == "epoch 1/3  loss 0.2500\n"
    assert captured.out == ""
