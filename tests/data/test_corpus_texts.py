from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs.data import corpus_builder
from ray_jobs.data.corpus_builder import CorpusBuilder
from ray_jobs.data.parquet_files import parquet_writer, part_url
from ray_jobs.data.tasks import CONVERSATION_SCHEMA, CONVERSATIONS

GROUP_ROWS, NUM_GROUPS, NUM_FILES = 5, 3, 2


@pytest.fixture
def builder(tmp_path: Path) -> CorpusBuilder:
    for file in range(NUM_FILES):
        with parquet_writer(part_url(f"{tmp_path}/{CONVERSATIONS}", file), CONVERSATION_SCHEMA) as writer:
            for first in range(0, GROUP_ROWS * NUM_GROUPS, GROUP_ROWS):
                texts = [[f"{file}-{row}", "reply"] for row in range(first, first + GROUP_ROWS)]
                columns = [list(range(GROUP_ROWS)), [1] * GROUP_ROWS, [["user", "assistant"]] * GROUP_ROWS, texts]
                writer.write_table(pa.table(columns, schema=CONVERSATION_SCHEMA))
    builder = CorpusBuilder.__new__(CorpusBuilder)
    builder._url = str(tmp_path)
    return builder


@pytest.mark.parametrize("chosen", [range(30), range(0, 30, 7), [4, 5, 29], [16], []])
def test_texts_are_those_of_the_chosen_lines(builder: CorpusBuilder, chosen: list[int]) -> None:
    rows = GROUP_ROWS * NUM_GROUPS
    keys = pa.table({"file": np.repeat(np.arange(NUM_FILES), rows), "position": np.tile(np.arange(rows), NUM_FILES)})
    expected = [(index, f"{index // rows}-{index % rows}\nreply") for index in chosen]
    assert list(builder._read_texts(keys, list(chosen))) == expected


def test_one_row_group_of_text_is_in_memory(builder: CorpusBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(table: pa.Table) -> list[object]:
        seen.append(table.num_rows)
        return read_conversations(table)

    read_conversations = corpus_builder.read_conversations
    monkeypatch.setattr(corpus_builder, "read_conversations", noted)
    keys = pa.table({"file": [0] * 15, "position": list(range(15))})
    assert len(list(builder._read_texts(keys, list(range(15))))) == 15
    assert seen == [GROUP_ROWS] * NUM_GROUPS
