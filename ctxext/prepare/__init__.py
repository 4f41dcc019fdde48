"""Text, JSONL, Parquet and saved datasets to token files: many workers, resumable, one result.

The result is a pure function of the files, the tokenizer and the recipe. Files are cut into chunks;
each chunk becomes a shard under OUT/work, which is whole or absent; when all shards are there they
are joined in order. So the bytes are the same for any number of workers and however often a run was
killed. The disk holds the tokens twice while they are joined.
"""

from ctxext.prepare.encode import Recipe as Recipe
from ctxext.prepare.run import check as check
from ctxext.prepare.run import describe as describe
from ctxext.prepare.run import prepare as prepare
