import io

import pytest

from advtrain.progress import Progress, line


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Unread:
    def __float__(self):
        raise AssertionError("a value was waited for though nobody looks")


def test_a_pipe_gets_plain_lines_and_no_value_is_read():
    stream = io.StringIO()
    with Progress(3, "training", "epochs", stream=stream) as outer:
        with Progress(100, "epoch 1", "steps", within=outer) as inner:
            for _ in range(100):
                inner.advance(1, loss=Unread())
        outer.advance()
        outer.say("epoch 1  [loss] 0.5")
    assert stream.getvalue() == "epoch 1  [loss] 0.5\n"


def test_a_terminal_gets_bars_and_reads_values_a_few_times(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    reads = []

    class Counted:
        def __float__(self):
            reads.append(1)
            return 0.25

    stream = Terminal()
    with (
        Progress(2, "training [x]", "epochs", stream=stream) as outer,
        Progress(1000, "epoch 1", "examples", within=outer) as inner,
    ):
        for _ in range(1000):
            inner.advance(1, loss=Counted())
        outer.say("kept")
    assert "training [x]" in stream.getvalue() and "kept" in stream.getvalue()
    assert 1 <= len(reads) < 20


def test_an_interrupt_leaves_the_terminal_as_it_was(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(2, "training", stream=stream) as bar:
        bar.advance()
        raise KeyboardInterrupt
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_a_dumb_terminal_counts_as_a_pipe(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(2, "training", stream=stream) as bar:
        bar.advance()
    assert stream.getvalue() == ""


def test_a_line_says_accuracies_in_percent():
    told = line({"epoch": 3, "train_loss": 0.53125, "val_acc": 0.8125, "name": "pgd"})
    assert told == "epoch 3  train_loss 0.5312  val_acc 81.25 %  name pgd"
