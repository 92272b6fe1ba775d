"""Several processes: who takes what."""

import pytest

from qa import processes


@pytest.mark.parametrize(("size", "world"), [(13, 2), (1, 2), (8, 3), (5, 1)])
def test_the_shares_of_a_batch_are_the_batch(
    size: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, taken, weights = list(range(size)), [], []
    monkeypatch.setattr(processes, "WORLD", world)
    for rank in range(world):
        monkeypatch.setattr(processes, "RANK", rank)
        mine, weight = processes.my_share(batch)
        assert mine, "a process without a question would wait for nobody"
        taken += mine if weight else []
        weights.append(weight)
    assert sorted(taken) == batch
    assert sum(weights) == pytest.approx(1)
