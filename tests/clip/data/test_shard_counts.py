"""Counts that other tools leave beside shards; nonsense counts for nothing."""

import json

import pytest

from steering.clip.data.shard_counts import ShardCounts


def test_each_kind_of_side_file_is_read_and_the_first_one_wins(tmp_path):
    (tmp_path / "00001_stats.json").write_text(json.dumps({"successes": 7}))
    (tmp_path / "00002_stats.json").write_text(json.dumps({"successes": 8}))
    (tmp_path / "sizes.json").write_text(json.dumps({"00001.tar": 5, "00003.tar": 9}))
    counts = [ShardCounts().count(str(tmp_path / f"0000{i}.tar")) for i in (1, 2, 3, 4)]
    assert counts == [5, 8, 9, None]
    assert ShardCounts().count("pipe:cat 00001.tar") is None


@pytest.mark.parametrize("text", ["", "[]", '{"a.tar": "5"}', '{"a.tar": -1}', '{"a.tar": true}'])
def test_what_is_no_count_is_not_believed(tmp_path, text):
    (tmp_path / "sizes.json").write_text(text)
    (tmp_path / "a_stats.json").write_text(text.replace("a.tar", "successes"))
    assert ShardCounts().count(str(tmp_path / "a.tar")) is None
