"""Groups that a folder of sampled groups has twice, and how to be rid of them.

A sampling actor whose driver died may outlive it on a cluster, and write what the next driver asks
for as well, in files of other names. Both copies answer the same requests with the same seeds, so
one is enough: that of the first file by name, whoever looks.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.pass_rates import PartKey, first_samples
from rft_ray.records import GROUP_SCHEMA, replacing


def drop_repeats(folder: Path) -> int:
    """Take out of the files what an earlier one has; how many groups (in waves: parts) that were.

    A file that has nothing else is removed.
    """
    seen: set[PartKey] = set()
    dropped = 0
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            keys = first_samples(file)
        is_new = [key not in seen for key in keys]
        seen.update(keys)
        dropped += is_new.count(False)
        if not any(is_new):
            path.unlink()
        elif not all(is_new):
            kept = pq.read_table(path, schema=GROUP_SCHEMA).filter(pa.array(is_new))
            with replacing(path) as out:
                pq.write_table(kept, out, compression="zstd")
    return dropped
