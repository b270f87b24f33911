from .latency import LatencyTable as LatencyTable
from .latency import measure_latency as measure_latency
from .prefill import bench_prefill as bench_prefill
from .timing import Timing as Timing
from .timing import time_prefill as time_prefill
from .traffic import bench_traffic as bench_traffic
