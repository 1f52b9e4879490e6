import sys
from functools import partial

import pytest

from audioldm2_pl.errors import UserError
from data import engines, synthetic
from data.shards import write_shards


def square(number):
    return number * number


def test_results_come_in_order_and_few_inputs_are_read_ahead():
    read = []

    def inputs():
        for number in range(100):
            read.append(number)
            yield number

    for num_cores in (1, 2):
        read.clear()
        results = engines.local(square, inputs(), num_cores)
        assert [next(results) for _ in range(10)] == [number * number for number in range(10)]
        assert len(read) <= 10 + engines.AHEAD * num_cores + 1
        results.close()
    assert list(engines.local(square, [], 2)) == []


def die(number):
    import os

    os._exit(number)


def test_a_dead_worker_is_told():
    with pytest.raises(UserError, match="a worker process died"):
        list(engines.local(die, [1, 2], 2))


def test_ray_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # makes `import ray` fail
    with pytest.raises(UserError, match=r"install audioldm2-pl\[ray\]"):
        engines.count_cores("ray")


def test_a_ray_cluster_gives_the_same_bytes(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    recipes = partial(synthetic.recipes, "train", 12, 0.32)
    write_shards(recipes(), tmp_path / "local", clips_per_shard=5, num_workers=1)
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert engines.count_cores("ray") == 2
        write_shards(recipes(), tmp_path / "ray", clips_per_shard=5, engine="ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes()
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match="no Ray cluster"):
        engines.count_cores("ray")
