import numpy as np
import pytest

from tests.tfrec.objectives.reference import make_batch, targets
from tfrec.objectives.packing import ItemRows, pack_positions

pytestmark = pytest.mark.jax


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_packed_positions_hold_every_target_once(seed, num_steps):
    batch = make_batch(seed)
    packed = pack_positions(batch, num_steps)
    length = batch["item"].shape[1] - 1
    for step in range(num_steps):
        mask = packed["position_mask"][:, step]
        found = zip(packed["position"][mask], packed["target_item"][mask, step], strict=True)
        found = [(position // length, position % length, item) for position, item in found]
        assert found == targets(batch, step + 1)


def test_packed_positions_come_in_few_sizes():
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(50):
        item = rng.integers(2, 9, (32, 17)) * (np.arange(17) < rng.integers(2, 18, (32, 1)))
        sizes.add(len(pack_positions({"item": item, "target_mask": item > 0}, 1)["position"]))
    assert sizes <= {64 * eighth for eighth in range(1, 9)}


def test_batch_without_targets_packs_to_masked_positions():
    batch = make_batch()
    batch["target_mask"][:] = False
    packed = pack_positions(batch, 2)
    assert len(packed["position"]) == 2  # an eighth of 3 x 5, rounded up
    assert not packed["position_mask"].any()
    assert not packed["target_item"].any()


def test_item_rows_number_each_real_item_once():
    ids = np.array([[5, 1, 7], [0, 5, 2]])
    rows = ItemRows([ids, np.array([8])], num_items=9)
    assert rows.items[:4].tolist() == [2, 5, 7, 8]
    assert not rows.items[4:].any()
    assert rows.rows(ids).tolist() == [[1, -1, 2], [-1, 1, 0]]
    assert rows.rows(np.array([3])).tolist() == [-1]


def test_item_rows_come_in_four_sizes_an_octave():
    sizes = {len(ItemRows([np.arange(2, 2 + count)], num_items=600).items) for count in range(257, 513)}
    assert sizes == {320, 384, 448, 512}
