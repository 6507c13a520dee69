"""How fast lifelong is beside what people would use instead, measured in one process.

    python -m bench [names ...] [--quick] [--device cpu|cuda] [--json FILE]

One module for each question, with one public function `measure(settings) -> list[Figure]`. Ours and
the other take turns, so that a machine that slows down slows down both. Needs `pip install
lifelong[bench]`, and the embedded model or LIFELONG_BENCH_MODEL (a folder or a Hub name).
"""
