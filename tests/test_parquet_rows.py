"""Rows of large Parquet files come in the order of the file, and what was read is given back."""

from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.parquet import row_batches

NUM_GROUPS, GROUP_ROWS, NUM_BYTES = 64, 64, 16_384


def test_a_file_of_many_row_groups_is_read_in_the_memory_of_one(tmp_path):
    path = tmp_path / "rows.parquet"
    schema = pa.schema([("number", pa.int64()), ("turns", pa.list_(pa.string()))])
    random = Random(0)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in range(NUM_GROUPS):
            numbers = [group * GROUP_ROWS + row for row in range(GROUP_ROWS)]
            turns = [[random.randbytes(NUM_BYTES // 2).hex()] for _ in numbers]
            writer.write_table(pa.table({"number": numbers, "turns": turns}, schema=schema))
    before, most, numbers = pa.total_allocated_bytes(), 0, []
    with pq.ParquetFile(path) as file:
        for batch in row_batches(file, 50, ["number", "turns"]):
            assert batch.num_rows <= 50
            assert batch.schema.names == ["number", "turns"]
            numbers += batch["number"].to_pylist()
            most = max(most, pa.total_allocated_bytes() - before)
    assert numbers == list(range(NUM_GROUPS * GROUP_ROWS))
    assert most < 10 * GROUP_ROWS * NUM_BYTES
