#!/usr/bin/env bash
# The corpus of the shipped weights: demo worlds of other seeds than the demo's own, over the seasons, as cubes.
# Usage: benchmarks/weights.sh FOLDER PYTHON
set -euo pipefail
folder="$1" python="${2:-python}"
mkdir -p "$folder"
seed=0
for start in 2019-02-01 2019-04-15 2019-07-01 2019-09-15 2020-02-01 2020-05-01 2020-08-01 2020-03-01 2020-10-15 2020-02-15 \
  2019-03-15 2019-05-15 2019-08-15 2019-11-01 2020-04-01 2020-06-15; do
  seed=$((seed + 1))
  last=$(date -d "$start + 103 days" +%F)
  [ -e "$folder/run-$seed/modis.zarr" ] && continue
  "$python" -m pipelines.demo --out "$folder/world-$seed" --seed "$seed" --size 256 --start "$start" --days 104
  "$python" -m pipelines.cubes --catalog "$folder/world-$seed/catalog.toml" --dates "$start/$last" --bracket-days 1 \
    --out "$folder/run-$seed"
done
